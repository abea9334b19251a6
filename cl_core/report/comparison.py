"""Experiments against each other on the same test images: linear probe, kNN and every label budget.

Reads results and trains nothing. Figures of different protocols are refused by name unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cl_core.errors import ConfigError, did_you_mean
from cl_core.measures.paired import Difference, holm
from cl_core.report.answers import (
    LINEAR_FIGURES,
    Answers,
    NotComparableError,
    difference,
    few_label_answers,
    linear_answers,
)
from cl_core.report.budgets import OURS
from cl_core.report.collect import Experiment
from cl_core.report.groups import Group

LEVEL = 0.05  #: a p value below it tells two sides apart
FEW_LABELS = "few_labels"

Pairs = Sequence[tuple[Experiment, Experiment]]


@dataclass(frozen=True)
class Figure:
    """What is compared: "linear", "knn", or a use of few labels at a budget."""

    name: str
    use: str = ""
    budget: str = ""


@dataclass(frozen=True)
class Comparison:
    """One figure of two sides, shares in [0, 1]. p: corrected over all comparisons that were asked for together."""

    ours: str
    other: str
    figure: Figure
    value: float
    other_value: float
    difference: Difference
    p: float

    @property
    def is_told_apart(self) -> bool:
        """Whether chance alone is not likely to show such a difference."""
        return self.p < LEVEL

    def as_json(self) -> dict[str, Any]:
        """Keys of `contrast compare --json`."""
        found = self.difference
        return {
            "a": self.ours,
            "b": self.other,
            "figure": self.figure.name,
            "use": self.figure.use or None,
            "budget": self.figure.budget or None,
            "value_a": self.value,
            "value_b": self.other_value,
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "p_holm": self.p,
            "test": found.test,
        }


@dataclass(frozen=True)
class Comparisons:
    """All that could be compared, and a sentence for each figure that could not."""

    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]


def find(names: Sequence[str], groups: Sequence[Group]) -> list[Group]:
    """The groups of these names, which are those of experiments or what a group is called.

    All seeds of an experiment take part, but where two names are of one group each stands for its own run. Raises
    NotComparableError for a name without results.
    """
    found = [_group(name, groups) for name in names]
    indices = [group.index for group in found]
    return [
        _alone(name, group) if indices.count(group.index) > 1 else group
        for name, group in zip(names, found, strict=True)
    ]


def compare(groups: Sequence[Group], *, across_protocols: bool = False) -> Comparisons:
    """The first group against each of the others; p values are corrected over all of them by Holm's method.

    Raises ConfigError where protocol ids differ, unless `across_protocols`.
    """
    first, *others = groups
    if not across_protocols:
        _require_same_protocols(first, others)
    rows: list[Comparison] = []
    notes: list[str] = []
    for other in others:
        pairs = paired(first, other)
        for figure in _figures(first, other, notes):
            try:
                rows.append(_comparison(figure, first, other, pairs))
            except NotComparableError as error:
                notes.append(f"{shown(figure)} of {first.label} and {other.label} is not compared: {error}")
    corrected = holm([row.difference.p for row in rows])
    return Comparisons(tuple(replace(row, p=p) for row, p in zip(rows, corrected, strict=True)), tuple(notes))


def shown(figure: Figure) -> str:
    """What a figure is called: "linear", "knn", "frozen probe, 4"."""
    return f"{OURS[figure.use]}, {figure.budget}" if figure.name == FEW_LABELS else figure.name


def paired(one: Group, other: Group) -> Pairs:
    """Runs of the same seed side by side; in their order where the sides share no seed."""
    others = {experiment.seed: experiment for experiment in other.experiments}
    shared = [(experiment, others[experiment.seed]) for experiment in one.experiments if experiment.seed in others]
    return shared or list(zip(one.experiments, other.experiments, strict=False))


def answers(figure: Figure, experiments: Sequence[Experiment]) -> Answers:
    """What these runs answered. Raises NotComparableError where that cannot be read."""
    if figure.name in LINEAR_FIGURES:
        return linear_answers(experiments, figure.name)
    return few_label_answers(experiments, figure.use, figure.budget)


def _comparison(figure: Figure, one: Group, other: Group, pairs: Pairs) -> Comparison:
    a, b = (answers(figure, [pair[side] for pair in pairs]) for side in (0, 1))
    found = difference(a, b)
    return Comparison(one.label, other.label, figure, a.runs.accuracy, b.runs.accuracy, found, found.p)


def _figures(one: Group, other: Group, notes: list[str]) -> Iterator[Figure]:
    """What both sides have; what only one has is noted."""
    for name in LINEAR_FIGURES:
        if one.linear and other.linear:
            yield Figure(name)
        elif one.linear or other.linear:
            notes.append(f"{name}: only one of {one.label} and {other.label} has it")
    for budget in dict.fromkeys([*one.budgets, *other.budgets]):
        counts = [sorted({result.labels_trained for result in group.at(budget)}) for group in (one, other)]
        if counts[0] != counts[1]:
            known = " and ".join(" or ".join(map(str, count)) or "none" for count in counts)
            notes.append(f"budget {budget}: {one.label} and {other.label} have seen {known} labels")
            continue
        for use in OURS:
            if one.few_labels(use, budget) and other.few_labels(use, budget):
                yield Figure(FEW_LABELS, use, budget)


def _require_same_protocols(first: Group, others: Sequence[Group]) -> None:
    problems = [
        f"{first.label} and {other.label} were judged by different protocols, {a} and {b}; run both with the same "
        "settings of evaluation, or add --across-protocols"
        for other in others
        for a, b in zip(first.protocols, other.protocols, strict=True)
        if a is not None and b is not None and a != b
    ]
    if problems:
        raise ConfigError(problems)


def _group(name: str, groups: Sequence[Group]) -> Group:
    for group in groups:
        if group.label == name or any(name in (run.name, run.file) for run in group.experiments):
            return group
    known = [experiment.name for group in groups for experiment in group.experiments]
    raise NotComparableError(f"{name} has no results yet{did_you_mean(name, known)}; run `contrast run {name}`")


def _alone(name: str, group: Group) -> Group:
    named = [run for run in group.experiments if name in (run.name, run.file)] or list(group.experiments)
    return Group(group.index, tuple(named), name)
