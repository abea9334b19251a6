"""The engine of contrast: nouns, plugin contract, data, training, evaluation, report.

Importing this package is cheap; names that need torch are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cl_core.data.sampling import SampleRng
    from cl_core.types import Encoder, Example, Method, Panel, ParamGroup, Representation, StepOutput, Views

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "Example",
    "Method",
    "Panel",
    "ParamGroup",
    "Representation",
    "SampleRng",
    "StepOutput",
    "Views",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cl_core' has no attribute {name!r}")
    module = "cl_core.data.sampling" if name == "SampleRng" else "cl_core.types"
    return getattr(importlib.import_module(module), name)
