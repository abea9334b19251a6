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
    "info_nce": "plugins.losses.contrastive:InfoNCE",
}
_SCORES = {
    "dot": "plugins.losses.scores:Dot",
    "cosine": "plugins.losses.scores:Cosine",
    "gaussian": "plugins.losses.scores:Gaussian",
    "bilinear": "plugins.losses.scores:Bilinear",
    "mlp": "plugins.losses.scores:MLP",
}
_MODULE_OF = {
    attribute: module
    for module, _, attribute in (target.partition(":") for target in [*_LOSSES.values(), *_SCORES.values()])
}

__all__ = [
    "BarlowTwins",
    "Bilinear",
    "Cosine",
    "DCL",
    "DCLW",
    "Dot",
    "Gaussian",
    "InfoNCE",
    "MLP",
    "NTXent",
    "SupCon",
    "VICReg",
]


@hookimpl
def register_losses() -> Factories:
    """Return the built-in losses."""
    return dict(_LOSSES)


@hookimpl
def register_scores() -> Factories:
    """Return the built-in scores."""
    return dict(_SCORES)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
