"""Built-in methods: where each one lives. Importing this package does not load torch."""

from __future__ import annotations

import importlib
from typing import Any

from cl_core.hookspecs import Factories, hookimpl

_METHODS = {
    "jigsaw": "plugins.methods.jigsaw:Jigsaw",
    "context_prediction": "plugins.methods.context_prediction:ContextPrediction",
    "denoising_autoencoder": "plugins.methods.denoising_autoencoder:DenoisingAutoencoder",
    "colorization": "plugins.methods.colorization:Colorization",
    "context_encoder": "plugins.methods.context_encoder:ContextEncoder",
    "split_brain": "plugins.methods.split_brain:SplitBrain",
    "counting": "plugins.methods.counting:Counting",
    "rotation": "plugins.methods.rotation:Rotation",
    "mae": "plugins.methods.mae:MAE",
    "simclr": "plugins.methods.simclr:SimCLR",
    "moco_v2": "plugins.methods.moco_v2:MoCoV2",
    "moco_v3": "plugins.methods.moco_v3:MoCoV3",
    "nnclr": "plugins.methods.nnclr:NNCLR",
    "supcon": "plugins.methods.supcon:SupCon",
    "byol": "plugins.methods.byol:BYOL",
    "simsiam": "plugins.methods.simsiam:SimSiam",
    "barlow_twins": "plugins.methods.redundancy:BarlowTwins",
    "vicreg": "plugins.methods.redundancy:VICReg",
    "swav": "plugins.methods.swav:SwAV",
    "dino": "plugins.methods.dino:DINO",
    "supervised": "plugins.methods.supervised:Supervised",
    "random_init": "plugins.methods.random_init:RandomInit",
}
_MODULE_OF = {attribute: module for module, _, attribute in (target.partition(":") for target in _METHODS.values())}

__all__ = [
    "BYOL",
    "BarlowTwins",
    "Colorization",
    "ContextEncoder",
    "ContextPrediction",
    "Counting",
    "DINO",
    "DenoisingAutoencoder",
    "Jigsaw",
    "MAE",
    "MoCoV2",
    "MoCoV3",
    "NNCLR",
    "RandomInit",
    "Rotation",
    "SimCLR",
    "SimSiam",
    "SplitBrain",
    "SupCon",
    "Supervised",
    "SwAV",
    "VICReg",
]


@hookimpl
def register_methods() -> Factories:
    """Return the built-in methods."""
    return dict(_METHODS)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
