"""Fine-tuning on few labels, protocol finetune/simclr-v1 (Chen et al. 2020, arXiv:2002.05709, appendix B.5).

The whole network is trained on nested class-balanced subsets of the labelled training images, with a linear layer that
starts at zero: SGD with Nesterov momentum 0.9, no weight decay, no warm-up, a cosine to zero, batch norm in train mode,
crop and flip only (the chain is handed in). It is held against the same network trained from its random initial weights
on the same labels, steps and grid, and against a linear probe on the untrained network. Learning rates are chosen on
validation after the last step; each competitor then reads the test split once, for all its subsets together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cl_core.config import FinetuneConfig, LinearConfig, OptimizerConfig
from cl_core.data.sampling import SampleRng, batch_rows, mix
from cl_core.data.store import Split, to_float
from cl_core.errors import CollapseError
from cl_core.evaluation.features import extract
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
from cl_core.measures.metrics import bootstrap_interval, share, topk_accuracy, topk_correct
from cl_core.training.optim import Schedule, build_optimizer, set_lr
from cl_core.training.update import deterministic
from cl_core.types import Augmentation, FineTuneModel, ParamGroup

PROTOCOL = "finetune/simclr-v1"
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

    model: nn.Module
    lr: float
    steps: int
    merit: tuple[float, float]


class Classifier(nn.Module):
    """A fine-tuning model under a linear layer that starts at zero: (N, C, H, W) in [0, 1] -> (N, K) logits."""

    def __init__(self, model: FineTuneModel, num_classes: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.head = nn.Linear(model.out_dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(self.model(images))
        return logits


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
) -> Figures:
    """Label-efficiency curve of a pretrained model and its two yardsticks, as written to metrics.json.

    build, build_random: give a fresh pretrained and a fresh untrained model each time they are called. augment: the
    chain for training images. linear: settings of the random-init probe. batch_size: images per forward pass when
    judging. yardstick_key: all that decides the yardsticks beside these settings (store digest, subset, encoder, input,
    chain, seed). Unlabelled images are left out.
    Returns {"skipped": reason} where there is nothing to learn or to judge. Raises CollapseError where training
    diverges at every learning rate of the grid.
    """
    labels = {name: torch.tensor(split(name).labels) for name in ("train", "validation", "test")}
    reason = reason_to_skip(labels["train"], labels["validation"])
    if not reason and not bool((labels["test"] >= 0).any()):
        reason = EMPTY_TEST
    if reason:
        return {"skipped": reason}
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
    ours = _fine_tuned(task, build, "fine-tuned")
    beside = _yardsticks(task, build_random, yardsticks, yardstick_key)
    result = {"protocol": PROTOCOL, "fractions": _curve(subsets, ours, beside)}
    return result | absent_classes(labels["train"], labels["test"], classes)


def steps_for(examples: int, fraction: float, settings: FinetuneConfig) -> int:
    """Length of a run: settings.epochs, twice as many at 1 % and below (60 and 30 in SimCLR B.5), within bounds."""
    epochs = settings.epochs * (2 if fraction <= 0.01 else 1)
    steps = epochs * (examples // min(settings.batch_size, examples))
    return min(max(steps, settings.min_steps), settings.max_steps)


def _curve(subsets: Mapping[str, np.ndarray], ours: Figures, beside: Mapping[str, Figures]) -> Figures:
    first = {len(rows): name for name, rows in reversed(list(subsets.items()))}
    curve: Figures = {}
    for name, rows in subsets.items():
        source = first[len(rows)]
        curve[name] = {"n_labels": len(rows), "top1": ours[source]["top1"], "top1_ci95": ours[source]["top1_ci95"]}
        curve[name] |= {yardstick: figures[source]["top1"] for yardstick, figures in beside.items()}
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
            {"yardstick": "supervised_same_labels", **shared, "settings": settings, "precision": task.precision},
            lambda: _fine_tuned(task, build_random, "supervised"),
        ),
        "random_init_probe": yardsticks.get(
            {
                "yardstick": "random_init_probe",
                **shared,
                "probe": PROBE_PROTOCOL,
                "linear": task.linear.model_dump(mode="json"),
            },
            lambda: _probed(task, build_random),
        ),
    }


def _fine_tuned(task: Task, build: Build, name: str) -> Figures:
    """{fraction: figures} of a model trained on every subset, each at its best learning rate."""
    chosen = {fraction: _best_candidate(task, build, fraction, name) for fraction in task.subsets}
    scores, labels = _judged([candidate.model for candidate in chosen.values()], task.split("test"), task)
    return {
        fraction: _test_figures(logits, labels)
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
    (scores,), labels = _judged([classifier], task.split("validation"), task)
    if not bool(torch.isfinite(scores).all()):
        return None
    merit = topk_accuracy(scores, labels), -float(cross_entropy(scores, labels))
    return Candidate(classifier, lr, steps, merit)


def _train(classifier: nn.Module, rows: np.ndarray, task: Task, *, lr: float, steps: int) -> None:
    """Fit a classifier to some rows of train. Order and crops depend on seed and rows only, not on who competes."""
    split, seed = task.split("train"), mix(task.seed, _STREAM)
    rows_of, labels = torch.from_numpy(rows), torch.tensor(split.labels[rows])
    batch = min(task.settings.batch_size, len(rows))
    # Scaled by the batch that was asked for: one that a subset cannot fill would shrink the rate to nothing.
    peak_lr = lr * task.settings.batch_size / _REFERENCE_BATCH
    schedule = Schedule(peak_lr=peak_lr, warmup_steps=0, total_steps=steps)
    config = OptimizerConfig(name="sgd", lr=peak_lr, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizer = build_optimizer([ParamGroup(params=list(classifier.parameters()))], config, batch)
    classifier.train()
    with deterministic(), _global_rng(seed, task.device):
        for step in range(steps):
            picked, epoch = batch_rows(len(rows), batch, step, seed)
            images = to_float(split.images(rows_of[picked]).to(task.device))
            images = task.augment(images, SampleRng(seed, epoch, rows_of[picked].to(task.device)))
            with torch.autocast(task.device.type, torch.bfloat16, enabled=task.precision == "bf16"):
                logits = classifier(images)
            loss = cross_entropy(logits.float(), labels[picked].to(task.device))
            set_lr(optimizer, schedule, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@contextmanager
def _global_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which only dropout and its like use here, and put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _judged(models: Sequence[nn.Module], split: Split, task: Task) -> tuple[list[Tensor], Tensor]:
    """Logits (N, K) of several models in one pass over the labelled images of a split, and the labels (N,)."""
    rows = np.flatnonzero(split.labels >= 0)
    scores: list[list[Tensor]] = [[] for _ in models]
    for model in models:
        model.eval()
    for start in range(0, len(rows), task.batch_size):
        images = to_float(split.images(rows[start : start + task.batch_size]).to(task.device))
        for model, collected in zip(models, scores, strict=True):
            collected.append(model(images).float().cpu())
    return [torch.cat(parts) for parts in scores], torch.tensor(split.labels[rows])


def _probed(task: Task, build_random: Build) -> Figures:
    """{fraction: figures} of linear probes on the untrained network, stage and penalty chosen on validation."""
    representation = build_random().representation
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
        task.report(
            f"finetune: random-init probe, {len(rows)} labels: {probes[stage].validation_top1:.1%} on validation"
        )
    test = read(task.split("test")).labelled()
    return {
        fraction: _test_figures(probe.classifier.scores(test.probe[stage]), test.labels)
        | {"stage": stage, "l2": probe.l2, "validation_top1": probe.validation_top1}
        for fraction, (stage, probe) in chosen.items()
    }


def _test_figures(scores: Tensor, labels: Tensor) -> Figures:
    correct = topk_correct(scores, labels)
    return {"top1": share(correct), "top1_ci95": list(bootstrap_interval(correct))}
