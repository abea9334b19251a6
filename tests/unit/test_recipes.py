"""Recipes: the numbers of the papers, and chains that the registry can build from them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from cl_core.data.sampling import SampleRng
from cl_core.data.views import Chain
from cl_core.errors import ConfigError
from cl_core.registry import Registry, load_registry
from plugins.augmentations import (
    byol,
    crop_flip,
    dino,
    moco,
    register_augmentations,
    register_recipes,
    simclr,
    simclr_cifar,
    swav,
)

IMAGES = SampleRng(7, 7, torch.arange(6)).uniform(shape=(3, 32, 32))
CROP_FLIP = ["random_resized_crop", "horizontal_flip"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def build(registry: Registry, specs: list[dict[str, Any]]) -> Chain:
    parts = [(spec["name"], {key: value for key, value in spec.items() if key != "name"}) for spec in specs]
    return Chain([(name, registry.build("augmentation", name, options)) for name, options in parts])


def by_name(chain: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {spec["name"]: spec for spec in chain}


def jitter(chain: list[dict[str, Any]]) -> list[float]:
    """Half-widths as the image sees them: brightness, contrast, saturation, hue."""
    spec = by_name(chain)["color_jitter"]
    assert spec["prob"] == 0.8
    return [pytest.approx(spec[name] * spec["strength"]) for name in ("brightness", "contrast", "saturation", "hue")]


@pytest.mark.parametrize("name", list(register_recipes()))
def test_every_recipe_builds_through_the_registry_and_makes_images(registry: Registry, name: str) -> None:
    chains = registry.build("recipe", name, {"size": 24, "min_scale": 0.3})
    json.dumps(chains)
    for argument, specs in chains.items():
        assert argument.startswith("augment")
        chain = build(registry, specs)
        views = chain(IMAGES, SampleRng(0, 0, torch.arange(6)))
        assert chain.names == [spec["name"] for spec in specs]
        side = 32 if argument in {"augment_local", "augment_small"} else 24  # they have a size of their own
        assert views.shape == (6, 3, side, side)
        assert float(views.min()) >= 0
        assert float(views.max()) <= 1


def test_simclr_has_the_order_and_numbers_of_its_appendix_a() -> None:
    chain = simclr()["augment"]
    assert [spec["name"] for spec in chain] == [*CROP_FLIP, "color_jitter", "grayscale", "gaussian_blur"]
    crop, blur = by_name(chain)["random_resized_crop"], by_name(chain)["gaussian_blur"]
    assert (crop["scale"], crop["ratio"], crop["interpolation"]) == ([0.08, 1.0], [3 / 4, 4 / 3], "bicubic")
    assert by_name(chain)["horizontal_flip"]["prob"] == 0.5
    assert jitter(chain) == [0.8, 0.8, 0.8, 0.2]
    assert by_name(chain)["grayscale"]["prob"] == 0.2
    assert (blur["kernel"], blur["sigma"], blur["prob"]) == (0.1, [0.1, 2.0], 0.5)


def test_simclr_cifar_halves_the_jitter_and_does_not_blur() -> None:
    chain = simclr_cifar()["augment"]
    assert [spec["name"] for spec in chain] == [*CROP_FLIP, "color_jitter", "grayscale"]
    assert jitter(chain) == [0.4, 0.4, 0.4, 0.1]


def test_byol_sides_differ_in_blur_and_solarisation_only() -> None:
    chains = byol()
    assert list(chains) == ["augment_a", "augment_b"]
    first, second = chains["augment_a"], chains["augment_b"]
    assert [spec["name"] for spec in first] == [*CROP_FLIP, "color_jitter", "grayscale", "gaussian_blur"]
    assert [spec["name"] for spec in second] == [spec["name"] for spec in first] + ["solarize"]
    assert first[:4] == second[:4]
    assert jitter(first) == [0.4, 0.4, 0.2, 0.1]
    assert (first[4]["prob"], second[4]["prob"]) == (1.0, 0.1)
    assert (second[5]["threshold"], second[5]["prob"]) == (0.5, 0.2)


def test_moco_and_crop_flip_have_their_numbers() -> None:
    chain = moco()["augment"]
    assert by_name(chain)["random_resized_crop"]["scale"] == [0.2, 1.0]
    assert jitter(chain) == [0.4, 0.4, 0.4, 0.1]
    assert by_name(chain)["gaussian_blur"]["prob"] == 0.5
    assert [spec["name"] for spec in crop_flip()["augment"]] == CROP_FLIP


def test_multi_crop_splits_areas_and_sizes_between_large_and_small_views() -> None:
    for chains, small, split in (
        (dino(local_size=16), "augment_local", 0.4),
        (swav(local_size=16), "augment_small", 0.14),
    ):
        crops = {argument: chain[0] for argument, chain in chains.items()}
        local = crops.pop(small)
        assert local["size"] == 16
        assert local["scale"] == [0.05, split]
        assert all(crop["scale"] == [split, 1.0] and crop["size"] is None for crop in crops.values())
    assert {k: v[1:] for k, v in dino().items() if k != "augment_local"} == {k: v[1:] for k, v in byol().items()}
    assert dino()["augment_local"][-1]["prob"] == 0.5
    assert swav()["augment"][1:] == swav()["augment_small"][1:]


def test_options_of_a_recipe_reach_its_operations() -> None:
    chain = simclr(strength=0.25, min_scale=0.2, size=96)["augment"]
    crop = by_name(chain)["random_resized_crop"]
    assert (crop["scale"], crop["size"]) == ([0.2, 1.0], 96)
    assert jitter(chain) == [0.2, 0.2, 0.2, 0.05]


def test_changing_one_operation_leaves_the_draws_of_the_others(registry: Registry) -> None:
    """Without colours, simclr-cifar's crops and flips stay, so an ablation changes only what it names."""
    rng = SampleRng(0, 0, torch.arange(6))
    colourless = build(registry, simclr_cifar(strength=0.0)["augment"][:3])
    plain = build(registry, simclr_cifar()["augment"][:2])
    torch.testing.assert_close(colourless(IMAGES, rng), plain(IMAGES, rng), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("recipe", "simclr", {"min_scale": 0.0}, "min_scale should be greater than 0, got 0.0"),
        ("recipe", "simclr", {"min_scal": 0.2}, "unknown option 'min_scal' - did you mean 'min_scale'"),
        ("recipe", "simclr", {"strength": 9.0}, "strength should be less than or equal to 2.5, got 9.0"),
        ("augmentation", "grayscale", {"prob": 1.5}, "prob should be less than or equal to 1, got 1.5"),
        ("augmentation", "random_resized_crop", {"scale": [0.0, 1.0]}, "scale.0 should be greater than 0"),
        ("augmentation", "random_resized_crop", {"interpolation": "cubic"}, "interpolation should be 'bilinear' or"),
        ("augmentation", "random_resized_crop", {"scale": [0.9, 0.1]}, "must go from low to high"),
        ("augmentation", "gaussian_blur", {"sigma": [0.0, 2.0]}, "sigma.0 should be greater than 0"),
        ("augmentation", "torchvision", {}, "needs the option 'transform'"),
    ],
)
def test_options_out_of_range_are_errors_that_name_them(
    registry: Registry, kind: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build(kind, name, options)


def test_torchvision_adapter_is_configured_from_plain_yaml(registry: Registry) -> None:
    spec = {"name": "torchvision", "transform": "RandomPerspective", "options": {"distortion_scale": 0.4, "p": 1.0}}
    views = build(registry, [spec])(IMAGES, SampleRng(0, 0, torch.arange(6)))
    assert views.shape == IMAGES.shape
    assert not torch.equal(views, IMAGES)


@pytest.mark.parametrize("name", list(register_augmentations()))
def test_every_option_of_an_augmentation_is_explained_in_its_docstring(registry: Registry, name: str) -> None:
    entry = registry.get("augmentation", name)
    text = inspect.getdoc(entry.factory) or ""
    assert text
    for option in entry.options:
        assert option in text, f"{name}: say in the docstring what {option} is"


def test_listing_the_augmentations_does_not_import_torch() -> None:
    code = (
        "import sys; from plugins import augmentations as a; a.register_augmentations(); a.register_recipes(); "
        "assert 'torch' not in sys.modules; assert a.RandomResizedCrop; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_in_the_package_is_an_attribute_error() -> None:
    import plugins.augmentations

    with pytest.raises(AttributeError, match="has no attribute 'Sharpen'"):
        plugins.augmentations.Sharpen  # noqa: B018
