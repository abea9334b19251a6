"""What the methods' own questions found, one entry per group: the worst answer of its seeds, and how many gave it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cl_core.report.collect import Experiment
from cl_core.report.groups import Group
from cl_core.report.records import Finding

WORST_FIRST = ("warning", "fine", "skipped")


@dataclass(frozen=True)
class Diagnosis:
    """The findings of a group. label: of the group, or of those of its runs that were diagnosed.

    images: that were judged. findings: [(of one of the runs, how many seeds have it)].
    """

    label: str
    images: int
    findings: tuple[tuple[Finding, str], ...]


def diagnoses(groups: Iterable[Group]) -> list[Diagnosis]:
    """One entry per group with a run that was diagnosed, the questions in the order of its first one."""
    return [_diagnosis(group, runs) for group in groups if (runs := [e for e in group.experiments if e.diagnosed])]


def _diagnosis(group: Group, runs: list[Experiment]) -> Diagnosis:
    answers: dict[str, list[tuple[Finding, Experiment]]] = {}
    for run in runs:
        for finding in run.diagnosed.findings if run.diagnosed else []:
            answers.setdefault(finding.name, []).append((finding, run))
    images = runs[0].diagnosed.images["held_out"] if runs[0].diagnosed else 0
    label = group.label if len(runs) == len(group.experiments) else ", ".join(run.name for run in runs)
    return Diagnosis(label, images, tuple(_worst(found) for found in answers.values()))


def _worst(answers: list[tuple[Finding, Experiment]]) -> tuple[Finding, str]:
    finding, run = min(answers, key=lambda answer: WORST_FIRST.index(answer[0].state))
    if len(answers) == 1:
        return finding, ""
    alike = sum(other.state == finding.state for other, _ in answers)
    return finding, f"in {alike} of {len(answers)} seeds; these figures are of seed {run.seed}"
