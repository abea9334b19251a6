"""What distillation gave: a student beside its teacher and beside supervised training on the teacher's labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cl_core.report.collect import Experiment
from cl_core.report.groups import NONE, Group, Measured, percent, share_name
from cl_core.report.records import DistilResult, Spec


@dataclass(frozen=True)
class Distillation:
    """One row, a mean over seeds. encoder: the student's, with its options."""

    group: Group
    encoder: str
    protocol: str
    fraction: float
    n_labels: int
    n_images: int
    student: Measured
    teacher: Measured
    supervised: Measured

    @property
    def text(self) -> str:
        """One sentence for a terminal."""
        return (
            f"distilled on {self.n_images:,} images from {share_name(self.fraction)} of the labels: student "
            f"{self.student}, teacher {percent(self.teacher.mean)}, supervised on the same labels "
            f"{percent(self.supervised.mean)}"
        )


def distillations(groups: Iterable[Group]) -> list[Distillation]:
    """One entry per group and settings of distillation; members that were not distilled are left out."""
    return [_distillation(part) for group in groups for part in _parts(group)]


def _parts(group: Group) -> list[Group]:
    """The members with a result, those of equal settings together."""
    alike: dict[str, list[Experiment]] = {}
    for experiment in group.experiments:
        if experiment.distil.result:
            config = _config(experiment)
            alike.setdefault(str([config.get("distil"), config.get("student")]), []).append(experiment)
    whole = len(group.experiments)
    return [
        group if len(some) == whole else Group(group.index, tuple(some), ", ".join(member.name for member in some))
        for some in alike.values()
    ]


def _distillation(group: Group) -> Distillation:
    results = [e.distil.result for e in group.experiments if e.distil.result]
    student, first = _config(group.first).get("student"), results[0]
    return Distillation(
        group=group,
        encoder=Spec.model_validate(student).title if student else NONE,
        protocol=first.protocol,
        fraction=first.fraction,
        n_labels=first.n_labels,
        n_images=first.n_images,
        student=_over_seeds(results, "student"),
        teacher=_over_seeds(results, "teacher"),
        supervised=_over_seeds(results, "supervised_same_labels"),
    )


def _config(experiment: Experiment) -> dict[str, Any]:
    return experiment.resolved["distil"].config if "distil" in experiment.resolved else {}


def _over_seeds(results: list[DistilResult], name: str) -> Measured:
    found = [getattr(result, name) for result in results]
    return Measured(tuple(f.top1 for f in found), found[0].top1_ci95 if len(found) == 1 else None)
