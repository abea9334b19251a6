"""Built-in encoders: where each one lives. Importing this package loads neither torch nor timm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_core.hookspecs import Factories, hookimpl

if TYPE_CHECKING:
    from plugins.encoders.cifar_resnet import CifarResNet, resnet8, resnet20
    from plugins.encoders.pixels import Pixels
    from plugins.encoders.timm_models import TimmEncoder
    from plugins.encoders.torchvision_resnet import TorchvisionResNet, resnet18, resnet50
    from plugins.encoders.vit import ViT

__all__ = [
    "CifarResNet",
    "Pixels",
    "TimmEncoder",
    "TorchvisionResNet",
    "ViT",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet50",
]

_HOMES = {
    "CifarResNet": "plugins.encoders.cifar_resnet",
    "resnet8": "plugins.encoders.cifar_resnet",
    "resnet20": "plugins.encoders.cifar_resnet",
    "TorchvisionResNet": "plugins.encoders.torchvision_resnet",
    "resnet18": "plugins.encoders.torchvision_resnet",
    "resnet50": "plugins.encoders.torchvision_resnet",
    "Pixels": "plugins.encoders.pixels",
    "TimmEncoder": "plugins.encoders.timm_models",
    "ViT": "plugins.encoders.vit",
}


@hookimpl
def register_encoders() -> Factories:
    """Return the built-in encoders by name."""
    return {
        "resnet8": "plugins.encoders.cifar_resnet:resnet8",
        "resnet20": "plugins.encoders.cifar_resnet:resnet20",
        "resnet18": "plugins.encoders.torchvision_resnet:resnet18",
        "resnet50": "plugins.encoders.torchvision_resnet:resnet50",
        "vit": "plugins.encoders.vit:ViT",
        "timm": "plugins.encoders.timm_models:TimmEncoder",
        "pixels": "plugins.encoders.pixels:Pixels",
    }


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plugins.encoders' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
