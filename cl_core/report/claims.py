"""Sentences of papers held against the results: is one experiment better than another, and could that be chance?

Reads results and trains nothing. Linear probe, kNN and few labels are compared image by image over all seeds that both
sides have; a logged figure of a single run has no test.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cl_core.config import ClaimConfig
from cl_core.errors import did_you_mean
from cl_core.report.answers import NotComparableError, difference
from cl_core.report.collect import Experiment
from cl_core.report.comparison import FEW_LABELS, LEVEL, Figure, answers, find, paired
from cl_core.report.groups import MINUS, Group, points

LAST_PART = 10  #: of what is logged only the last tenth counts
PROTOCOL_PLACES = {"linear": 0, "knn": 1, FEW_LABELS: 2}  #: of a figure in Group.protocols

State = Literal["holds", "does not hold", "not told apart", "not checked"]


@dataclass(frozen=True)
class Outcome:
    """A claim with what became of it.

    difference: of the better over the worse one, a share for accuracies. p: two-sided, None where there is no test.
    how: what was compared, or why nothing was.
    """

    claim: ClaimConfig
    state: State
    how: str
    difference: float | None = None
    p: float | None = None

    @property
    def shown_difference(self) -> str:
        """In percentage points for accuracies, as it is for logged figures, "" where there is none."""
        if self.difference is None:
            return ""
        if self.claim.kind == "metrics":
            return f"{self.difference:+.3g}".replace("-", MINUS)
        return points(self.difference)

    @property
    def shown_p(self) -> str:
        """ "0.012", "< 0.001", or "" where there is none."""
        return "" if self.p is None else "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"


@dataclass(frozen=True)
class Compared:
    """Difference of two experiments, its p value or None, and how that came about."""

    difference: float
    p: float | None
    how: str


def judge(claims: Sequence[ClaimConfig], groups: Sequence[Group]) -> list[Outcome]:
    """Every claim with its outcome, in order. Experiments without the figure give "not checked" and a reason."""
    return [_judged(claim, groups) for claim in claims]


def _judged(claim: ClaimConfig, groups: Sequence[Group]) -> Outcome:
    try:
        better, worse = find([claim.better, claim.worse], groups)
        compare = _metrics if claim.kind == "metrics" else _answered
        found = compare(claim, better, worse)
    except NotComparableError as error:
        return Outcome(claim, "not checked", str(error))
    return Outcome(claim, _state(found), found.how, found.difference, found.p)


def _state(found: Compared) -> State:
    if found.difference == 0 or (found.p is not None and found.p >= LEVEL):
        return "not told apart"
    return "holds" if found.difference > 0 else "does not hold"


def _answered(claim: ClaimConfig, better: Group, worse: Group) -> Compared:
    """Image by image, over all seeds that both sides have."""
    figure = Figure(FEW_LABELS, "best", claim.argument) if claim.kind == FEW_LABELS else Figure(claim.kind)
    for group in (better, worse):
        _require_result(group, figure)
    place = PROTOCOL_PLACES[figure.name]
    _same_protocol(str(better.protocols[place]), str(worse.protocols[place]))
    pairs = paired(better, worse)
    found = difference(*(answers(figure, [pair[side] for pair in pairs]) for side in (0, 1)))
    return Compared(found.value, found.p, found.test)


def _require_result(group: Group, figure: Figure) -> None:
    """Raises NotComparableError where the group has no such result."""
    experiment = group.first
    if figure.name != FEW_LABELS:
        if experiment.linear.result is None:
            raise NotComparableError(_no_result(experiment, "linear probe and kNN"))
        return
    result = experiment.finetune.result
    if result is None:
        raise NotComparableError(_no_result(experiment, "few labels"))
    if figure.budget not in result.budgets:
        raise NotComparableError(
            f"{experiment.name} was not judged with the budget {figure.budget}, only with {', '.join(result.budgets)}"
        )


def _paired_t(differences: Sequence[float]) -> float:
    from scipy.stats import ttest_1samp

    if len(set(differences)) == 1:  # no spread at all: the statistic would be 0 / 0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(ttest_1samp(differences, 0.0).pvalue)


def _metrics(claim: ClaimConfig, better: Group, worse: Group) -> Compared:
    """A logged figure: Student's paired t test over seeds, or the sign alone for one run each."""
    pairs = paired(better, worse)
    differences = [_logged(one, claim.argument) - _logged(other, claim.argument) for one, other in pairs]
    if len(pairs) == 1:
        return Compared(differences[0], None, "last tenth of one run each, sign only")
    how = f"last tenth, paired t test over {len(pairs)} seeds"
    return Compared(statistics.fmean(differences), _paired_t(differences), how)


def _logged(experiment: Experiment, name: str) -> float:
    """Mean of a logged figure over the last tenth of the logged steps that have it."""
    values = [value for value in experiment.curves.get(name, []) if value is not None]
    if not values:
        known = [column for column in experiment.curves if column not in ("step", "epoch")]
        hint = did_you_mean(name, known)
        raise NotComparableError(f"{experiment.name} logs no {name!r}{hint}; logged: {', '.join(known) or 'nothing'}")
    return statistics.fmean(values[-max(1, len(values) // LAST_PART) :])


def _same_protocol(one: str, other: str) -> None:
    if one != other:
        raise NotComparableError(f"they were judged by different protocols, {one} and {other}")


def _no_result(experiment: Experiment, what: str) -> str:
    reasons = [*experiment.skipped.values(), f"run `{experiment.command}`"]
    return f"{experiment.name} has no result of {what}: {reasons[0]}"
