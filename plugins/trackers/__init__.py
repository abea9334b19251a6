"""Built-in trackers: places that the logged figures of a run are written to, named under `train.trackers`."""

from __future__ import annotations

import importlib
from typing import Any

from cl_core.hookspecs import Factories, hookimpl

_PARTS = {"JsonLines": "plugins.trackers.jsonl", "TensorBoard": "plugins.trackers.tensorboard"}

__all__ = ["JsonLines", "TensorBoard"]


@hookimpl
def register_trackers() -> Factories:
    """Return the built-in trackers."""
    return {"jsonl": "plugins.trackers.jsonl:JsonLines", "tensorboard": "plugins.trackers.tensorboard:TensorBoard"}


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PARTS[name]), name)
