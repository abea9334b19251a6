"""Built-in augmentations and the recipes that name the papers' chains.

Importing this package imports no torch: parts are registered as "module:attribute" and loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from cl_core.hookspecs import Factories, hookimpl

_AUGMENTATIONS = {
    "random_resized_crop": "plugins.augmentations.geometry:RandomResizedCrop",
    "random_crop": "plugins.augmentations.geometry:RandomCrop",
    "horizontal_flip": "plugins.augmentations.geometry:HorizontalFlip",
    "rotation": "plugins.augmentations.geometry:Rotation",
    "quarter_turns": "plugins.augmentations.geometry:QuarterTurns",
    "color_jitter": "plugins.augmentations.colour:ColorJitter",
    "grayscale": "plugins.augmentations.colour:Grayscale",
    "solarize": "plugins.augmentations.colour:Solarize",
    "gaussian_blur": "plugins.augmentations.filters:GaussianBlur",
    "cutout": "plugins.augmentations.filters:Cutout",
    "torchvision": "plugins.augmentations.torchvision_adapter:TorchvisionTransform",
}
_RECIPES = {
    "simclr": "plugins.augmentations.recipes:simclr",
    "simclr-cifar": "plugins.augmentations.recipes:simclr_cifar",
    "byol": "plugins.augmentations.recipes:byol",
    "moco": "plugins.augmentations.recipes:moco",
    "swav": "plugins.augmentations.recipes:swav",
    "dino": "plugins.augmentations.recipes:dino",
    "crop-flip": "plugins.augmentations.recipes:crop_flip",
}
_MODULE_OF = {
    attribute: module
    for module, _, attribute in (target.partition(":") for target in [*_AUGMENTATIONS.values(), *_RECIPES.values()])
}

__all__ = [
    "ColorJitter",
    "Cutout",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "QuarterTurns",
    "RandomCrop",
    "RandomResizedCrop",
    "Rotation",
    "Solarize",
    "TorchvisionTransform",
    "byol",
    "crop_flip",
    "dino",
    "moco",
    "simclr",
    "simclr_cifar",
    "swav",
]


@hookimpl
def register_augmentations() -> Factories:
    """Return the built-in augmentations."""
    return dict(_AUGMENTATIONS)


@hookimpl
def register_recipes() -> Factories:
    """Return the papers' chains."""
    return dict(_RECIPES)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
