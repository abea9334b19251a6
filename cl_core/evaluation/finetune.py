"""Fine-tuning on few labels, protocol finetune/simclr-v1 (Chen et al. 2020, arXiv:2002.05709, appendix B.5).

The whole network, under a linear layer that starts at zero, is trained on nested class-balanced subsets of the labelled
training images, with crop and flip only (the chain is handed in; the optimiser is in `classifier`). It is held against
the same network trained from its random initial weights on the same labels, steps and grid, and against linear probes
on the same labels, of the pretrained network, frozen, and of the untrained one. Learning rates are chosen on validation
after the last step; each competitor then reads the test split once, for all its subsets together.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_core.config import FinetuneConfig, LinearConfig
from cl_core.data.files import write_json
from cl_core.data.sampling import mix
from cl_core.data.store import Split
from cl_core.errors import CollapseError
from cl_core.evaluation.classifier import Batches, Classifier, judged, train
from cl_core.evaluation.features import digests, extract
from cl_core.evaluation.linear import (
    EMPTY_TEST,
    Report,
    absent_classes,
    best_stage,
    fit_stages,
    reason_to_skip,
)
from cl_core.evaluation.linear import PROTOCOL as PROBE_PROTOCOL
from cl_core.evaluation.subsets import different_subsets, nested_subsets
from cl_core.evaluation.yardsticks import Figures, Yardsticks
from cl_core.measures.metrics import accuracy_figures, topk_accuracy
from cl_core.training.outputs import write_weights
from cl_core.types import Augmentation, FineTuneModel

PROTOCOL = "finetune/simclr-v1"
CARD = "classifiers.json"
_REFERENCE_BATCH = 256  # batch size for which the grid's learning rates are written
_STREAM = 0xF17E  # keeps order and crops apart from those of pretraining

Build = Callable[[], FineTuneModel]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all competitors share.

    split: "train" | "validation" | "test" -> images. subsets: {name of the fraction: (n,) rows of train}.
    """

    split: Callable[[str], Split]
    classes: Sequence[str]
    subsets: Mapping[str, np.ndarray]
    augment: Augmentation
    settings: FinetuneConfig
    linear: LinearConfig
    seed: int
    precision: Precision
    batch_size: int
    device: torch.device
    report: Report


@dataclass(frozen=True)
class Candidate:
    """A trained classifier and what learning rates compete by: validation accuracy, then, on a tie, the lower loss."""

    model: Classifier
    lr: float
    steps: int
    merit: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """metrics: as written to metrics.json, or {"skipped": reason}.

    classifiers: {fraction: the fine-tuned classifier, in eval mode}, {} where skipped. classes: their outputs' names.
    """

    metrics: Figures
    classes: tuple[str, ...] = ()
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)

    def save_classifiers(self, folder: Path) -> None:
        """Write <fraction>.safetensors for every fraction, and classifiers.json, the card that says what they are.

        The folder is made anew. Without classifiers the card holds the reason.
        """
        shutil.rmtree(folder, ignore_errors=True)  # those of an earlier run
        for fraction, classifier in self.classifiers.items():
            write_weights(classifier, folder / f"{fraction}.safetensors")
        write_json(folder / CARD, self._card())

    def _card(self) -> Figures:
        if not self.classifiers:
            return {**self.metrics, "classifiers": {}}
        counts = {fraction: result["n_labels"] for fraction, result in self.metrics["fractions"].items()}
        return {
            "what": "fine-tuned classifiers: RGB images in [0, 1] -> a logit per class, in the order of `classes`",
            "protocol": PROTOCOL,
            "fine_tuned": next(iter(self.classifiers.values())).model.name,
            "classes": list(self.classes),
            "classifiers": {
                fraction: {"file": f"{fraction}.safetensors", "n_labels": counts[fraction]}
                for fraction in self.classifiers
            },
        }


def finetune(
    build: Build,
    build_random: Build,
    split: Callable[[str], Split],
    classes: Sequence[str],
    *,
    augment: Augmentation,
    settings: FinetuneConfig,
    linear: LinearConfig,
    seed: int,
    yardsticks: Yardsticks,
    yardstick_key: Mapping[str, Any],
    precision: Precision = "fp32",
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> FinetuneResult:
    """Label-efficiency curve of a pretrained model, frozen and fine-tuned, its two yardsticks, and the classifiers.

    build, build_random: give a fresh pretrained and a fresh untrained model each time they are called. augment: the
    chain for training images. linear: settings of the linear probes. batch_size: images per forward pass when
    judging. yardstick_key: all that decides the yardsticks beside these settings (store digest, subset, encoder, input,
    chain, seed). Unlabelled images are left out.
    The metrics are {"skipped": reason} where there is nothing to learn or to judge. Raises CollapseError where
    training diverges at every learning rate of the grid.
    """
    labels = {name: torch.tensor(split(name).labels) for name in ("train", "validation", "test")}
    reason = reason_to_skip(labels["train"], labels["validation"])
    if not reason and not bool((labels["test"] >= 0).any()):
        reason = EMPTY_TEST
    if reason:
        return FinetuneResult(metrics={"skipped": reason})
    subsets = nested_subsets(split("train").keys, split("train").labels, settings.fractions)
    task = Task(
        split=split,
        classes=classes,
        subsets=different_subsets(subsets),
        augment=augment,
        settings=settings,
        linear=linear,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        device=torch.device(device),
        report=report,
    )
    frozen = _probed(task, build, "frozen")
    chosen = _chosen(task, build, "fine-tuned")
    beside = {"frozen": frozen, **_yardsticks(task, build_random, yardsticks, yardstick_key)}
    metrics = {"protocol": PROTOCOL, "fractions": _curve(subsets, _figures(task, chosen), beside)}
    return FinetuneResult(
        metrics=metrics | absent_classes(labels["train"], labels["test"], classes),
        classes=tuple(classes),
        classifiers={name: chosen[source].model for name, source in _sources(subsets).items()},
    )


def steps_for(examples: int, fraction: float, settings: FinetuneConfig) -> int:
    """Length of a run: settings.epochs, twice as many at 1 % and below (60 and 30 in SimCLR B.5), within bounds."""
    epochs = settings.epochs * (2 if fraction <= 0.01 else 1)
    steps = epochs * (examples // min(settings.batch_size, examples))
    return min(max(steps, settings.min_steps), settings.max_steps)


def _sources(subsets: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{fraction: the smallest one that selects the same labels}, which is the one that was trained on."""
    first = {len(rows): name for name, rows in reversed(list(subsets.items()))}
    return {name: first[len(rows)] for name, rows in subsets.items()}


def _curve(subsets: Mapping[str, np.ndarray], ours: Figures, beside: Mapping[str, Figures]) -> Figures:
    curve: Figures = {}
    for name, source in _sources(subsets).items():
        curve[name] = {
            "n_labels": len(subsets[name]),
            "top1": ours[source]["top1"],
            "top1_ci95": ours[source]["top1_ci95"],
            "balanced_top1": ours[source]["balanced_top1"],
        }
        curve[name] |= {competitor: figures[source]["top1"] for competitor, figures in beside.items()}
        curve[name] |= {"same_subset_as": source} if source != name else {}
        curve[name]["details"] = {"fine_tuned": ours[source]} | {
            kind: figures[source] for kind, figures in beside.items()
        }
    return curve


def _yardsticks(task: Task, build_random: Build, yardsticks: Yardsticks, key: Mapping[str, Any]) -> dict[str, Figures]:
    subsets = {name: len(rows) for name, rows in task.subsets.items()}
    shared = {"protocol": PROTOCOL, "key": dict(key), "subsets": subsets, "seed": task.seed}
    settings = task.settings.model_dump(mode="json", exclude={"fractions"})
    return {
        "supervised_same_labels": yardsticks.get(
            {
                "yardstick": "supervised_same_labels",
                **shared,
                "settings": settings,
                "precision": task.precision,
                "model": _beyond_the_encoder(build_random()),
            },
            lambda: _figures(task, _chosen(task, build_random, "supervised")),
        ),
        "random_init_probe": yardsticks.get(
            {
                "yardstick": "random_init_probe",
                **shared,
                "probe": PROBE_PROTOCOL,
                "linear": task.linear.model_dump(mode="json"),
            },
            lambda: _probed(task, build_random, "random-init probe"),
        ),
    }


def _beyond_the_encoder(model: FineTuneModel) -> Figures:
    """What an untrained model is beside its encoder: its name, and the initial weights of what it keeps of the head."""
    return {"name": model.name, "head": {} if model.head is None else digests(model.head)}


def _chosen(task: Task, build: Build, name: str) -> dict[str, Candidate]:
    """{fraction: candidate} of a model trained on every subset, each at its best learning rate."""
    return {fraction: _best_candidate(task, build, fraction, name) for fraction in task.subsets}


def _figures(task: Task, chosen: Mapping[str, Candidate]) -> Figures:
    """{fraction: figures} of the chosen candidates on the test split, which is read once for all of them."""
    models = [candidate.model for candidate in chosen.values()]
    scores, labels = judged(models, task.split("test"), batch_size=task.batch_size, device=task.device)
    return {
        fraction: accuracy_figures(logits, labels)
        | {"lr": candidate.lr, "steps": candidate.steps, "validation_top1": candidate.merit[0]}
        for (fraction, candidate), logits in zip(chosen.items(), scores, strict=True)
    }


def _best_candidate(task: Task, build: Build, fraction: str, name: str) -> Candidate:
    best: Candidate | None = None
    for lr in task.settings.lr:
        candidate = _candidate(task, build(), fraction, lr)
        if candidate is not None and (best is None or candidate.merit > best.merit):
            best = candidate
    if best is None:
        raise CollapseError(
            f"{name} training on the fraction {fraction} diverged at every learning rate of "
            f"evaluation.finetune.lr {task.settings.lr}; add a smaller one"
        )
    n_labels = len(task.subsets[fraction])
    task.report(
        f"finetune: {name}, {n_labels} labels: {best.merit[0]:.1%} on validation (lr {best.lr:g}, {best.steps} steps)"
    )
    return best


def _candidate(task: Task, model: FineTuneModel, fraction: str, lr: float) -> Candidate | None:
    """The model trained with one learning rate; None if that diverged."""
    classifier = Classifier(model, len(task.classes)).to(task.device)
    rows = task.subsets[fraction]
    steps = steps_for(len(rows), float(fraction), task.settings)
    _train(classifier, rows, task, lr=lr, steps=steps)
    (scores,), labels = judged([classifier], task.split("validation"), batch_size=task.batch_size, device=task.device)
    if not bool(torch.isfinite(scores).all()):
        return None
    merit = topk_accuracy(scores, labels), -float(cross_entropy(scores, labels))
    return Candidate(classifier, lr, steps, merit)


def _train(classifier: Classifier, rows: np.ndarray, task: Task, *, lr: float, steps: int) -> None:
    """Fit a classifier to some rows of train. Order and crops depend on seed and rows only, not on who competes."""
    seed, size = mix(task.seed, _STREAM), min(task.settings.batch_size, len(rows))
    batches = Batches(
        split=task.split("train"), rows=rows, size=size, augment=task.augment, seed=seed, device=task.device
    )

    def loss_at(step: int) -> Tensor:
        images, labels = batches.at(step)
        with torch.autocast(task.device.type, torch.bfloat16, enabled=task.precision == "bf16"):
            logits = classifier(images)
        return cross_entropy(logits.float(), labels)

    # Scaled by the batch that was asked for: one that a subset cannot fill would shrink the rate to nothing.
    peak_lr = lr * task.settings.batch_size / _REFERENCE_BATCH
    train(classifier, loss_at, peak_lr=peak_lr, steps=steps, seed=seed, device=task.device)


def _probed(task: Task, build: Build, name: str) -> Figures:
    """{fraction: figures} of linear probes on a network as it is built, stage and penalty chosen on validation."""
    representation = build().representation
    read = partial(
        extract, representation, max_values=task.linear.max_values, batch_size=task.batch_size, device=task.device
    )
    train, validation = read(task.split("train")), read(task.split("validation")).labelled()
    chosen = {}
    for fraction, rows in task.subsets.items():
        features = train.select(torch.from_numpy(rows))
        options: dict[str, Any] = {"device": task.device, "report": lambda line: None}
        probes = fit_stages(features, validation, len(task.classes), task.linear, **options)
        stage = best_stage(probes)
        chosen[fraction] = (stage, probes[stage])
        task.report(f"finetune: {name}, {len(rows)} labels: {probes[stage].validation_top1:.1%} on validation")
    test = read(task.split("test")).labelled()
    return {
        fraction: accuracy_figures(probe.classifier.scores(test.probe[stage]), test.labels)
        | {"stage": stage, "l2": probe.l2, "validation_top1": probe.validation_top1}
        for fraction, (stage, probe) in chosen.items()
    }
