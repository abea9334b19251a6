"""The settings a new project starts with, each with its reason: a measured row, fitted to folder, answers and time.

Decides; measures nothing and writes nothing. The numbers themselves are in `measured`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.project import measured
from pipelines.project.chain import views_for
from pipelines.project.look import Images
from pipelines.project.machine import Machine
from pipelines.project.measured import Row, Spec
from pipelines.project.questions import Answers
from pipelines.project.speed import Speed, online_seconds


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is written into a new project.

    views: {"recipe": Spec} or {"chains": {"augment": [Spec, ...]}}. lr: at a batch of 256. finetune, knn: as their
    sections of params.yaml. why: {setting: its reason}. advice: what to say beside, a line each.
    """

    row: str
    size: int
    layout: str
    encoder: Spec
    method: Spec
    loss: Spec | None
    views: Mapping[str, Any]
    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    steps_per_epoch: int
    epochs: int
    warmup: int
    knn_every: int
    k: int
    finetune: Mapping[str, Any]
    jobs: int
    why: Mapping[str, str]
    advice: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """Optimiser steps of the whole pretraining."""
        return self.epochs * self.steps_per_epoch

    @property
    def images_seen(self) -> int:
        """Training images of the whole pretraining, with repetition."""
        return self.updates * self.batch


def choose(
    images: Images, machine: Machine, answers: Answers, minutes: float, speed: Speed, *, batch: int | None = None
) -> Start:
    """Settings for these images that train for about so many minutes at this speed. batch: settled before."""
    row = measured.row(images, machine)
    passes = partial(_passes, images=images, seconds=60 * minutes, speed=speed)
    batch = batch or _batch(row, images.train, passes)
    steps, epochs = passes(batch)
    views, views_why = views_for(row, images, answers)
    how = "measured" if speed.measured else "assumed"
    return Start(
        row=row.name,
        size=row.size,
        layout="encoded" if images.count >= measured.MANY or images.is_elongated else "decoded",
        encoder=row.encoder,
        method=row.method,
        loss=row.loss,
        views=views,
        optimizer=row.optimizer,
        lr=row.rate,
        weight_decay=row.weight_decay,
        batch=batch,
        steps_per_epoch=steps,
        epochs=epochs,
        warmup=max(1, round(measured.WARMUP * epochs)),
        knn_every=max(1, math.ceil(epochs / measured.EVALUATIONS)),
        k=_neighbours(images),
        finetune=_finetune(row, images, machine, answers),
        jobs=max(1, machine.gpus),
        why={
            "size": _size_why(row, images),
            "splits": _splits_why(images),
            "layout": _layout_why(images),
            "encoder": row.encoder_why,
            "views": views_why,
            "batch": f"of {images.train:,} training images; small enough for {epochs * steps:,} updates",
            "epochs": _epochs_why(epochs, steps, minutes, f"{machine}, {speed.training:.0f} images/s {how}"),
            "jobs": "one per GPU" if machine.gpus else "one uses all cores, several share them",
        },
        advice=tuple(_advice(images, minutes, 60 * minutes * speed.training)),
    )


def _batch(row: Row, train: int, passes: Callable[[int], tuple[int, int]]) -> int:
    """The largest power of two that the row and the number of images allow, at least 2, halved for want of updates."""
    most = min(row.batch_for(train), max(2, train * 3 // 4))  # some images may turn out unreadable
    batch = 1 << (most.bit_length() - 1)
    while batch > measured.LEAST_BATCH and math.prod(passes(batch)) < measured.LEAST_UPDATES:
        batch //= 2
    return batch


def _passes(batch: int, *, images: Images, seconds: float, speed: Speed) -> tuple[int, int]:
    """Steps per epoch and the epochs that fit into the seconds, which `duration` counts the same way."""
    steps = max(1, images.train // batch)
    epoch, evaluation = steps * batch / speed.training, online_seconds(images, speed)
    seconds -= 2 * evaluation  # the first and the last
    affordable = seconds / (epoch + evaluation)
    if affordable > measured.EVALUATIONS:  # then not every epoch is evaluated
        affordable = max(measured.EVALUATIONS, (seconds - measured.EVALUATIONS * evaluation) / epoch)
    return steps, min(max(1, int(affordable)), _most_epochs(steps))


def _most_epochs(steps: int) -> int:
    return max(measured.MOST_EPOCHS, math.ceil(measured.ENOUGH_UPDATES / steps))


def _epochs_why(epochs: int, steps: int, minutes: float, machine: str) -> str:
    if epochs == _most_epochs(steps):
        return f"as many as so few images are worth; {minutes:g} minutes would allow more ({machine})"
    return f"what {minutes:g} minutes allow here ({machine})"


def _neighbours(images: Images) -> int:
    """A sixth of the images that a class has, 200 at most as in the protocol."""
    return max(1, min(200, images.train // (6 * max(1, images.classes))))


def _finetune(row: Row, images: Images, machine: Machine, answers: Answers) -> dict[str, Any]:
    """Budgets below what there is, views that keep the meaning; on a CPU one rate, and lengths that it can afford."""
    average = images.train / max(1, images.classes)
    few = [count for count in (1, 4, 16, 64) if 2 * count <= average]
    flip = 0.5 if answers.mirror.holds else 0.0
    rates = ([3e-4, 1e-3, 3e-3], [1e-3, 3e-3, 1e-2]) if machine.gpus else ([1e-3], [3e-3])
    return {
        "per_class": [*(few if machine.gpus else few[:3]), "all"],
        "draws": 5 if machine.gpus else 3,
        "recipe": {"name": "crop-flip", "min_scale": row.scale, "flip": flip},
        "lr": rates[0],
        "supervised_lr": rates[1],
        "max_steps": 2000 if machine.gpus else 400,
    }


def _size_why(row: Row, images: Images) -> str:
    seen = f"shorter side of your images: {images.side}, the median"
    if row.view is None:
        return f"{seen}; twice the size costs four times the time"
    return f"{seen}; training sees crops of {row.view}, at whose cost the evaluation sees {row.size}"


def _splits_why(images: Images) -> str:
    if images.has_splits:
        return "your folders' own splits come first"
    counted = isinstance(images.rule.validation, int)
    return "numbers of images, since there are few" if counted else "your folders have no splits"


def _layout_why(images: Images) -> str:
    if images.count >= measured.MANY:
        return "JPEG files in place of pixels: they take less room"
    if images.is_elongated:
        return "whole images, so that crops see all of them; the evaluation looks at the square in the middle"
    return "squares of pixels, the fastest to train on; encoded keeps whole images"


def _advice(images: Images, minutes: float, affordable: float) -> list[str]:
    if images.train < measured.FEW:
        return [
            f"with {images.train:,} training images pretraining from nothing is unlikely to help. What would: many "
            f"more images, labelled or not, or weights to start from, such as "
            f"`encoder: {{name: timm, model: resnet18, pretrained: true}}`"
        ]
    if affordable < images.train:
        return [
            f"one pass over {images.train:,} training images takes longer than {minutes:g} minutes; "
            f"`subset: {int(affordable)}` under data in params.yaml would keep to them"
        ]
    return []
