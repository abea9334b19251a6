"""Built-in losses: where each one lives. Importing this package does not load torch."""

from __future__ import annotations

import importlib
from typing import Any

from cl_core.hookspecs import Factories, hookimpl

_LOSSES = {
    "nt_xent": "plugins.losses.nt_xent:NTXent",
    "dcl": "plugins.losses.dcl:DCL",
    "dclw": "plugins.losses.dcl:DCLW",
    "supcon": "plugins.losses.supcon:SupCon",
    "barlow_twins": "plugins.losses.barlow_twins:BarlowTwins",
    "vicreg": "plugins.losses.vicreg:VICReg",
}
_MODULE_OF = {attribute: module for module, _, attribute in (target.partition(":") for target in _LOSSES.values())}

__all__ = [
    "BarlowTwins",
    "DCL",
    "DCLW",
    "NTXent",
    "SupCon",
    "VICReg",
]


@hookimpl
def register_losses() -> Factories:
    """Return the built-in losses."""
    return dict(_LOSSES)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
