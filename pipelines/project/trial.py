"""A rehearsal of a project on some of its images: how fast the machine is at it, and what its views look like.

Ingest, views, optimiser steps, features, fine-tuning and a linear probe are those of the stages. The precision is
chosen as pretraining would and left in the project's record of decisions, so that the run takes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cl_core.allocator import keep_freed_memory
from cl_core.assembly import build_chain, build_method
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.preview import draw_preview
from cl_core.data.store import Store, to_float
from cl_core.data.views import views_of
from cl_core.evaluation.classifier import Batches, Classifier
from cl_core.evaluation.features import Features, extract
from cl_core.evaluation.fine_tuning import Recipe
from cl_core.examples import Example
from cl_core.measures.logistic import fit_classifier
from cl_core.project import load_project
from cl_core.training.precision import Choice
from cl_core.training.processes import Devices
from cl_core.training.trainer import Run, choose, prepare
from cl_core.training.update import deterministic
from cl_core.types import Method, Views
from pipelines.project.speed import Speed

SECONDS = 10.0  # of training steps
WARM_UP = 5  # steps that are not counted: numba compiles, kernels are selected, memory is fetched
WINDOW = 1.0  # seconds; the median of several is what is told
SHEET_IMAGES, SHEET_EPOCHS = 8, 3
DECISIONS = Path(".contrast/decisions.json")

_L2 = 1e-2
_TUNING_STEPS = 6


class Trial:
    """The project in the folder `scratch`, on a few of its images."""

    def __init__(self, scratch: Path, examples: Sequence[Example]) -> None:
        """Ingest the examples. Raises DataError where none of them can be used."""
        keep_freed_memory()
        self.project = load_project(scratch)
        self.experiment = self.project.experiments[0]
        data, began = self.project.params.data, time.perf_counter()
        ingest(
            _Some(examples),
            scratch / "dataset",
            size=data.size,
            splits=SplitRule(validation=0.0, test=0.0),
            source_spec={"name": "sample"},
            max_shorter_side=data.stored_shorter_side,
            max_pixels=data.max_pixels,
            report=lambda line: None,
        )
        self.reading = len(examples) / (time.perf_counter() - began)
        self.store = Store.open(scratch / "dataset")
        self.split = self.store.split("train")
        self.scratch = scratch

    def sheet(self) -> bytes:
        """PNG: a few images, each with the views of its first epochs."""
        shown = torch.arange(0, len(self.split), max(1, len(self.split) // SHEET_IMAGES))[:SHEET_IMAGES]
        method, views = self._method(), list[torch.Tensor]()
        for epoch in range(SHEET_EPOCHS):
            images = self.split.floats(shown, torch.device("cpu"))
            views += views_of(method, images, self.experiment.seed, epoch, shown).images
        return draw_preview(to_float(self.split.images(shown)), Views(images=tuple(views)))

    def speed(self, num_classes: int, *, seconds: float = SECONDS) -> Speed:
        """Try everything that takes a run's time; num_classes: of the whole set."""
        with deterministic():
            run = self._run
            first = next(iter(run.loader(0, 1)))
            choice = choose(run, first, self.scratch / DECISIONS, lambda line: None)
            training = median(_rates(run, choice, seconds))
        features, encoding = self._encoded()
        has_labels = bool((self.split.labels >= 0).any()) and num_classes > 1
        return Speed(
            training=training,
            reading=self.reading,
            encoding=encoding,
            tuning=self._tuning(num_classes) if has_labels else training,
            probing=_probing(features, num_classes) if has_labels else 0.0,
            probed=len(features),
            stages=len(features.probe),
            measured=True,
        )

    def _method(self) -> Method:
        experiment = self.experiment
        parts = {name: getattr(experiment, name) for name in ("method", "encoder", "loss", "score", "chains")}
        size = self.project.params.data.size
        return build_method(self.project.registry, {**parts, "image_size": size}, seed=experiment.seed)

    @cached_property
    def _run(self) -> Run:
        """As pretraining has it, but for the images: repeated, where they do not fill some batches."""
        config, devices = self.experiment.config, Devices()
        wanted = max(len(self.split), 4 * config.train.batch_size)
        run = Run(
            method=self._method().to(devices.fabric().device),
            split=self.split.select(np.arange(wanted) % len(self.split)),
            optimizer=config.optimizer,
            schedule=config.schedule,
            train=config.train,
            seed=self.experiment.seed,
            device=devices.fabric().device,
            devices=devices,
        )
        prepare(run)
        return run

    def _encoded(self) -> tuple[Features, float]:
        """Features of the sample, and images per second."""
        evaluation = self.project.params.evaluation
        options: dict[str, Any] = {"max_values": evaluation.linear.max_values, "batch_size": evaluation.batch_size}
        representation, device = self._run.method.representation(), self._run.device
        extract(representation, self.split, **options, device=device)
        began = time.perf_counter()
        features = extract(representation, self.split, **options, device=device)
        return features, len(features) / (time.perf_counter() - began)

    def _tuning(self, num_classes: int) -> float:
        """Images per second of fine-tuning."""
        device, settings = self._run.device, self.project.params.evaluation.finetune
        rows = np.flatnonzero(self.split.labels >= 0)
        batches = Batches(
            split=self.split,
            rows=rows,
            size=min(settings.batch_size, len(rows)),
            augment=build_chain(self.project.registry, self.project.finetune_chain),
            seed=self.experiment.seed,
            device=device,
        )
        classifier = Classifier(self._method().fine_tune_model(), num_classes).to(device)
        recipe = Recipe.supervised(settings)
        training = recipe.training(classifier, len(rows), lr=1e-3, steps=_TUNING_STEPS, seed=0)

        def loss_at(step: int) -> torch.Tensor:
            images, labels = batches.at(step)
            return cross_entropy(classifier(images), labels)

        def fit() -> None:
            for step in range(_TUNING_STEPS):
                training.step(step, loss_at)

        fit()
        return _TUNING_STEPS * batches.size / _seconds(fit)


class _Some:
    """Some examples as a source, all for training."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = [replace(example, split="train") for example in examples]

    def fingerprint(self) -> Mapping[str, Any]:
        return {"examples": len(self.examples)}

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def _rates(run: Run, choice: Choice, seconds: float) -> list[float]:
    """Images per second of training in windows of about a second, at least one, for so many seconds."""
    update, last = run.updater(choice), run.rates.total_steps - 1
    rates, steps = list[float](), 0
    mark = end = float("inf")
    for step, batch in enumerate(run.loader(0, 10**9)):
        update(run.views(batch), min(step, last))
        steps += 1
        if step + 1 == WARM_UP:
            mark, steps = _now(run.device), 0
            end = mark + seconds
        elif time.perf_counter() - mark >= WINDOW:
            now = _now(run.device)
            rates.append(steps * run.train.batch_size / (now - mark))
            mark, steps = now, 0
            if now >= end:
                break
    return rates


def _probing(features: Features, num_classes: int) -> float:
    """Seconds of a linear probe of the first stage, which has as many values as any."""
    labelled = features.labelled()
    values = next(iter(labelled.probe.values()))
    return _seconds(lambda: fit_classifier(values, labelled.labels, num_classes, l2=_L2))


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
