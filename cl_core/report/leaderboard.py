"""The leaderboard: the methods of a project side by side, with what each is, what it cost and what it won.

One leaderboard per table of results, so protocols never mix; only where several methods are in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cl_core.report.budgets import Budget
from cl_core.report.collect import Experiment
from cl_core.report.groups import Group, Measured
from cl_core.report.records import RANDOM_INIT, MethodFacts
from cl_core.report.results import Table


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard.

    facts: of the method, empty for a card that has none. seconds: of pretraining, mean over seeds. gain: of the linear
    probe over the same encoder with the same input before training, paired by run. few_labels: the best use at each
    budget.
    """

    group: Group
    facts: MethodFacts
    seconds: float | None
    linear: Measured | None
    knn: Measured | None
    few_labels: tuple[Measured | None, ...]
    gain: Measured | None

    @property
    def place(self) -> tuple[bool, float]:
        """What lines are sorted by: the linear probe, those without one last."""
        return self.linear is None, -self.linear.mean if self.linear else 0.0


@dataclass(frozen=True)
class Leaderboard:
    """All groups of a table, the best linear probe first."""

    protocols: tuple[str, ...]
    budgets: tuple[Budget, ...]
    entries: tuple[Entry, ...]

    @property
    def named_by_method(self) -> bool:
        """Whether every line is called what its method is called, so that the method need not be said."""
        return all(entry.group.label == entry.group.method for entry in self.entries)


def leaderboards(tables: Sequence[Table]) -> list[Leaderboard]:
    """One for each table with more than one method in it."""
    return [leaderboard(table) for table in tables if len({group.method for group in table.groups}) > 1]


def leaderboard(table: Table) -> Leaderboard:
    """The lines of a table, sorted."""
    entries = [_entry(group, table) for group in table.groups]
    return Leaderboard(table.protocols, table.budgets, tuple(sorted(entries, key=lambda entry: entry.place)))


def _entry(group: Group, table: Table) -> Entry:
    seconds = [float(e.timing["seconds"]) for e in group.experiments if "seconds" in e.timing]
    gains = [gain for experiment in group.experiments if (gain := _gain(experiment)) is not None]
    return Entry(
        group=group,
        facts=group.first.facts,
        seconds=statistics.fmean(seconds) if seconds else None,
        linear=group.linear,
        knn=group.knn,
        few_labels=tuple(group.few_labels("best", budget.name) for budget in table.budgets),
        gain=Measured(tuple(gains)) if gains else None,
    )


def _gain(experiment: Experiment) -> float | None:
    result = experiment.linear.result
    untrained = result.baselines.get(RANDOM_INIT) if result else None
    return None if result is None or untrained is None else result.test.top1 - untrained.top1
