"""Built-in observers of training: stop a run whose embedding has collapsed, instead of finishing it in vain.

Looks at logged figures only and knows no method. Leave it out with `plugins: {block: [contrast-monitors]}` in
params.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cl_core.errors import CollapseError
from cl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cl_core.types import RunInfo

MIN_FEATURE_STD = 0.1  # of unit embeddings, times sqrt(D): 1 when spread evenly, 0 when all are equal
MIN_EFFECTIVE_RANK = 2.0  # below it the embeddings lie on a line
GRACE = 0.1  # share of the run in which a network may still be finding its feet
PATIENCE = 5  # logged steps in a row


class CollapseMonitor:
    """Raises CollapseError after PATIENCE logged steps in a row below a threshold, once GRACE is over."""

    def __init__(self) -> None:
        self._grace_steps = 0.0
        self._strikes = 0

    @hookimpl
    def on_run_start(self, run: RunInfo) -> None:
        """Look at a run that begins: forget the one before."""
        self._grace_steps = GRACE * run.total_steps
        self._strikes = 0

    @hookimpl
    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the figures of the embedding; methods that report none cannot collapse in this way."""
        if step <= self._grace_steps or "feature_std" not in metrics:
            return
        std, rank = metrics["feature_std"], metrics["effective_rank"]
        collapsed = not (std >= MIN_FEATURE_STD and rank >= MIN_EFFECTIVE_RANK)  # NaN counts as collapsed
        self._strikes = self._strikes + 1 if collapsed else 0
        if self._strikes >= PATIENCE:
            raise CollapseError(
                f"the embeddings have collapsed: at step {step}, and at the {PATIENCE - 1} logged steps before, "
                f"feature_std {std:.3g} is below {MIN_FEATURE_STD} or effective_rank {rank:.3g} below "
                f"{MIN_EFFECTIVE_RANK:g}; lower optimizer.lr, check the method's options against its paper, or add "
                f"contrast-monitors to plugins.block in params.yaml to train on regardless"
            )


_monitor = CollapseMonitor()  # pluggy calls the functions of a module; on_run_start resets it for every run
on_run_start, on_log = _monitor.on_run_start, _monitor.on_log
