"""Multinomial logistic regression on fewer examples than features, many at a time, exactly.

The objective is that of `cl_core.measures.logistic`: mean cross-entropy + l2 / 2 * sum of squared weights, biases free.
Its solution lies in the span of the examples, so that n examples of D features are as good as n of n: with the
eigenvectors U and eigenvalues s^2 of their Gram matrix, the rows of U * s. There the features do not correlate, and
dividing each by its share of the Hessian's bound (Boehning 1992) leaves a curvature of about one. Problems of different
sizes are padded with examples that weigh nothing and solved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cl_core.measures.lbfgs import minimise

_EXCESS = 1e-8  # nats per example above the minimum, by estimate
_FLAT = 1e-6  # least curvature reckoned with: where all answers are certain there is next to none
_NOTHING = 1e-10  # eigenvalue, relative to the largest, of a direction that the examples do not have


@dataclass(frozen=True)
class Solution:
    """Of one problem. rows: (n,) of the Gram matrix. dual: (C, n): weight = dual @ features[rows]. bias: (C,)."""

    rows: Tensor
    dual: Tensor
    bias: Tensor

    def scores(self, gram: Tensor, rows: Tensor) -> Tensor:
        """Logits (m, C) of other rows of the Gram matrix."""
        return gram[rows][:, self.rows] @ self.dual.T + self.bias


@torch.no_grad()
def solve(
    gram: Tensor, labels: Tensor, problems: Sequence[Tensor], costs: Sequence[float], *, num_classes: int, max_iter: int
) -> list[list[Solution]]:
    """A list per problem, with a solution for each cost, which is scikit-learn's C: l2 = 1 / (C * n).

    gram: (N, N) inner products of standardised examples, float64. labels: (N,) int64. problems: (n,) rows each.
    Searches run from small C to large, each from the solution before it; solutions come in the order of `costs`.
    """
    batch = _Batch(gram, labels, problems, num_classes)
    found: dict[float, list[Solution]] = {}
    weight = batch.coordinates.new_zeros(len(problems), num_classes, batch.coordinates.shape[2])
    bias = batch.coordinates.new_zeros(len(problems), num_classes)
    for cost in sorted(costs):
        weight, bias = batch.search(weight, bias, cost, max_iter)
        found[cost] = batch.solutions(weight, bias)
    return [[found[cost][number] for cost in costs] for number in range(len(problems))]


class _Batch:
    """B problems of at most n examples: coordinates (B, n, n), eigenvalues (B, n), shares of the mean (B, n)."""

    def __init__(self, gram: Tensor, labels: Tensor, problems: Sequence[Tensor], num_classes: int) -> None:
        self.problems, self.sizes = problems, gram.new_tensor([len(rows) for rows in problems])
        largest = max(len(rows) for rows in problems)
        shape = len(problems), largest
        self.coordinates, self.dual_of = (gram.new_zeros(*shape, largest) for _ in range(2))
        self.eigenvalues, self.shares = gram.new_zeros(shape), gram.new_zeros(shape)
        self.targets = gram.new_zeros(*shape, num_classes)
        for number, rows in enumerate(problems):
            count = len(rows)
            values, vectors = torch.linalg.eigh(gram[rows][:, rows])
            values = torch.where(values > _NOTHING * values[-1], values, 0.0)
            self.coordinates[number, :count, :count] = vectors * values.sqrt()
            inverse = torch.where(values > 0, values.rsqrt(), 0.0)
            self.dual_of[number, :count, :count] = (vectors * inverse).T  # (direction, example)
            self.eigenvalues[number, :count], self.shares[number, :count] = values, 1 / count
            self.targets[number, :count] = one_hot(labels[rows], num_classes).to(gram.dtype)

    def search(self, weight: Tensor, bias: Tensor, cost: float, max_iter: int) -> tuple[Tensor, Tensor]:
        """Weights (B, C, n) and biases (B, C) of least objective."""
        l2 = 1 / (cost * self.sizes)
        curvature = self.curvature(weight, bias)
        scale = (curvature * self.eigenvalues / self.sizes[:, None] + l2[:, None]).sqrt()[:, None]  # (B, 1, n)
        bias_scale = curvature.sqrt()  # (B, 1)

        def parameters(points: Tensor) -> tuple[Tensor, Tensor]:
            points = points.view(len(points), weight.shape[1], -1)
            return points[..., :-1] / scale, points[..., -1] / bias_scale

        def objective(points: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = parameters(points)
            logits = self.coordinates @ weight.mT + bias[:, None]
            normaliser = logits.logsumexp(dim=2)
            losses = (normaliser - (logits * self.targets).sum(dim=2)) * self.shares
            values = losses.sum(dim=1) + l2 / 2 * weight.square().sum(dim=(1, 2))
            slopes = ((logits - normaliser[..., None]).exp() - self.targets) * self.shares[..., None]
            of_weight = (slopes.mT @ self.coordinates + l2[:, None, None] * weight) / scale
            of_bias = slopes.sum(dim=1) / bias_scale
            return values, torch.cat([of_weight, of_bias[..., None]], dim=2).flatten(1)

        start = torch.cat([weight * scale, (bias * bias_scale)[..., None]], dim=2).flatten(1)
        return parameters(minimise(objective, start, excess=_EXCESS, max_iter=max_iter))

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, 1): mean eigenvalue of the Hessian in an example's logits, leaving out the direction of equal logits."""
        probabilities = (self.coordinates @ weight.mT + bias[:, None]).softmax(dim=2)
        spread = ((1 - probabilities.square().sum(dim=2)) * self.shares).sum(dim=1, keepdim=True)
        return (spread / max(1, weight.shape[1] - 1)).clamp(min=_FLAT)

    def solutions(self, weight: Tensor, bias: Tensor) -> list[Solution]:
        duals = weight @ self.dual_of
        return [
            Solution(rows, duals[number, :, : len(rows)], bias[number]) for number, rows in enumerate(self.problems)
        ]
