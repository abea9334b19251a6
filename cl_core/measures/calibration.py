"""How far probabilities can be believed: log loss, Brier score, calibration error, and the temperature that mends them.

Logits are (N, C), labels (N,) int64, N >= 1; any float type.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

_BINS = 15
_COLDEST, _HOTTEST = 0.05, 20.0


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log probability of the label, in nats; log C for equal logits."""
    return float(cross_entropy(logits.double(), labels))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean over images of the squared distance of the probabilities from the label's corner (Brier 1950), in [0, 2]."""
    probabilities = logits.double().softmax(dim=1)
    return float((probabilities - one_hot(labels, logits.shape[1])).square().sum(dim=1).mean())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error of the top label in bins of equal mass (Nguyen & O'Connor 2015), in [0, 1].

    Mean over images of |accuracy - mean confidence| of the image's bin; images of equal confidence keep their order.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    order = confidence.argsort(stable=True)
    gaps = ((predicted == labels).double() - confidence)[order]
    return float(sum(part.sum().abs() for part in gaps.tensor_split(bins))) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number that logits are divided by for the least log loss (Guo et al. 2017, arXiv:1706.04599), in [0.05, 20].

    For data that choices are made on, never for the test split. Labels are smoothed by 1 / (N + 2) as Platt (1999)
    does: answers that are right for all of a few images do not make certain of others.
    """
    logits, smoothing = logits.double(), 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(logits / math.exp(log_temperature), labels, label_smoothing=smoothing))

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that are present of the harmonic mean of precision and recall; (N,) int64 each."""
    scores = []
    for label in labels.unique():
        hits = int(((predicted == label) & (labels == label)).sum())
        scores.append(2 * hits / (int((predicted == label).sum()) + int((labels == label).sum())))
    return math.fsum(scores) / len(scores)


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts: rows are labels, columns predictions."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
