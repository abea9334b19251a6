"""Built-in methods, one file each: where each one lives. Importing this package does not load torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_core.hookspecs import Factories, hookimpl

if TYPE_CHECKING:
    from plugins.methods.byol import BYOL
    from plugins.methods.jigsaw import Jigsaw
    from plugins.methods.simclr import SimCLR

__all__ = ["BYOL", "Jigsaw", "SimCLR"]

_HOMES = {
    "BYOL": "plugins.methods.byol",
    "Jigsaw": "plugins.methods.jigsaw",
    "SimCLR": "plugins.methods.simclr",
}


@hookimpl
def register_methods() -> Factories:
    """Return the built-in methods by name."""
    return {
        "simclr": "plugins.methods.simclr:SimCLR",
        "byol": "plugins.methods.byol:BYOL",
        "jigsaw": "plugins.methods.jigsaw:Jigsaw",
    }


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plugins.methods' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
