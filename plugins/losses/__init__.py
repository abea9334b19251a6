"""Built-in losses: where each one lives. Importing this package does not load torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_core.hookspecs import Factories, hookimpl

if TYPE_CHECKING:
    from plugins.losses.nt_xent import NTXent

__all__ = ["NTXent"]

_HOMES = {"NTXent": "plugins.losses.nt_xent"}


@hookimpl
def register_losses() -> Factories:
    """Return the built-in losses by name."""
    return {"nt_xent": "plugins.losses.nt_xent:NTXent"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plugins.losses' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
