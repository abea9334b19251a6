"""Built-in observers of training: stop a run that has collapsed, and name early what will not get better by itself.

They look at logged figures only and know no method. Leave them out with `plugins: {block: [contrast-monitors]}` in
params.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cl_core.hookspecs import hookimpl
from plugins.monitors.collapse import CollapseMonitor
from plugins.monitors.gain import GainMonitor

if TYPE_CHECKING:
    from cl_core.types import RunInfo

_collapse, _gain = CollapseMonitor(), GainMonitor()  # pluggy calls functions of a module; each run starts them afresh


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Look at a run that begins: forget the one before, remember what this one has logged."""
    _collapse.start(run)
    _gain.start(run)


@hookimpl
def on_log(step: int, metrics: Mapping[str, float]) -> str | None:
    """Look at the figures that there are; return what is worth a remark."""
    _collapse.look(step, metrics)
    return "\n".join(_gain.look(step, metrics)) or None
