"""Linear probe of every stage, protocol linear/lbfgs-v1: multinomial logistic regression on frozen features.

Features are standardised with training statistics. The objective is

    mean over training examples of cross-entropy + l2 / 2 * sum of squared weights (biases are not penalised),

scikit-learn's LogisticRegression with C = 1 / (l2 * n), minimised by full-batch L-BFGS. Penalty and stage are chosen on
validation, then the test split is asked for, once, and all its figures come from that one pass. Sees features only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_core.config import KnnConfig, LinearConfig
from cl_core.evaluation.features import Features, save_tensors
from cl_core.measures.knn import effective_k, knn_predict, protocol_id
from cl_core.measures.logistic import Classifier, fit_classifiers
from cl_core.measures.metrics import (
    accuracy_figures,
    balanced_share,
    imbalance,
    share,
    topk_accuracy,
    topk_classes,
    topk_correct,
)

PROTOCOL = "linear/lbfgs-v1"

ReadFeatures = Callable[[str], Features]  # "train" | "validation" | "test" -> features
Report = Callable[[str], None]


@dataclass(frozen=True)
class Probe:
    """The classifier of one stage with the penalty that won, and what it won by."""

    classifier: Classifier
    l2: float
    validation_top1: float
    validation_loss: float

    @property
    def dim(self) -> int:
        """D, values per image."""
        return len(self.classifier.mean)

    @property
    def merit(self) -> tuple[float, float]:
        """What penalties and stages compete by: validation accuracy, then, on a tie, the lower validation loss."""
        return self.validation_top1, -self.validation_loss


@dataclass(frozen=True, kw_only=True)
class LinearResult:
    """metrics: as written to metrics.json, or {"skipped": reason}.

    predictions: on the labelled test examples, for paired tests between runs: "row" (N,) int64 in the test split,
    "label", "predicted" by the probe of the best stage and "knn_predicted" on the last stage, (N,) int64; empty where
    skipped.
    """

    metrics: dict[str, Any]
    predictions: dict[str, Tensor] = field(default_factory=dict)

    def save_predictions(self, path: Path) -> None:
        """Write the predictions as safetensors, atomically."""
        save_tensors(self.predictions, path)


def linear_eval(
    read: ReadFeatures,
    *,
    classes: Sequence[str],
    linear: LinearConfig,
    knn: KnnConfig,
    baselines: Callable[[], Mapping[str, Any]] = dict,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> LinearResult:
    """Probe every stage, take the best on validation, then read the test split once.

    read: gives the features of a split; called with "test" only after everything is chosen. classes: their names, of
    which some may have no example. baselines: {name: figures} to put beside the result, computed only if needed.
    Of the result, "classes" says how many times as many labelled images the largest class has as the smallest, and what
    a constant answer gets, the largest class of train. Unlabelled examples are left out. Without labels, with one
    class, or with an empty validation or test split the result is {"skipped": reason}.
    """
    train, validation = read("train").labelled(), read("validation").labelled()
    reason = reason_to_skip(train.labels, validation.labels)
    if reason:
        return LinearResult(metrics={"skipped": reason})
    probes = fit_stages(train, validation, len(classes), linear, device=device, report=report)
    best = best_stage(probes)
    whole_test = read("test")
    test = whole_test.labelled()
    if len(test) == 0:
        return LinearResult(metrics={"skipped": EMPTY_TEST})
    scores = {stage: probe.classifier.scores(test.probe[stage]) for stage, probe in probes.items()}
    neighbours = _knn_scores(train, test, best, num_classes=len(classes), knn=knn, device=device)
    metrics = {
        **_figures(probes, scores, test.labels, best),
        "labels_trained": len(train),
        "labels_chosen": len(validation),
        **_knn_figures(neighbours, test.labels, knn, len(train)),
    }
    metrics["classes"] = {
        "imbalance": imbalance(torch.cat([train.labels, validation.labels, test.labels])),
        "constant_top1": share(test.labels == train.labels.mode().values),
    }
    metrics["baselines"] = dict(baselines())
    predictions = {
        "row": (whole_test.labels >= 0).nonzero()[:, 0],
        "label": test.labels,
        "predicted": topk_classes(scores[best])[:, 0].contiguous(),
        "knn_predicted": topk_classes(next(iter(neighbours.values())))[:, 0].contiguous(),
    }
    return LinearResult(metrics=metrics | absent_classes(train.labels, test.labels, classes), predictions=predictions)


NO_LABELS = "the dataset has no labels"
ONE_CLASS = "the dataset has one class only"
EMPTY_VALIDATION = (
    "the validation split has no labelled images, on which hyper-parameters are chosen; raise data.splits.validation"
)
EMPTY_TEST = "the test split has no labelled images; raise data.splits.test"


def reason_to_skip(train_labels: Tensor, validation_labels: Tensor) -> str:
    """Why nothing can be evaluated, or "" where it can; labels (N,) int64, -1 for none."""
    present = train_labels[train_labels >= 0].unique()
    if len(present) == 0:
        return NO_LABELS
    if len(present) == 1:
        return ONE_CLASS
    return "" if bool((validation_labels >= 0).any()) else EMPTY_VALIDATION


def absent_classes(train_labels: Tensor, test_labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """{"classes_without_training_images": {class: test images that therefore count as errors}}, {} if there are none.

    A rare class may fall outside train by its hash; that must not stop the evaluation of the others, nor be hidden.
    """
    absent = sorted(set(range(len(classes))) - set(train_labels.unique().tolist()))
    counts = {classes[label]: int((test_labels == label).sum()) for label in absent}
    return {"classes_without_training_images": counts} if counts else {}


def fit_stages(
    train: Features,
    validation: Features,
    num_classes: int,
    config: LinearConfig,
    *,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> dict[str, Probe]:
    """{stage: probe}; both splits labelled and not empty."""
    probes = {}
    for stage, features in train.probe.items():
        probe = fit_probe(
            features.to(device),
            train.labels.to(device),
            validation.probe[stage].to(device),
            validation.labels,
            num_classes=num_classes,
            config=config,
        )
        probes[stage] = probe
        report(
            f"linear: {stage} ({features.shape[1]} values) {probe.validation_top1:.1%} on validation, l2 {probe.l2:g}"
        )
    return probes


def fit_probe(
    features: Tensor,
    labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    *,
    num_classes: int,
    config: LinearConfig,
) -> Probe:
    """The probe of the grid's best penalty. features (N, D), validation (M, D) any float type, labels int64.

    Penalties are tried from strong to weak, each starting from the solution before it.
    """
    probes = []
    penalties = sorted(config.l2, reverse=True)
    for l2, classifier in zip(
        penalties, fit_classifiers(features, labels, num_classes, penalties, max_iter=config.max_iter), strict=True
    ):
        scores = classifier.scores(validation)
        top1, loss = topk_accuracy(scores, validation_labels), float(cross_entropy(scores, validation_labels))
        probes.append(Probe(classifier, l2, top1, loss))
    return max(probes, key=lambda probe: probe.merit)


def best_stage(probes: Mapping[str, Probe]) -> str:
    """The stage of greatest merit; the later one where they are equal."""
    return max(reversed(list(probes)), key=lambda stage: probes[stage].merit)


def _figures(probes: Mapping[str, Probe], scores: Mapping[str, Tensor], labels: Tensor, best: str) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "best_stage": best,
        "last_stage": list(probes)[-1],
        "test": {
            **accuracy_figures(scores[best], labels),
            "top5": topk_accuracy(scores[best], labels, 5),
            "n": len(labels),
        },
        "stages": {
            stage: {
                "dim": probe.dim,
                "l2": probe.l2,
                "validation_top1": probe.validation_top1,
                "test_top1": topk_accuracy(scores[stage], labels),
                "test_balanced_top1": balanced_share(topk_correct(scores[stage], labels), labels),
            }
            for stage, probe in probes.items()
        },
    }


def _knn_scores(
    train: Features, test: Features, best: str, *, num_classes: int, knn: KnnConfig, device: torch.device | str
) -> dict[str, Tensor]:
    """{stage: (N, C)}: of the last stage, the standard, and of the best one where that is another."""
    k, labels = effective_k(knn.k, len(train)), train.labels.to(device)

    def scores(stage: str) -> Tensor:
        bank, query = train.average[stage].to(device), test.average[stage].to(device)
        return knn_predict(query, bank, labels, num_classes, k, temperature=knn.temperature).cpu()

    return {stage: scores(stage) for stage in dict.fromkeys([list(train.average)[-1], best])}


def _knn_figures(scores: Mapping[str, Tensor], labels: Tensor, knn: KnnConfig, bank: int) -> dict[str, Any]:
    """bank: number of training images."""
    found = [
        {
            "protocol": protocol_id(knn.k, bank),
            "stage": stage,
            "k": effective_k(knn.k, bank),
            "temperature": knn.temperature,
            **accuracy_figures(of_stage, labels),
        }
        for stage, of_stage in scores.items()
    ]
    return dict(zip(("knn", "knn_best_stage"), found, strict=False))
