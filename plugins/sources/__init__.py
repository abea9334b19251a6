"""Built-in sources of images: `digits`, `image_folder` and `torchvision`.

This module names the parts only; a source, and what it imports, is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from cl_core.hookspecs import hookimpl

__all__ = ["Digits", "ImageFolder", "TorchvisionDataset", "register_sources"]

_MODULES = {
    "Digits": "plugins.sources.digits",
    "ImageFolder": "plugins.sources.image_folder",
    "TorchvisionDataset": "plugins.sources.torchvision_dataset",
}


@hookimpl
def register_sources() -> dict[str, str]:
    """Return the built-in sources."""
    return {
        "digits": "plugins.sources.digits:Digits",
        "image_folder": "plugins.sources.image_folder:ImageFolder",
        "torchvision": "plugins.sources.torchvision_dataset:TorchvisionDataset",
    }


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
