"""Any model of timm (Wightman, github.com/huggingface/pytorch-image-models) by name, cut open into stages.

Convolutional and hierarchical nets give their feature maps; nets of one width and resolution (ViT, Mixer) give the
patch tokens after a quarter, half, three quarters and all of their blocks, as maps, each through the final norm.
Never downloads unless `pretrained` is true, and then only weights that timm itself names: no hub addresses, no paths.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.errors import ConfigError
from cl_core.types import Encoder

TOKEN_STAGES = 4  # stages of a net whose blocks all look alike


class TimmEncoder(Encoder):
    """Any timm model by name, without its classifier; stages stage1, stage2, ... are its feature maps.

    model: name as in `timm.list_models()`, e.g. "convnext_atto" or "vit_tiny_patch16_224".
    pretrained: start from timm's weights, downloaded if they are not in the cache; such features are not learned from
        your images alone, say so in results.
    img_size: side the net is built for, where it has a fixed one (ViT, Swin, Mixer); the model's own by default. ViT
        and Swin then still take other sizes, by interpolating positions.
    model_args: further arguments of the model, e.g. {patch_size: 4} for a ViT on 32 px images, {drop_path_rate: 0.1}.

    Raises ConfigError for an unknown model, for arguments the model does not take, for weights that do not exist, and
    in `stages` for images of a size the model was not built for.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool = False,
        img_size: PositiveInt | None = None,
        model_args: dict[str, Any] | None = None,
        in_channels: PositiveInt = 3,
    ) -> None:
        super().__init__()
        arguments = {**(model_args or {}), "in_chans": in_channels, "pretrained": pretrained}
        if img_size is not None:
            arguments["img_size"] = img_size
        self.model = model
        self.fixed_size = _has_fixed_size(model)
        self.net, self.out_dim = _feature_net(model, arguments, self.fixed_size)
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> {"stage1": (N, C_1, H_1, W_1), ...}, early to late."""
        maps = [features.permute(0, 3, 1, 2) if self.channels_last else features for features in self._maps(images)]
        return {f"stage{number}": features for number, features in enumerate(maps, start=1)}

    def _maps(self, images: Tensor) -> list[Tensor]:
        try:
            return self.net(images)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            if not self.fixed_size:
                raise
            height, width = images.shape[-2:]
            raise ConfigError(
                f"encoder timm: {self.model} does not take {height}x{width} px images ({error}); set img_size to the "
                f"side of the images, or choose a model without a fixed size, such as resnet18 or convnext_atto"
            ) from error


class TokenStages(nn.Module):
    """A net of equal blocks as a list of maps: the patch tokens after evenly spread blocks, each through its norm.

    timm's own feature version of a ViT gives the last three blocks, without the final norm.
    """

    def __init__(self, net: nn.Module, blocks: int) -> None:
        super().__init__()
        self.indices = [blocks * (number + 1) // TOKEN_STAGES - 1 for number in range(TOKEN_STAGES)]
        net.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (N, C, H, W) -> four maps (N, D, h, w)."""
        return self.net.forward_intermediates(
            images, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )


def _feature_net(model: str, arguments: dict[str, Any], fixed_size: bool) -> tuple[nn.Module, int]:
    """The model as a module that returns a list of maps, and the channels of the last."""
    net = _create(model, {**arguments, "features_only": True}, fixed_size)
    width = net.feature_info.channels()[-1]
    blocks = [(block["num_chs"], block["reduction"]) for block in net.feature_info.info]
    if len(set(blocks)) > 1 or len(blocks) < TOKEN_STAGES:
        return net, width
    return TokenStages(_create(model, {**arguments, "num_classes": 0}, fixed_size), len(blocks)), width


def _has_fixed_size(model: str) -> bool:
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ConfigError(f"encoder timm: timm {timm.__version__} has no model {model!r}{hint}")
    config = timm.get_pretrained_cfg(architecture)
    return bool(config and config.fixed_input_size)


def _create(model: str, arguments: dict[str, Any], fixed_size: bool) -> nn.Module:
    *attempts, last = _argument_sets(arguments, fixed_size)
    for attempt in attempts:
        try:
            return timm.create_model(model, **attempt)
        except TypeError:  # this family does not know the argument
            continue
    try:
        return timm.create_model(model, **last)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"encoder timm: {model} cannot be built: {error}; check img_size and model_args") from error


def _argument_sets(arguments: dict[str, Any], fixed_size: bool) -> Iterator[dict[str, Any]]:
    """The arguments with the most freedom in the size of the images first; which are known depends on the family."""
    if fixed_size:
        yield {"dynamic_img_size": True, "dynamic_img_pad": True, **arguments}
        yield {"dynamic_img_size": True, **arguments}
    yield arguments
