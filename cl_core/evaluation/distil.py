"""Distillation on unlabelled images, protocol distil/simclr-v2 (Chen et al. 2020, arXiv:2006.10029, section 2).

A student learns the answers that a fine-tuned classifier, its teacher, gives for all training images, with or without
labels; part of the loss may be cross-entropy on the labels that the teacher was fine-tuned with. Both see the same crop
and flip of an image. The teacher is held in eval mode and must be bit for bit the same afterwards; the student starts
from untrained weights and is optimised as fine-tuning is. It reads the test split once, at the end.

Like fine-tuning this is short beside pretraining, so nothing is saved midway: a run that is stopped starts afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_core.config import DistilConfig, OptimizerConfig
from cl_core.data.sampling import mix
from cl_core.data.store import Split
from cl_core.errors import CollapseError
from cl_core.evaluation.classifier import Batches, Classifier, judged, sgd
from cl_core.evaluation.draws import Drawing
from cl_core.evaluation.features import frozen, save_tensors
from cl_core.evaluation.linear import Report
from cl_core.measures.metrics import accuracy_figures, topk_accuracy
from cl_core.training.outputs import write_weights
from cl_core.types import Augmentation

PROTOCOL = "distil/simclr-v2"
_STREAM, _LABELLED_STREAM = 0xD157, 0x1ABE  # keep order and crops apart from those of pretraining and of each other

Build = Callable[[], Classifier]


@dataclass(frozen=True, kw_only=True)
class DistilResult:
    """metrics: as written to metrics.json, or {"skipped": reason}. student: in eval mode, None where skipped."""

    metrics: dict[str, Any]
    student: Classifier | None = None

    def save_student(self, path: Path) -> None:
        """Write the student's weights as safetensors; a file without tensors where there is none."""
        if self.student is None:
            save_tensors({}, path)
        else:
            write_weights(self.student, path)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over images of - sum_y P_T(y|x) log P_S(y|x), P being the softmax of logits / temperature.

    student, teacher: (N, K) logits. Returns a scalar: log K where both are uniform, and at least the entropy of the
    teacher's answers, which it has where the student gives the same.
    """
    return cross_entropy(student / temperature, (teacher / temperature).softmax(dim=1))


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Who is taught by whom, and on what. every: all training images. labelled: those of the teacher's subset."""

    student: Classifier
    teacher: Classifier
    every: Batches
    labelled: Batches
    settings: DistilConfig

    def loss_at(self, step: int) -> Tensor:
        """The two parts of a step's loss by their shares; a part without a share is not computed."""
        share, parts = self.settings.labelled_share, []
        if share < 1:
            images, _ = self.every.at(step)
            with torch.no_grad():
                answers = self.teacher(images)
            loss = distillation_loss(self.student(images), answers, self.settings.temperature)
            parts.append((1 - share) * loss)
        if share > 0:
            images, labels = self.labelled.at(step)
            parts.append(share * cross_entropy(self.student(images), labels))
        return torch.stack(parts).sum()


def distil(
    build_teacher: Build,
    build_student: Build,
    split: Callable[[str], Split],
    finetuned: Mapping[str, Any],
    *,
    augment: Augmentation,
    settings: DistilConfig,
    seed: int,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> DistilResult:
    """Teach a student and judge it, beside its teacher and supervised training on the teacher's labels.

    build_teacher: gives the best classifier of `settings.budget` labels. build_student: an untrained one. finetuned:
    metrics of fine-tuning, which hold that budget or the reason why there is no teacher.
    augment: the chain for training images. batch_size: images per forward pass when judging.
    The metrics are {"skipped": reason} where fine-tuning was. Raises CollapseError where training diverges, DataError
    where the teacher does not stay as it is.
    """
    if "skipped" in finetuned:
        return DistilResult(metrics={"skipped": finetuned["skipped"]})
    device, images, budget = torch.device(device), split("train"), str(settings.budget)
    drawing = Drawing(images.keys, images.labels, images.groups)

    def batches(rows: np.ndarray, stream: int) -> Batches:
        size = min(settings.batch_size, len(rows))
        return Batches(split=images, rows=rows, size=size, augment=augment, seed=mix(seed, stream), device=device)

    lesson = Lesson(
        student=build_student().to(device),
        teacher=build_teacher().to(device),
        every=batches(np.arange(len(images)), _STREAM),
        labelled=batches(drawing.of(settings.budget), _LABELLED_STREAM),
        settings=settings,
    )
    details = _teach(lesson, report)
    judge = partial(judged, [lesson.student], batch_size=batch_size, device=device)
    (scores,), labels = judge(split("validation"))
    if not bool(torch.isfinite(scores).all()):
        raise CollapseError(f"distillation diverged at a peak learning rate of {details['peak_lr']:g}; lower distil.lr")
    details["validation_top1"] = topk_accuracy(scores, labels)
    report(f"distil: student {details['validation_top1']:.1%} on validation")
    (scores,), labels = judge(split("test"))
    taught = finetuned["budgets"][budget]
    metrics = {
        "protocol": PROTOCOL,
        "budget": budget,
        "n_labels": taught["labels_trained"],
        "n_images": len(images),
        "student": accuracy_figures(scores, labels),
        "teacher": _first_draw(taught, "best"),
        "supervised_same_labels": _first_draw(taught, "supervised"),
        "details": details,
    }
    return DistilResult(metrics=metrics, student=lesson.student)


def _first_draw(taught: Mapping[str, Any], competitor: str) -> dict[str, Any]:
    """Of the draw that the teacher learnt from."""
    figures = taught["competitors"][competitor]
    return {"top1": figures["draws"][0]["top1"], "top1_ci95": figures["top1_ci95"]}


def _teach(lesson: Lesson, report: Report) -> dict[str, Any]:
    """Train the student; returns the peak learning rate and the number of steps."""
    settings, every = lesson.settings, lesson.every
    per_epoch = len(every.rows) // every.size

    def tell(step: int, loss: Tensor) -> None:
        if (step + 1) % per_epoch == 0:
            report(f"distil: epoch {(step + 1) // per_epoch} of {settings.epochs}, loss {loss.item():.3f}")

    peak_lr, steps = OptimizerConfig(lr=settings.lr).peak_lr(settings.batch_size), settings.epochs * per_epoch
    training = sgd(lesson.student, peak_lr=peak_lr, steps=steps, seed=every.seed, device=every.device)
    with frozen(lesson.teacher, "the student learned from it"):
        for step in range(steps):
            tell(step, training.step(step, lesson.loss_at))
    return {"peak_lr": peak_lr, "steps": steps}
