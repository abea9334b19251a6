"""What is the best classifier that so many labels can give? Each use of them, and what they give without pretraining.

Protocols finetune/lpft-v2 and finetune/simclr-v1. For each budget and draw of labels: the frozen probe, fine-tuning,
and the better of the two by selection; held against the frozen probe of the untrained encoder, supervised training from
its weights, and a probe of the pixels, all on the same labels, chosen in the same way. Each competitor reads the test
split once, after all its choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cl_core.config import FinetuneConfig
from cl_core.data.sampling import mix
from cl_core.data.store import Split
from cl_core.errors import CollapseError
from cl_core.evaluation.classifier import Classifier, judged
from cl_core.evaluation.draws import Budget, Drawing, budgets
from cl_core.evaluation.features import Features, digests, extract, raw_pixels
from cl_core.evaluation.fine_tuning import Choice, Data, Part, Recipe, choose, fine_tune
from cl_core.evaluation.folds import Fold, stratified_folds
from cl_core.evaluation.frozen import FrozenProbe, FrozenProbes, Labels, scores_of
from cl_core.evaluation.label_curve import FewLabelsResult, LabelCurve, Outcome, figures_of
from cl_core.evaluation.linear import EMPTY_TEST, Report, absent_classes, reason_to_skip
from cl_core.evaluation.yardsticks import Figures, Yardsticks
from cl_core.types import Augmentation, FineTuneModel

_TRAINED_FOLDS = 2  # of the folds, whole networks are trained on so many to choose by

Build = Callable[[], FineTuneModel]


@dataclass(frozen=True, kw_only=True)
class Given:
    """A draw of a budget: rows (n,) of train, and the folds of positions in them."""

    name: str
    rows: np.ndarray
    folds: Sequence[Fold]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all competitors share.

    split: "train" | "validation" | "test" -> images. given: every draw of every budget, those that select the same
    labels once. max_values, max_iter: of the linear probe.
    """

    split: Callable[[str], Split]
    classes: Sequence[str]
    given: Sequence[Given]
    augment: Augmentation
    settings: FinetuneConfig
    selection: Literal["labels", "validation"]
    max_values: int
    max_iter: int
    seed: int
    batch_size: int
    device: torch.device
    report: Report

    def features(self, model: FineTuneModel, name: str) -> Features:
        """Of every stage."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "device": self.device}
        return extract(model.representation, self.split(name), max_values=self.max_values, **options)


def few_labels(
    build: Build,
    build_random: Build,
    split: Callable[[str], Split],
    classes: Sequence[str],
    *,
    augment: Augmentation,
    settings: FinetuneConfig,
    selection: Literal["labels", "validation"],
    max_values: int,
    max_iter: int,
    seed: int,
    yardsticks: Yardsticks,
    yardstick_key: Mapping[str, Any],
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> FewLabelsResult:
    """Every use of the labels at every budget, its yardsticks, and the classifiers.

    build, build_random: give a fresh pretrained and a fresh untrained model each time they are called. augment: the
    chain for training images. batch_size: images per forward pass when judging. yardstick_key: all that decides the
    yardsticks beside these settings (store digest, subset, encoder, input, chain, seed). Unlabelled images are left
    out, but for the statistics by which features are standardised.
    The metrics are {"skipped": reason} where there is nothing to learn or to judge. Raises CollapseError where
    training diverges at every learning rate of the grid.
    """
    train = split("train")
    labels = {name: torch.tensor(split(name).labels) for name in ("train", "validation", "test")}
    reason = reason_to_skip(labels["train"], labels["validation" if selection == "validation" else "train"])
    if not reason and not bool((labels["test"] >= 0).any()):
        reason = EMPTY_TEST
    if reason:
        return FewLabelsResult(metrics={"skipped": reason})
    drawing = Drawing(train.keys, train.labels, train.groups)
    wanted = budgets(drawing, per_class=settings.per_class, shares=settings.fractions, draws=settings.draws)
    task = Task(
        split=split,
        classes=classes,
        given=[given for budget in wanted if not budget.same_as for given in _given(budget, train, settings, seed)],
        augment=augment,
        settings=settings,
        selection=selection,
        max_values=max_values,
        max_iter=max_iter,
        seed=seed,
        batch_size=batch_size,
        device=torch.device(device),
        report=report,
    )
    rows = (labels["test"] >= 0).nonzero()[:, 0]
    truth = labels["test"][rows]
    ours = _ours(task, build)
    figures = {name: figures_of(outcomes, truth) for name, outcomes in ours.items()}
    figures |= _yardsticks(task, build_random, yardsticks, yardstick_key, truth)
    curve = LabelCurve(
        wanted=wanted,
        names=[given.name for given in task.given],
        figures=figures,
        chosen=int((labels["validation"] >= 0).sum()) if selection == "validation" else 0,
        truth=truth,
        classes=len(drawing.classes),
    )
    metrics = {"protocol": f"finetune/{settings.protocol}", "selection": selection, "budgets": curve.budgets()}
    return FewLabelsResult(
        metrics=metrics | absent_classes(labels["train"], labels["test"], classes),
        predictions={"row": rows, "label": truth, **curve.predictions()},
        classes=tuple(classes),
        classifiers={budget.name: curve.of(budget, ours["best"])[0].classifier for budget in wanted},
    )


def _given(budget: Budget, train: Split, settings: FinetuneConfig, seed: int) -> list[Given]:
    groups = train.groups
    return [
        Given(
            name=budget.name,
            rows=rows,
            folds=stratified_folds(
                train.labels[rows], settings.folds, mix(seed, draw) % 2**32, None if groups is None else groups[rows]
            ),
        )
        for draw, rows in enumerate(budget.draws)
    ]


def _ours(task: Task, build: Build) -> dict[str, list[Outcome]]:
    """{use: an outcome for each of the draws} of the pretrained encoder."""
    model = build()
    probes = _probes(task, lambda name: task.features(model, name), "frozen")
    test = task.features(model, "test").labelled()
    frozen = [
        Outcome(
            logits=scores_of(probe, test.probe), details=_probe_details(probe), classifier=_start(task, build, probe)
        )
        for probe in probes
    ]
    tuned = _trained(task, build, Recipe.pretrained(task.settings), probes, "fine-tuned")
    return {"frozen": frozen, "fine_tuned": tuned, "best": list(map(_better, frozen, tuned))}


def _better(frozen: Outcome, tuned: Outcome) -> Outcome:
    """The use that selection prefers; without selection fine-tuning, which did best where it was tried."""
    losses = [outcome.details["selection_loss"] for outcome in (frozen, tuned)]
    stays = tuned.details["mix"] == 0 or (None not in losses and losses[0] <= losses[1])
    best, use = (frozen, "frozen") if stays else (tuned, "fine_tuned")
    return replace(best, details={**best.details, "use": use})


def _probes(task: Task, read: Callable[[str], Features], name: str) -> list[FrozenProbe]:
    """read: gives the features of a split."""
    fitter = FrozenProbes(read("train"), len(task.classes), task.max_iter)
    looked_at = read("validation").labelled() if task.selection == "validation" else None
    found = []
    for given in task.given:
        probe = fitter.fit(Labels(rows=torch.from_numpy(given.rows), folds=given.folds, validation=looked_at))
        task.report(f"few labels: {name}, {len(given.rows)} labels: {probe.stage}, C {probe.cost:g}")
        found.append(probe)
    return found


def _probe_details(probe: FrozenProbe) -> Figures:
    return {
        "stage": probe.stage,
        "cost": probe.cost,
        "selection_loss": probe.selection_loss,
        "temperature": probe.temperature,
    }


def _start(task: Task, build: Build, probe: FrozenProbe, fold: int | None = None) -> Classifier:
    """A fresh network under a probe: the one of all labels, or of a fold's."""
    head = probe.classifier if fold is None else probe.starts[fold]
    return Classifier.of_probe(build(), head, probe.stage, task.max_values)


def _trained(
    task: Task, build: Build, recipe: Recipe, probes: Sequence[FrozenProbe] | None, name: str
) -> list[Outcome]:
    """A network trained on every draw, judged on test in one pass over it. probes: where it starts, None at zero."""
    starts: Sequence[FrozenProbe | None] = probes or [None] * len(task.given)
    chosen = [
        _chosen(task, build, recipe, given, probe=probe, name=name)
        for given, probe in zip(task.given, starts, strict=True)
    ]
    models = [classifier for _, classifier in chosen]
    scores, _ = judged(models, task.split("test"), batch_size=task.batch_size, device=task.device)
    return [
        Outcome(
            logits=logits / choice.temperature,
            details={
                "stage": classifier.stage,
                "lr": choice.lr,
                "steps": choice.steps,
                "mix": choice.mix,
                "selection_loss": choice.selection_loss,
                "temperature": choice.temperature,
            },
            classifier=classifier.cpu(),
        )
        for (choice, classifier), logits in zip(chosen, scores, strict=True)
    ]


def _chosen(
    task: Task, build: Build, recipe: Recipe, given: Given, *, probe: FrozenProbe | None, name: str
) -> tuple[Choice, Classifier]:
    train = task.split("train")
    data = Data(split=train, augment=task.augment, seed=task.seed, batch_size=task.batch_size, device=task.device)

    def start(fold: int | None = None) -> Classifier:
        if recipe.from_probe and probe is not None:
            return _start(task, build, probe, fold)
        return _untouched(task, build)

    labelled = int((train.labels >= 0).sum())
    steps = recipe.steps_for(len(given.rows), len(given.rows) / labelled)
    choice = choose(recipe, data, _parts(task, given, start), steps=steps)
    if choice is None:
        raise CollapseError(
            f"{name} training on {len(given.rows)} labels diverged at every learning rate of {list(recipe.rates)}; "
            "give smaller ones in evaluation.finetune.lr and supervised_lr"
        )
    classifier = fine_tune(
        recipe, data, Part(learnt=given.rows, held=train.select(np.arange(0)), start=start), choice, steps=steps
    )
    looked = "" if choice.selection_loss is None else f", log loss {choice.selection_loss:.3f} where held out"
    task.report(
        f"few labels: {name}, {len(given.rows)} labels: lr {choice.lr:g}, {choice.steps} steps, mix {choice.mix:g}"
        f"{looked}"
    )
    return choice, classifier


def _untouched(task: Task, build: Build) -> Classifier:
    """A network under a layer at zero: on the last stage as probes read it, or in simclr-v1 on its own output."""
    model = build()
    if task.settings.protocol == "simclr-v1":
        return Classifier(model, len(task.classes))
    first = extract(model.representation, task.split("train").select(np.arange(1)), max_values=task.max_values)
    stage, dim = list(first.dims.items())[-1]
    return Classifier(model, len(task.classes), stage=stage, dim=dim, max_values=task.max_values)


def _parts(task: Task, given: Given, start: Callable[[int | None], Classifier]) -> list[Part]:
    """What is trained to choose by: two of the folds, or all labels looked at from the validation split."""
    if task.selection == "validation":
        validation = task.split("validation")
        held = validation.select(np.flatnonzero(validation.labels >= 0))
        return [Part(learnt=given.rows, held=held, start=lambda: start(None))]
    train = task.split("train")
    return [
        Part(
            learnt=given.rows[fold.learnt],
            held=train.select(given.rows[fold.held]),
            start=lambda number=number: start(number),  # type: ignore[misc]
        )
        for number, fold in enumerate(given.folds[:_TRAINED_FOLDS])
    ]


def _yardsticks(
    task: Task, build_random: Build, yardsticks: Yardsticks, key: Mapping[str, Any], truth: Tensor
) -> dict[str, list[Figures]]:
    """{name: figures of each draw} of what is held against us, shared by all experiments that start from the same."""
    settings = task.settings.model_dump(mode="json", exclude={"lr", "layer_decay"})
    shared = {
        "protocol": f"finetune/{task.settings.protocol}",
        "key": dict(key),
        "settings": settings,
        "selection": task.selection,
        "max_values": task.max_values,
        "max_iter": task.max_iter,
        "labels": {f"{given.name}/{number}": len(given.rows) for number, given in enumerate(task.given)},
        "seed": task.seed,
    }

    def untrained() -> list[Outcome]:
        model = build_random()
        return _frozen_only(task, lambda name: task.features(model, name), "untrained, frozen")

    def pixels() -> list[Outcome]:
        return _frozen_only(task, lambda name: raw_pixels(task.split(name), batch_size=task.batch_size), "raw pixels")

    def supervised() -> list[Outcome]:
        return _trained(task, build_random, Recipe.supervised(task.settings), None, "supervised")

    beyond = _beyond_the_encoder(build_random())
    computed: dict[str, tuple[Figures, Callable[[], list[Outcome]]]] = {
        "random_init": ({}, untrained),
        "supervised": ({"model": beyond}, supervised),
        "raw_pixels": ({}, pixels),
    }
    return {
        name: yardsticks.get(
            {"yardstick": f"{name}, few labels", **shared, **more},
            lambda compute=compute: {"draws": figures_of(compute(), truth)},  # type: ignore[misc]
        )["draws"]
        for name, (more, compute) in computed.items()
    }


def _frozen_only(task: Task, read: Callable[[str], Features], name: str) -> list[Outcome]:
    probes = _probes(task, read, name)
    test = read("test").labelled()
    return [Outcome(logits=scores_of(probe, test.probe), details=_probe_details(probe)) for probe in probes]


def _beyond_the_encoder(model: FineTuneModel) -> Figures:
    """What an untrained model is beside its encoder: its name, and the initial weights of what it keeps of the head."""
    return {"name": model.name, "head": {} if model.head is None else digests(model.head)}
