"""Multinomial logistic regression on given features: how well a linear classifier tells one kind from another.

Features are standardised with the statistics of those it is fitted on. The objective is

    mean over examples of cross-entropy + l2 / 2 * sum of squared weights (biases are not penalised),

scikit-learn's LogisticRegression with C = 1 / (l2 * n), minimised by full-batch L-BFGS from zero, so that the same
features give the same classifier. Knows neither images nor splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_core.measures.metrics import topk_accuracy

_CONSTANT = 1e-6  # a feature whose standard deviation is below this share of its mean says nothing
_GRADIENT = 1e-5  # largest component of the gradient at which L-BFGS stops


@dataclass(frozen=True)
class Classifier:
    """Standardisation and a linear map: mean and scale (D,), weight (C, D), bias (C,), all on one device."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Logits (N, C) on the CPU of features (N, D) of any float type and device."""
        standard = _standardised(features.to(self.mean.device), self.mean, self.scale)
        return _logits(standard, self.weight, self.bias).cpu()


def fit_classifiers(
    features: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float], *, max_iter: int = 200
) -> Iterator[Classifier]:
    """One classifier per penalty, in the given order, each search starting from the solution before it.

    features: (N, D) of any float type. labels: (N,) int64 in [0, num_classes) on the same device.
    """
    mean, scale = _statistics(features)
    standard = _standardised(features, mean, scale)
    weight, bias = standard.new_zeros(num_classes, standard.shape[1]), standard.new_zeros(num_classes)
    for l2 in penalties:
        weight, bias = _minimise(standard, labels, (weight, bias), l2=l2, max_iter=max_iter)
        yield Classifier(mean, scale, weight, bias)


def fit_classifier(features: Tensor, labels: Tensor, num_classes: int, *, l2: float = 1e-2) -> Classifier:
    """The classifier of one penalty; see `fit_classifiers`."""
    return next(fit_classifiers(features, labels.to(features.device), num_classes, [l2]))


def linear_accuracy(
    features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, num_classes: int | None = None
) -> float:
    """Accuracy on (M, D) test features of a linear classifier fitted on (N, D) features: a share in [0, 1].

    labels, test_labels: (N,) and (M,) int64, counted from 0; num_classes defaults to what they need. Held-out features
    near chance mean that no linear map tells the kinds apart. Raises DataError without test examples.
    """
    count = num_classes or int(max(labels.max(), test_labels.max())) + 1
    return topk_accuracy(fit_classifier(features, labels, count).scores(test), test_labels.cpu())


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation (D,) float32; 0 for a constant feature, which so becomes 0."""
    std, mean = torch.std_mean(features.float(), dim=0, correction=0)
    return mean, torch.where(std > _CONSTANT * mean.abs(), 1 / std, 0.0)


def _standardised(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (features.float() - mean).mul_(scale)


def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # In this order both products, forward and backward, have the few classes as rows: four times faster on a CPU than
    # features @ weight.T (1,271 x 2,000 features, 10 classes, MKL).
    return (weight @ features.T).T + bias


@torch.enable_grad()
def _minimise(
    features: Tensor, labels: Tensor, start: tuple[Tensor, Tensor], *, l2: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of least objective, searched from `start`."""
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=_GRADIENT, history_size=20, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(_logits(features, weight, bias), labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weight.detach(), bias.detach()
