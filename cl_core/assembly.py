"""From a resolved experiment (plain JSON) to the objects it names: chains, encoder, method.

Initial weights are a function of the seed alone: an encoder starts equal under every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_core.data.sampling import mix
from cl_core.data.views import Chain
from cl_core.errors import ConfigError
from cl_core.registry import Registry
from cl_core.types import Encoder, Method

Spec = Mapping[str, Any]  # {"name": ..., "options": {...}}

_ENCODER_STREAM, _METHOD_STREAM, _LOSS_STREAM = 1, 2, 3


def build_chains(registry: Registry, chains: Mapping[str, Sequence[Spec]]) -> dict[str, Chain]:
    """{argument: list of augmentations} -> {argument: Chain}. Raises ConfigError for a wrong name or option."""
    return {argument: build_chain(registry, specs) for argument, specs in chains.items()}


def build_chain(registry: Registry, specs: Sequence[Spec]) -> Chain:
    """One chain of augmentations."""
    return Chain([(spec["name"], registry.build("augmentation", spec["name"], spec["options"])) for spec in specs])


def build_encoder(registry: Registry, spec: Spec, *, seed: int, image_size: int, **overrides: Any) -> nn.Module:
    """The encoder with initial weights drawn from the seed.

    image_size: for encoders that ask for it. overrides: `in_channels` or `width_mult`. Raises ConfigError where the
    encoder's factory does not take one of them.
    """
    unknown = [argument for argument in overrides if argument not in registry.get("encoder", spec["name"]).parameters]
    if unknown:
        raise ConfigError(
            f"encoder {spec['name']!r} takes no {' and no '.join(unknown)}, which the method needs; choose an encoder "
            f"whose factory does (docs/plugins.md names them)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, _ENCODER_STREAM))
        encoder: nn.Module = registry.build(
            "encoder", spec["name"], spec["options"], image_size=image_size, **overrides
        )
    return encoder


def build_method(registry: Registry, experiment: Mapping[str, Any], *, seed: int) -> Method:
    """The method of a resolved experiment, untrained.

    experiment: the keys method, encoder, loss and score (or None), chains and image_size. Raises ConfigError where a
    part is wrong.
    """
    spec = experiment["encoder"]

    def encoder_factory(**overrides: Any) -> nn.Module:
        return build_encoder(registry, spec, seed=seed, image_size=experiment["image_size"], **overrides)

    return _method(registry, experiment, encoder_factory, _loss(registry, experiment, seed), seed)


def build_view_maker(registry: Registry, experiment: Mapping[str, Any], *, seed: int) -> Method:
    """The method of a resolved experiment for its `make_views` alone.

    Views must not depend on encoder or loss, so that editing these leaves the view plan as it is; the smallest encoder
    there is stands in for the real one.
    """
    return _method(registry, experiment, lambda **_: PixelEncoder(), _no_loss, seed)


def method_arguments(registry: Registry, name: str, chains: Mapping[str, Chain]) -> dict[str, Chain]:
    """The chains by the method's argument names; one chain called `augment` serves every view."""
    wanted = [part for part in registry.get("method", name).parts if part.startswith("augment")]
    if set(chains) == {"augment"}:
        return dict.fromkeys(wanted, chains["augment"])
    missing = [argument for argument in wanted if argument not in chains]
    if missing:
        raise ConfigError(f"method {name!r} needs the chains {', '.join(wanted)}; {', '.join(missing)} is missing")
    return {argument: chains[argument] for argument in wanted}


class PixelEncoder(Encoder):
    """The mean colour of an image: (N, C, H, W) -> (N, C), without parameters."""

    out_dim = 3

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """The image itself is the only stage."""
        return {"pixels": images}

    def blocks(self) -> dict[str, nn.Module]:
        """Nothing happens to the image."""
        return {"pixels": nn.Identity()}


def _loss(registry: Registry, experiment: Mapping[str, Any], seed: int) -> Any:
    """The loss with its score, which may have weights."""
    loss, score = experiment["loss"], experiment["score"]
    if loss is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, _LOSS_STREAM))
        built = None if score is None else registry.build("score", score["name"], score["options"])
        return registry.build("loss", loss["name"], loss["options"], score=built)


def _no_loss(*embeddings: Tensor) -> Tensor:
    return torch.stack([embedding.mean() for embedding in embeddings]).mean()


def _method(
    registry: Registry, experiment: Mapping[str, Any], encoder_factory: Callable[..., nn.Module], loss: Any, seed: int
) -> Method:
    spec = experiment["method"]
    chains = method_arguments(registry, spec["name"], build_chains(registry, experiment["chains"]))
    encoder = encoder_factory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, _METHOD_STREAM))
        method: Method = registry.build(
            "method",
            spec["name"],
            spec["options"],
            encoder=encoder,
            encoder_factory=encoder_factory,
            loss=loss,
            image_size=experiment["image_size"],
            **chains,
        )
    return method
