"""Label budgets and who competes at them: their names in files, and what a reader is told they are.

A budget is called by labels per class ("4"), by its share of the labels ("0.01") or "all".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cl_core.report.records import BudgetResult

#: competitor in finetune/metrics.json -> how the labels are used; ours first, the frozen probe before the others
OURS = {"frozen": "frozen probe", "fine_tuned": "fine-tuned", "best": "best of both"}
#: competitor -> what it is called
YARDSTICKS = {
    "random_init": "random init",
    "raw_pixels": "raw pixels",
    "supervised": "supervised, same labels",
}
#: how a yardstick uses the labels
YARDSTICK_USES = {"random_init": "frozen probe", "raw_pixels": "probe", "supervised": "from scratch"}


@dataclass(frozen=True)
class Budget:
    """A column: name in files, title for readers, labels: what is trained on, and what is used to choose beside it."""

    name: str
    title: str
    labels: str

    @classmethod
    def of(cls, name: str, results: Sequence[BudgetResult]) -> Budget:
        """results: of every run that has the budget."""
        trained = _counts(result.labels_trained for result in results)
        chosen = _counts(result.labels_chosen for result in results)
        same = next((result.same_as for result in results if result.same_as is not None), None)
        text = f"{trained} labels"
        text += "" if chosen == "0" else f", {chosen} to choose"
        return cls(name, budget_title(name), text + (f", as at {budget_title(same)}" if same else ""))


def budget_title(name: str) -> str:
    """ "4" -> "4 per class", "0.01" -> "1 %", "all" -> "all"."""
    if name == "all":
        return name
    return f"{100 * float(name):g} %" if "." in name else f"{name} per class"


def in_words(names: Sequence[str]) -> str:
    """["1", "4", "all"] -> "1 and 4 labels per class and all labels"."""
    counts = [name for name in names if name != "all" and "." not in name]
    shares = [budget_title(name) for name in names if "." in name]
    parts = []
    if counts:
        parts.append(f"{listed(counts)} label{'' if counts == ['1'] else 's'} per class")
    if shares:
        parts.append(f"{listed(shares)} of the labels")
    if "all" in names:
        parts.append("all labels")
    return listed(parts)


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _counts(numbers: Iterable[int]) -> str:
    return " or ".join(f"{count:,}" for count in sorted(set(numbers)))
