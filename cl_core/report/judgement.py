"""All that is said of a group of runs in the end: labels saved, what the evidence supports, what to do next.

The one wording of report, `contrast run` and `contrast verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_core.report.advice import advice
from cl_core.report.few_labels import FewLabels, conclusion, few_labels, saved_sentence
from cl_core.report.groups import Group
from cl_core.report.verdict import Verdict, verdict


@dataclass(frozen=True)
class Judgement:
    """Sentences without full stop. saved: labels saved with the fewest labels, "" where unknown. few: the evidence.

    conclusion: with few labels, "" where not judged. features: linear probe and kNN against random init.
    """

    group: Group
    saved: str
    conclusion: str
    features: Verdict
    next_steps: tuple[str, ...]
    few: FewLabels

    @property
    def lines(self) -> list[str]:
        """What a terminal prints before what to do next."""
        lines = [self.saved] if self.saved else []
        if self.conclusion:
            lines.append(f"{self.group.label}: {self.conclusion}")
        if self.features.says_something:
            lines.append(f"{self.group.label} {self.features.text}")
        if self.few.problem:
            lines.append(f"{self.group.label}: few labels are not judged: {self.few.problem}")
        return lines


def judgement(group: Group) -> Judgement:
    """Everything of a group; reads the predictions of its runs. Raises DataError for a damaged card."""
    few = few_labels(group)
    features = verdict(group)
    steps = () if group.first.facts.yardstick else tuple(advice(group, few))
    return Judgement(group, saved_sentence(group, few), conclusion(few), features, steps, few)
