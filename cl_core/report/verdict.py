"""Did pretraining help? One sentence per group of runs, against the same encoder with random weights.

Linear probe and kNN both count, and a loss leads: it is never worded as a success or as a tie.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cl_core.report.groups import Group, percent
from cl_core.report.records import RANDOM_INIT, Accuracy

State = Literal["better", "worse", "mixed", "undecided", "unknown"]
Change = Literal["lost", "gained", "none"]


NOT_EVALUATED = "not evaluated against random init"


@dataclass(frozen=True)
class Verdict:
    """state: "mixed" where one figure is better and the other worse, "unknown" where nothing was evaluated. text: one
    sentence, whose subject is the experiment, without full stop."""

    state: State
    text: str

    @property
    def says_something(self) -> bool:
        """Whether there was anything to judge by."""
        return self.text != NOT_EVALUATED

    @property
    def is_loss(self) -> bool:
        """Whether the features have become worse in one figure at least."""
        return self.state in ("worse", "mixed")


@dataclass(frozen=True)
class Run:
    """One figure of one run, and its value before training."""

    figure: Accuracy
    untrained: float


@dataclass(frozen=True)
class Side:
    """One figure of a group against random init, means over its runs."""

    name: str
    value: float
    untrained: float
    change: Change

    @classmethod
    def of(cls, name: str, runs: Sequence[Run]) -> Side | None:
        """A gain is clear where every run's interval lies above its own random init; a loss, which must not pass for a
        tie because of one lucky seed, where the mean interval lies below."""
        if not runs:
            return None
        untrained = statistics.fmean(run.untrained for run in runs)
        change: Change = "none"
        if all(run.figure.top1_ci95[0] > run.untrained for run in runs):
            change = "gained"
        elif statistics.fmean(run.figure.top1_ci95[1] for run in runs) < untrained:
            change = "lost"
        return cls(name, statistics.fmean(run.figure.top1 for run in runs), untrained, change)

    @property
    def figures(self) -> str:
        """ "15.9 against 27.7 untrained"."""
        return f"{percent(self.value)} against {percent(self.untrained)} untrained"

    @property
    def points(self) -> str:
        """How much was lost or gained, without sign."""
        return percent(abs(self.value - self.untrained))


def verdict(group: Group) -> Verdict:
    """What pretraining has done to the linear probe and kNN of a group, and whether raw pixels do better still."""
    linear, knn = Side.of("linear probe", _linear_runs(group)), Side.of("kNN", _knn_runs(group))
    if linear is None:
        return Verdict("unknown", _without_labels(group))
    text = _sentence([linear] if knn is None else [linear, knn])
    pixels = group.baseline("raw_pixels")
    if pixels is not None and group.linear is not None and pixels.mean > group.linear.mean:
        text += f"; raw pixels do {percent(pixels.mean - group.linear.mean)} points better"
    return Verdict(_state(linear.change, knn.change if knn else "none"), text)


def _without_labels(group: Group) -> str:
    found = [experiment.self_match for experiment in group.experiments if experiment.self_match]
    if not found:
        return NOT_EVALUATED
    now, untrained = (percent(statistics.fmean(values)) for values in zip(*found, strict=True))
    return f"cannot be judged without labels; self-match is {now} against {untrained} untrained"


def _state(linear: Change, knn: Change) -> State:
    if "lost" in (linear, knn):
        return "mixed" if "gained" in (linear, knn) else "worse"
    return "better" if linear == "gained" else "undecided"


def _sentence(sides: Sequence[Side]) -> str:
    """Losses first, then gains, then what shows no difference."""
    order = ("lost", "gained", "none")
    first, *rest = sorted(sides, key=lambda side: order.index(side.change))
    if first.change == "none":
        return "shows no difference from random init: " + ", ".join(f"{s.figures} by {s.name}" for s in (first, *rest))
    text = f"{first.change} {first.points} points by {first.name} ({first.figures})"
    for side in rest:
        if side.change == "none":
            text += f"; no difference shown by {side.name} ({side.figures})"
        else:
            joint = " and" if side.change == first.change else f", but {side.change}"
            text += f"{joint} {side.points} by {side.name} ({side.figures})"
    return text


def _linear_runs(group: Group) -> list[Run]:
    results = [e.linear.result for e in group.experiments if e.linear.result]
    return [Run(r.test, r.baselines[RANDOM_INIT].top1) for r in results if RANDOM_INIT in r.baselines]


def _knn_runs(group: Group) -> list[Run]:
    results = [e.linear.result for e in group.experiments if e.linear.result]
    pairs = [(r.knn, r.baselines[RANDOM_INIT].knn_top1) for r in results if RANDOM_INIT in r.baselines]
    return [Run(knn, untrained) for knn, untrained in pairs if untrained is not None]
