"""Multinomial logistic regression on given features: how well a linear classifier tells one kind from another.

Features are standardised with the statistics of those it is fitted on. The objective is

    mean over examples of cross-entropy + l2 / 2 * sum of squared weights (biases are not penalised),

scikit-learn's LogisticRegression with C = 1 / (l2 * n), minimised by full-batch L-BFGS from zero, so that the same
features give the same classifier. Knows neither images nor splits.

The search runs in coordinates in which the curvature is about one. The Hessian is bounded by a multiple of the
features' Gram matrix (Boehning 1992, "Multinomial logistic regression algorithm"); with c the mean of that multiple
where the search begins, and L the Cholesky factor of c * Gram / n + l2, they are weight @ L. Correlated features, on
which plain L-BFGS needs hundreds of passes, then cost no more than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_core.measures.lbfgs import minimise
from cl_core.measures.metrics import topk_accuracy

_CONSTANT = 1e-6  # a feature whose standard deviation is below this share of its mean says nothing
_EXCESS = 1e-7  # nats per example above the minimum, by estimate, at which the search stops
_ROUNDING = 1e-7  # of the Gram matrix, relative to its trace
_FLAT = 1e-6  # least curvature reckoned with: where all answers are certain there is next to none
_BLOCK = 1024  # rows multiplied at a time
_CHUNK_VALUES = 1 << 24  # features looked at together: their logits are not to fill the memory


@dataclass(frozen=True)
class Classifier:
    """Standardisation and a linear map: mean and scale (D,), weight (C, D), bias (C,), all on one device."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Logits (N, C) on the CPU of features (N, D) of any float type and device."""
        standard = standardised(features.to(self.mean.device), self.mean, self.scale)
        return torch.addmm(self.bias, standard, self.weight.T).cpu()


@torch.no_grad()
def fit_classifiers(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalties: Sequence[float],
    *,
    max_iter: int = 200,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Iterator[Classifier]:
    """One classifier per penalty, in the given order, each search starting from the solution before it.

    features: (N, D) of any float type. labels: (N,) int64 in [0, num_classes) on the same device. statistics: what
    features are standardised by, see `statistics_of`; by default their own.
    """
    mean, scale = statistics or statistics_of(features)
    problem = _Problem(standardised(features, mean, scale), labels, num_classes)
    weight, bias = problem.zeros
    for l2 in penalties:
        weight, bias = problem.solve(weight, bias, l2=l2, max_iter=max_iter)
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


def statistics_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation (D,) float32; 0 for a constant feature, which so becomes 0."""
    std, mean = torch.std_mean(features.float(), dim=0, correction=0)
    return mean, torch.where(std > _CONSTANT * mean.abs(), 1 / std, 0.0)


def standardised(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (features.float() - mean).mul_(scale)


def _sum_of_products(slopes: Tensor, features: Tensor) -> Tensor:
    """slopes.T @ features, (R, C) and (R, D) -> (C, D), for few columns C.

    Block by block, in which CPUs take half as long as for the whole, and a twentieth of (features.T @ slopes).T.
    """
    rows = len(features) // _BLOCK * _BLOCK
    blocks = slopes[:rows].unflatten(0, (-1, _BLOCK)).mT @ features[:rows].unflatten(0, (-1, _BLOCK))
    return torch.addmm(blocks.sum(dim=0), slopes[rows:].T, features[rows:])


class _Problem:
    """Standardised features (N, D) with labels (N,), and what all penalties share."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        rows = max(1, _CHUNK_VALUES // features.shape[1])
        self.chunks = list(zip(features.split(rows), labels[:, None].split(rows), strict=True))
        self.count = len(features)
        self.gram = features.T @ features / self.count
        self.zeros = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)

    def solve(self, weight: Tensor, bias: Tensor, *, l2: float, max_iter: int) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of least objective, searched from the given ones."""
        scaling = _Scaling(self.gram, self.curvature(weight, bias), l2)

        def objective(points: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = scaling.parameters(points[0])
            value, *slopes = self.cross_entropy(weight, bias)
            value += l2 / 2 * float(weight.square().sum())
            gradient = scaling.gradient(slopes[0] + l2 * weight, slopes[1])
            return torch.tensor([value], dtype=torch.float64, device=gradient.device), gradient[None]

        start = scaling.point(weight, bias)[None]
        return scaling.parameters(minimise(objective, start, excess=_EXCESS, max_iter=max_iter)[0])

    def cross_entropy(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Mean over the examples, and its gradients in weight and bias."""
        total = 0.0
        of_weight, of_bias = (zero.clone() for zero in self.zeros)
        for features, labels in self.chunks:
            logits = torch.addmm(bias, features, weight.T)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += float((normaliser - logits.gather(1, labels)).sum(dtype=torch.float64))
            slopes = logits.sub_(normaliser).exp_()
            slopes.scatter_(1, labels, slopes.gather(1, labels) - 1)
            of_weight += _sum_of_products(slopes, features)
            of_bias += slopes.sum(dim=0)
        return total / self.count, of_weight / self.count, of_bias / self.count

    def curvature(self, weight: Tensor, bias: Tensor) -> float:
        """Mean eigenvalue of the Hessian in an example's logits, leaving out the direction of equal logits."""
        total = 0.0
        for features, _ in self.chunks:
            probabilities = torch.addmm(bias, features, weight.T).softmax(dim=1)
            total += float((1 - probabilities.square().sum(dim=1)).sum(dtype=torch.float64))
        return max(_FLAT, total / self.count / max(1, len(bias) - 1))


class _Scaling:
    """Between weight (C, D), bias (C,) and the point (C * D + C,) of unit curvature that stands for them."""

    def __init__(self, gram: Tensor, curvature: float, l2: float) -> None:
        identity = torch.eye(len(gram), device=gram.device)
        diagonal = l2 + curvature * _ROUNDING * float(gram.trace())
        self.factor = torch.linalg.cholesky(curvature * gram + diagonal * identity)
        # Worth its cost: a product with it is several times faster than solving for the few rows of the weight.
        self.inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        self.bias_factor = curvature**0.5

    def point(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([(weight @ self.factor).flatten(), bias * self.bias_factor])

    def parameters(self, point: Tensor) -> tuple[Tensor, Tensor]:
        size = len(self.factor)
        split = len(point) // (size + 1) * size
        return point[:split].view(-1, size) @ self.inverse, point[split:] / self.bias_factor

    def gradient(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of a function of the point, from its gradients in weight and bias."""
        return torch.cat([(weight @ self.inverse.T).flatten(), bias / self.bias_factor])
