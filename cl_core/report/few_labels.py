"""Did pretraining help with few labels? The best use at each budget against what the same labels give without it.

All sides are judged on the same test images and the same draws of labels; p values are corrected over all comparisons
of a group by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cl_core.measures.labels_saved import Needed, labels_saved
from cl_core.measures.paired import Difference, holm
from cl_core.report.answers import Answers, NotComparableError, difference, few_label_answers
from cl_core.report.budgets import in_words, listed
from cl_core.report.comparison import LEVEL
from cl_core.report.groups import Group, percent
from cl_core.report.records import BudgetResult

#: competitor -> what a sentence calls it
REFERENCES = {
    "random_init": "the untrained encoder",
    "raw_pixels": "raw pixels",
    "supervised": "supervised training",
}
#: the same as the heading of a column
HEADINGS = {"random_init": "untrained", "raw_pixels": "raw pixels", "supervised": "supervised"}
#: those whose labels are counted
_COUNTED = {"supervised": "supervised training", "random_init": "a probe of the untrained encoder"}

State = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Contest:
    """One side against another with the same labels. accuracy: of our side. p: corrected."""

    budget: str
    reference: str
    accuracy: float
    difference: Difference
    p: float

    @property
    def state(self) -> State:
        """ "undecided" where chance alone could show such a difference."""
        if self.p >= LEVEL or self.difference.value == 0:
            return "undecided"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True)
class Saved:
    """Labels that a reference needs for the accuracy that we reach with `labels`."""

    budget: str
    labels: int
    accuracy: float
    reference: str
    needed: Needed

    @property
    def text(self) -> str:
        """ "38 labels (30 to 47)", "more than 1,271 labels", "at most 10 labels"."""
        needed, ends = self.needed, f" ({_range(self.needed)})"
        if math.isinf(needed.labels):
            return f"more than {needed.most:,} labels" + ("" if math.isinf(needed.low) else ends)
        if needed.labels <= needed.least:
            return f"at most {needed.least:,} labels" + ("" if needed.high <= needed.least else ends)
        return f"{round(needed.labels):,} labels{ends}"


@dataclass(frozen=True)
class FewLabels:
    """What few labels show of a group. against: the yardsticks at every budget. uses: fine-tuned over frozen.

    problem: why nothing is said, "" where something is.
    """

    against: tuple[Contest, ...] = ()
    uses: tuple[Contest, ...] = ()
    saved: tuple[Saved, ...] = ()
    problem: str = ""

    @property
    def budgets(self) -> list[str]:
        """Names of the budgets, the fewest labels first."""
        return list(dict.fromkeys(contest.budget for contest in self.against))

    def at(self, budget: str) -> list[Contest]:
        """What the yardsticks say at a budget."""
        return [contest for contest in self.against if contest.budget == budget]


def few_labels(group: Group) -> FewLabels:
    """All comparisons of a group; empty where it was not judged on few labels."""
    budgets = [name for name in group.budgets if all(_is_judged(result) for result in group.at(name))]
    if not budgets:
        return FewLabels()
    try:
        sides = {budget: _sides(group, budget) for budget in budgets}
        against = [
            _contest(budget, name, side["best"], side[name])
            for budget, side in sides.items()
            for name in REFERENCES
            if name in side
        ]
        uses = [
            _contest(budget, "frozen", side["fine_tuned"], side["frozen"])
            for budget, side in sides.items()
            if side.keys() >= {"fine_tuned", "frozen"}
        ]
        saved = _saved(group, sides)
    except NotComparableError as error:
        return FewLabels(problem=str(error))
    return FewLabels(_corrected(against), _corrected(uses), tuple(saved))


def conclusion(found: FewLabels) -> str:
    """Where pretraining helped, where it is beaten and where nothing is shown: a sentence without full stop."""
    alike: dict[tuple[State, tuple[str, ...]], list[str]] = {}  # budgets that come to the same
    for budget in found.budgets:
        alike.setdefault(_outcome(found.at(budget)), []).append(budget)
    order: tuple[State, ...] = ("better", "worse", "undecided")
    outcomes = sorted(alike.items(), key=lambda item: order.index(item[0][0]))
    return "; ".join(_phrase(state, names, budgets) for (state, names), budgets in outcomes)


def _phrase(state: State, names: Sequence[str], budgets: Sequence[str]) -> str:
    who, where = listed([REFERENCES[name] for name in names]), in_words(budgets)
    if state == "better":
        return f"pretraining helped with {where}, against {who}"
    if state == "worse":
        return f"it did not pay with {where}, where {who} {'does' if len(names) == 1 else 'do'} better"
    return f"no difference shown from {who} with {where}"


def saved_sentence(group: Group, found: FewLabels) -> str:
    """How many labels pretraining saved with the fewest labels, or "" where no curve was measured."""
    if not found.saved:
        return ""
    budget = found.saved[0].budget
    first = [saved for saved in found.saved if saved.budget == budget]
    needs = listed([f"{_COUNTED[saved.reference]} needs {saved.text}" for saved in first])
    one = first[0]
    return f"With {one.labels:,} labels {group.label} reaches {percent(one.accuracy)} %, for which {needs}"


def _is_judged(result: BudgetResult) -> bool:
    """Whether labels of its own were used, by us."""
    return result.same_as is None and "best" in result.competitors


def _sides(group: Group, budget: str) -> dict[str, Answers]:
    results = group.at(budget)
    names = [name for name in results[0].competitors if all(name in result.competitors for result in results)]
    judged = [experiment for experiment in group.experiments if experiment.finetune.result]
    return {name: few_label_answers(judged, name, budget) for name in names}


def _contest(budget: str, reference: str, ours: Answers, other: Answers) -> Contest:
    found = difference(ours, other)
    return Contest(budget, reference, ours.runs.accuracy, found, found.p)


def _corrected(contests: Sequence[Contest]) -> tuple[Contest, ...]:
    p_values = holm([contest.difference.p for contest in contests])
    return tuple(replace(contest, p=p) for contest, p in zip(contests, p_values, strict=True))


def _outcome(contests: Sequence[Contest]) -> tuple[State, tuple[str, ...]]:
    """What a budget comes to, and by whom: those that win, else those that are not beaten, else all, who are."""
    losses = tuple(contest.reference for contest in contests if contest.state == "worse")
    if losses:
        return "worse", losses
    open_ones = tuple(contest.reference for contest in contests if contest.state == "undecided")
    if open_ones:
        return "undecided", open_ones
    return "better", tuple(contest.reference for contest in contests)


def _saved(group: Group, sides: dict[str, dict[str, Answers]]) -> list[Saved]:
    counts = {budget: group.at(budget)[0].labels_trained for budget in sides}
    found = []
    for budget, side in sides.items():
        for reference in _COUNTED:
            curve = [(counts[name], other[reference].runs) for name, other in sides.items() if reference in other]
            if curve:
                ours = side["best"].runs
                needed = labels_saved(ours, curve)
                found.append(Saved(budget, counts[budget], ours.accuracy, reference, needed))
    return found


def _range(needed: Needed) -> str:
    low = f"{round(needed.low):,}" if math.isfinite(needed.low) else f"more than {needed.most:,}"
    high = f"{round(needed.high):,}" if math.isfinite(needed.high) else f"more than {needed.most:,}"
    return f"{low} to {high}"
