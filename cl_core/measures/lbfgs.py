"""Minimise a smooth function of a vector by limited-memory BFGS (Nocedal and Wright 2006, chapter 7).

For functions that have been scaled so that their curvature is about one: then the whole step is right at once, where
`torch.optim.LBFGS` begins every search with a tiny one, and the gradient tells how far above the minimum one is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]  # point (P,) -> value, gradient (P,)

_HISTORY = 10
_SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo)
_ROUNDING = 1e-7  # relative error of a value summed in float32, which no step can be asked to beat
_HALVINGS = 20


def minimise(objective: Objective, start: Tensor, *, excess: float, max_iter: int) -> Tensor:
    """The point at which the objective is estimated to exceed its minimum by less than `excess`.

    The estimate is half the squared length of the gradient, exact for a curvature of one. One evaluation per iteration,
    plus one for every halving of a step. Stops after max_iter iterations, or where no step gets any lower.
    """
    point = start
    value, gradient = objective(point)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=_HISTORY)
    for _ in range(max_iter):
        if float(gradient.dot(gradient)) / 2 < excess:
            break
        found = _search(objective, point, value, gradient, -_inverse_hessian(pairs, gradient))
        if found is None:
            break
        moved, reached, turned = found
        if reached >= value and float(turned.norm()) >= float(gradient.norm()):
            break  # what is left is rounding
        step, change = moved - point, turned - gradient
        if float(step.dot(change)) > 0:  # else the update would lose positive definiteness
            pairs.append((step, change))
        point, value, gradient = moved, reached, turned
    return point


def _search(
    objective: Objective, point: Tensor, value: float, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """The first of the steps 1, 1/2, 1/4, ... that decreases enough: point, value, gradient; None where none does."""
    slope = float(gradient.dot(direction))
    size = 1.0
    for _ in range(_HALVINGS):
        moved = point + size * direction
        reached, turned = objective(moved)
        if reached <= value + _SUFFICIENT * size * slope + _ROUNDING * abs(value):
            return moved, reached, turned
        size /= 2
    return None


def _inverse_hessian(pairs: deque[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The gradient times the estimated inverse Hessian: the two-loop recursion, algorithm 7.4."""
    result = gradient
    weights = []
    for step, change in reversed(pairs):
        weights.append(step.dot(result) / step.dot(change))
        result = result - weights[-1] * change
    if pairs:
        step, change = pairs[-1]
        result = result * (step.dot(change) / change.dot(change))
    for (step, change), weight in zip(pairs, reversed(weights), strict=True):
        result = result + (weight - change.dot(result) / step.dot(change)) * step
    return result
