"""A tracker for TensorBoard; the package is an extra, imported only when a run asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_core.errors import ConfigError
from cl_core.types import RunInfo, RunSummary


class TensorBoard:
    """Write every logged figure as a scalar below `tensorboard/` of the run's folder.

    Raises ConfigError where TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                'the tracker tensorboard needs the package TensorBoard; run `pip install "contrast[tensorboard]"`, or '
                "remove it from train.trackers"
            ) from None
        self._make_writer: Any = SummaryWriter
        self._writer: Any = None

    def start(self, run: RunInfo) -> None:
        """Remember where to write."""
        self._folder = run.directory / "tensorboard"
        self._writer = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the figures of a step. The first one hides what an earlier sitting wrote from that step on."""
        if self._writer is None:
            self._writer = self._make_writer(log_dir=str(self._folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, summary: RunSummary) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
