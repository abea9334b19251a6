"""Stop a run whose representation has collapsed, instead of finishing it in vain.

Looks at `feature_std` and `effective_rank`, which the trainer takes from a method's embedding, and at `active_share`
and `assignment_information`, which methods log where they apply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_core.errors import CollapseError

if TYPE_CHECKING:
    from cl_core.types import RunInfo

PATIENCE = 5  # logged steps in a row


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A figure that a useful run keeps at `least` or above.

    grace: share of the run in which a network may still be finding its feet. means: what a lower value says. advice:
    what to change.
    """

    figure: str
    least: float
    grace: float
    means: str
    advice: str


_CALMER = "lower optimizer.lr, check the method's options against its paper"
COLLAPSED_STD = 0.1
ALARMS = (
    Alarm(
        figure="feature_std",  # of unit embeddings, times sqrt(D): 1 when spread evenly, 0 when all are equal
        least=COLLAPSED_STD,
        grace=0.1,
        means="all images have nearly the same embedding",
        advice=_CALMER,
    ),
    Alarm(
        figure="effective_rank",
        least=2.0,
        grace=0.1,
        means="the embeddings of all images lie on a line",
        advice=_CALMER,
    ),
    Alarm(
        figure="active_share",
        least=0.01,
        grace=0.1,
        means="nearly all outputs are 0, and what has died gets no gradient to come back",
        advice="lower optimizer.lr, set optimizer.clip",
    ),
    # Cluster methods may rest at log K, where all answers are nearly alike, for long before they leave it: in 12 epochs
    # on the 1,797 digits SwAV with epsilon 0.03 fell to 0.002 and was back at 0.02 after seven tenths of the run; with
    # 0.05 it stayed at 0.002, and DINO below 0.001.
    Alarm(
        figure="assignment_information",
        least=0.005,
        grace=0.75,
        means="all images get the same answer, one prototype or all of them alike",
        advice="sharpen the targets by a lower temperature or epsilon in method, lower optimizer.lr, train for longer",
    ),
)


class CollapseMonitor:
    """Raises CollapseError after PATIENCE logged steps in a row below the least of a figure, once its grace is over."""

    def __init__(self) -> None:
        self._total_steps = 0
        self._strikes: Counter[str] = Counter()

    def start(self, run: RunInfo) -> None:
        """A run begins, or goes on with what it has logged."""
        self._total_steps = run.total_steps
        self._strikes.clear()
        for row in run.logged:
            self.look(int(row["step"]), row)

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Judge the figures that there are; methods that report none cannot collapse in these ways."""
        for alarm in ALARMS:
            if alarm.figure in metrics and step > alarm.grace * self._total_steps:
                self._judge(alarm, step, metrics[alarm.figure])

    def _judge(self, alarm: Alarm, step: int, value: float) -> None:
        if value >= alarm.least:  # NaN is not
            del self._strikes[alarm.figure]
            return
        self._strikes[alarm.figure] += 1
        if self._strikes[alarm.figure] >= PATIENCE:
            raise CollapseError(
                f"the representation has collapsed: at step {step} {alarm.figure} is {value:.3g}, and as at the "
                f"{PATIENCE - 1} logged steps before it is below {alarm.least:g}, so {alarm.means}; {alarm.advice}, or "
                f"add contrast-monitors to plugins.block in params.yaml to train on regardless"
            )
