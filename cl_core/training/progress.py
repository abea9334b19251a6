"""Where a run stands, for the person who waits for it: a live line on a terminal, plain lines in a log file.

Measures wall time, so nothing of this may reach an output that is compared between runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Throughput:
    """Images per second and the share of time spent waiting for data, over all sittings of a run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._images, self._waited = 0, 0.0
        self._before = {"seconds": 0.0, "images": 0, "waited": 0.0}

    def update(self, images: int, waited: float) -> None:
        """images: how many more were trained on. waited: seconds spent waiting for data in this sitting so far."""
        self._images += images
        self._waited = waited

    @property
    def seconds(self) -> float:
        """Length of this sitting."""
        return max(self._clock() - self._began, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Of this sitting."""
        return self._images / self.seconds

    @property
    def data_wait_share(self) -> float:
        """Of this sitting, in [0, 1]."""
        return self._waited / self.seconds

    def state_dict(self) -> dict[str, float]:
        """Totals over all sittings so far, for the checkpoint."""
        sitting = {"seconds": self.seconds, "images": self._images, "waited": self._waited}
        return {name: self._before[name] + value for name, value in sitting.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on counting from there."""
        self._before = dict(state)

    def report(self) -> dict[str, float]:
        """What timing.json says, over all sittings."""
        total = self.state_dict()
        return {
            "seconds": round(total["seconds"], 3),
            "images_per_second": round(total["images"] / total["seconds"], 2),
            "data_wait_share": round(total["waited"] / total["seconds"], 4),
        }


def online_figure(metrics: Mapping[str, float]) -> str:
    """The online evaluation's main figure: "knn 0.710", "self-match 0.710", or "" where there is none."""
    names = {"knn_top1": "knn", "self_match": "self-match"}
    return next((f"{short} {metrics[name]:.3f}" for name, short in names.items() if name in metrics), "")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands; `line()` is what a person reads. untrained: online figures from before the first step."""

    step: int
    total_steps: int
    steps_per_epoch: int
    metrics: Mapping[str, float]
    images_per_second: float
    data_wait_share: float
    seconds_left: float
    untrained: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends_epoch(self) -> bool:
        """Whether this was the last step of an epoch."""
        return self.step % self.steps_per_epoch == 0

    def line(self) -> str:
        """epoch 3/20  step 120/800  loss 4.12  knn 0.710 (untrained 0.270)  812 images/s  data wait 2 %  2 min left."""
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        parts = [f"epoch {epoch}/{self.total_steps // self.steps_per_epoch}", f"step {self.step}/{self.total_steps}"]
        parts += [f"loss {self.metrics['loss']:.4f}"] if "loss" in self.metrics else []
        now, before = online_figure(self.metrics), online_figure(self.untrained)
        parts += [f"{now} (untrained {before.split()[-1]})" if before else now] if now else []
        parts += [f"{self.images_per_second:.0f} images/s", f"data wait {100 * self.data_wait_share:.0f} %"]
        return "  ".join([*parts, f"{duration(self.seconds_left)} left"])


def duration(seconds: float) -> str:
    """Rounded for people: 45 s, 2 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class PlainProgress:
    """A line now and then, for log files: every `every` seconds, at the end of an epoch after half of that."""

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write or (lambda text: print(text, flush=True))
        self._every, self._clock = every, clock
        self._last = clock()

    def begin(self, total_steps: int) -> None:
        """Nothing to open."""

    def show(self, status: Status) -> None:
        """Write a line if one is due."""
        waited = self._clock() - self._last
        due = self._every / 2 if status.ends_epoch else self._every
        if waited >= due or status.step == status.total_steps:
            self._last = self._clock()
            self._write(status.line())

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._write(text)

    def end(self) -> None:
        """Nothing to close."""


class LiveProgress:
    """A bar that stays in place, for terminals."""

    def __init__(self, console: Any = None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(BarColumn(20), TextColumn("{task.description}"), console=console, transient=True)
        self._status: Status | None = None

    def begin(self, total_steps: int) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("starting", total=total_steps)
        self._progress.start()

    def show(self, status: Status) -> None:
        """Move the bar."""
        self._status = status
        self._progress.update(self._task, completed=status.step, description=status.line())

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Take the bar away and leave its last words."""
        self._progress.stop()
        if self._status is not None:
            self.say(self._status.line())


Progress = PlainProgress | LiveProgress


def console_progress() -> Progress:
    """Live on a terminal, else plain lines."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
