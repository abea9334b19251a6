"""What a run tells the world: curves, observer hooks and trackers.

Observes only. A hook may stop a run by raising a ContrastError; a tracker that fails is left out and the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from cl_core.errors import Interrupted
from cl_core.training.progress import Progress, Status, console_progress
from cl_core.types import RunInfo, RunSummary

FIRST_COLUMNS = ("step", "epoch", "loss", "lr")
ONLINE_COLUMNS = ("knn_top1", "self_match", "rankme", "alpha_req", "alignment", "uniformity")
LAST_COLUMNS = (*ONLINE_COLUMNS, "feature_std", "effective_rank", "mean_cosine")


def curves_csv(rows: Sequence[Mapping[str, float]]) -> str:
    """Logged steps as CSV: fixed columns, the method's own between them, cells empty where nothing was measured.

    The text is a function of the numbers alone, so equal runs give equal bytes.
    """
    known = {name for row in rows for name in row}
    own = list(dict.fromkeys(name for row in rows for name in row if name not in FIRST_COLUMNS + LAST_COLUMNS))
    columns = [*FIRST_COLUMNS, *own, *(name for name in LAST_COLUMNS if name in known)]
    lines = [",".join(_cell(row.get(name)) for name in columns) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.8g}"


class Tracker(Protocol):
    """What `register_trackers` provides."""

    def start(self, run: RunInfo) -> None:
        """A run starts or continues."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step was logged, 0 before the first update. After a resume, steps since the last checkpoint come again."""

    def end(self, summary: RunSummary) -> None:
        """The run ended; called once for every start."""


class Observers:
    """Everybody who watches a run: the observer hooks of all plugins, the experiment's trackers, the console."""

    def __init__(self, hooks: Any = None, trackers: Sequence[Tracker] = (), progress: Progress | None = None) -> None:
        """hooks: `PluginManager.hook`, or None. progress: by default live on a terminal, plain lines elsewhere."""
        self.hooks, self.trackers = hooks, trackers
        self.progress = progress if progress is not None else console_progress()
        self._forget()

    def _forget(self) -> None:
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._started: list[Tracker] = []
        self._failed: list[Any] = []

    @contextmanager
    def run(self, info: RunInfo) -> Iterator[None]:
        """Everything inside is one run: all are told of its start, and once of its end, however it ends."""
        self._forget()
        status = "failed"
        try:
            self._start(info)
            yield
            status = "finished"
        except (Interrupted, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            self._end(RunSummary(status=status, step=self._step, metrics=self._metrics))

    def log(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Tell all the figures of a step, and return what hooks remark, line by line. An error of a hook goes through:
        that is how it stops the run."""
        self._step, self._metrics = step, dict(metrics)
        for tracker in [tracker for tracker in self._started if tracker not in self._failed]:
            with self._guarded(tracker):
                tracker.log(step, dict(metrics))
        texts = [] if self.hooks is None else self.hooks.on_log(step=step, metrics=dict(metrics))
        return [line for text in texts for line in text.splitlines()]

    def show(self, status: Status) -> None:
        """Tell the console where the run stands; called at every step."""
        self._step = status.step
        self.progress.show(status)

    def say(self, text: str) -> None:
        """Write a line for the person at the console."""
        self.progress.say(text)

    def _start(self, info: RunInfo) -> None:
        self.progress.begin(info.total_steps)
        if self.hooks is not None:
            self.hooks.on_run_start(run=info)
        for tracker in self.trackers:
            tracker.start(info)
            self._started.append(tracker)

    def _end(self, summary: RunSummary) -> None:
        for tracker in self._started:
            with self._guarded(tracker):
                tracker.end(summary)
        if self.hooks is not None:
            with self._guarded(self.hooks):
                self.hooks.on_run_end(summary=summary)
        self.progress.end()

    @contextmanager
    def _guarded(self, who: Any) -> Iterator[None]:
        """What fails inside must neither cost the run nor hide the error that ended it; it is said, and remembered."""
        try:
            yield
        except Exception as error:
            name = "on_run_end" if who is self.hooks else f"tracker {type(who).__name__}"
            self.say(f"warning: {name} failed and is left out of the rest of this run: {type(error).__name__}: {error}")
            self._failed.append(who)
