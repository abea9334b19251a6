"""The label curve as it is written down: figures of every competitor at every budget, predictions, classifiers."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_core.data.files import write_json
from cl_core.evaluation.classifier import Classifier
from cl_core.evaluation.draws import Budget
from cl_core.evaluation.features import save_tensors
from cl_core.evaluation.yardsticks import Figures
from cl_core.measures.calibration import brier_score, calibration_error, log_loss, macro_f1
from cl_core.measures.metrics import balanced_share, interval_over_draws, share, topk_classes
from cl_core.training.outputs import write_weights

CARD = "classifiers.json"
_AVERAGED = ("top1", "balanced_top1", "macro_f1", "ece", "brier", "log_loss")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained classifier's logits (N, C) on test after temperature, and how it was chosen."""

    logits: Tensor
    details: Figures
    classifier: Classifier | None = None  # of ours, for whoever uses it afterwards


@dataclass(frozen=True, kw_only=True)
class FewLabelsResult:
    """metrics: as written to metrics.json, or {"skipped": reason}.

    predictions: "row" (N,) int64 in the test split, "label" (N,), and "COMPETITOR/BUDGET/DRAW" (N,) predicted classes.
    classifiers: {budget: the best use of its first draw, in eval mode}; both {} where skipped. classes: their names.
    """

    metrics: Figures
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write metrics.json, predictions.safetensors, and below classifiers/ BUDGET.safetensors and their card."""
        shutil.rmtree(folder / "classifiers", ignore_errors=True)  # those of an earlier run
        for budget, classifier in self.classifiers.items():
            write_weights(classifier, folder / "classifiers" / f"{budget}.safetensors")
        write_json(folder / "classifiers" / CARD, self._card())
        save_tensors(dict(self.predictions), folder / "predictions.safetensors")
        write_json(folder / "metrics.json", self.metrics)

    def _card(self) -> Figures:
        if not self.classifiers:
            return {**self.metrics, "classifiers": {}}
        return {
            "what": "classifiers: RGB images in [0, 1] -> a logit per class, in the order of `classes`; divide by the "
            "temperature before the softmax",
            "protocol": self.metrics["protocol"],
            "fine_tuned": next(iter(self.classifiers.values())).model.name,
            "classes": list(self.classes),
            "classifiers": {
                budget: {
                    "file": f"{budget}.safetensors",
                    "labels": self.metrics["budgets"][budget]["labels_trained"],
                    "stage": classifier.stage,
                    "dim": classifier.head.in_features,
                    "max_values": classifier.max_values,
                    "temperature": self.metrics["budgets"][budget]["competitors"]["best"]["draws"][0]["temperature"],
                }
                for budget, classifier in self.classifiers.items()
            },
        }


def figures_of(outcomes: Sequence[Outcome], truth: Tensor) -> list[Figures]:
    """Figures and predicted classes of each draw; plain JSON."""
    found = []
    for outcome in outcomes:
        predicted = topk_classes(outcome.logits)[:, 0]
        found.append(
            {
                "top1": share(predicted == truth),
                "balanced_top1": balanced_share(predicted == truth, truth),
                "macro_f1": macro_f1(predicted, truth),
                "ece": calibration_error(outcome.logits, truth),
                "brier": brier_score(outcome.logits, truth),
                "log_loss": log_loss(outcome.logits, truth),
                **outcome.details,
                "predicted": predicted.tolist(),
            }
        )
    return found


@dataclass(frozen=True, kw_only=True)
class LabelCurve:
    """Budgets, and per competitor the figures of each draw of each budget that selects labels of its own.

    names: the budget of each of those draws. chosen: labels beyond the given ones that choices were made on. truth:
    (N,) labels of the test images. classes: their number.
    """

    wanted: Sequence[Budget]
    names: Sequence[str]
    figures: Mapping[str, Sequence[Figures]]
    chosen: int
    truth: Tensor
    classes: int

    def of(self, budget: Budget, per_draw: Sequence[Any]) -> list[Any]:
        """Those of a budget's draws."""
        own = budget.same_as or budget.name
        return [item for name, item in zip(self.names, per_draw, strict=True) if name == own]

    def budgets(self) -> Figures:
        """What metrics.json says of each."""
        return {
            budget.name: {
                "labels_trained": budget.labels,
                "labels_chosen": self.chosen,
                "per_class": budget.labels / self.classes,
                "same_as": budget.same_as or None,
                "competitors": {
                    name: _summary(self.of(budget, draws), self.truth) for name, draws in self.figures.items()
                },
            }
            for budget in self.wanted
        }

    def predictions(self) -> dict[str, Tensor]:
        """{"COMPETITOR/BUDGET/DRAW": (N,) int64 classes}."""
        return {
            f"{name}/{budget.name}/{number}": torch.tensor(draw["predicted"])
            for name, draws in self.figures.items()
            for budget in self.wanted
            for number, draw in enumerate(self.of(budget, draws))
        }


def _summary(draws: Sequence[Figures], truth: Tensor) -> Figures:
    correct = torch.tensor([draw["predicted"] for draw in draws]) == truth
    means = {name: statistics.fmean(draw[name] for draw in draws) for name in _AVERAGED}
    return {
        **means,
        "top1_std": statistics.stdev(draw["top1"] for draw in draws) if len(draws) > 1 else None,
        "top1_ci95": list(interval_over_draws(correct)),
        "draws": [{name: value for name, value in draw.items() if name != "predicted"} for draw in draws],
    }
