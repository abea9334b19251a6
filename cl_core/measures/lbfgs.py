"""Minimise smooth functions of vectors by limited-memory BFGS (Nocedal and Wright 2006, chapter 7), several at a time.

For functions that have been scaled so that their curvature is about one: then the whole step is right at once, where
`torch.optim.LBFGS` begins every search with a tiny one, and the gradient tells how far above the minimum one is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (B, P) -> values (B,) float64, gradients (B, P)

_HISTORY = 10
_SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo)
# Relative error of a value summed over many examples, which no step can be asked to beat.
_ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-14}
_HALVINGS = 20


class _State(NamedTuple):
    """Points (B, P), their values (B,) and gradients (B, P)."""

    points: Tensor
    values: Tensor
    gradients: Tensor

    def where(self, mask: Tensor, other: _State) -> _State:
        """This one for the problems of the mask (B,), the other for the rest."""
        return _State(
            torch.where(mask[:, None], self.points, other.points),
            torch.where(mask, self.values, other.values),
            torch.where(mask[:, None], self.gradients, other.gradients),
        )


class _Pair(NamedTuple):
    """A step and the change of the gradient along it, (B, P) each, and 1 / their product (B,), 0 for no information."""

    step: Tensor
    change: Tensor
    rho: Tensor


def minimise(objective: Objective, start: Tensor, *, excess: float, max_iter: int) -> Tensor:
    """(B, P): for each of B independent problems the point whose value is estimated to exceed its minimum by < excess.

    start: (B, P). The estimate is half the squared length of the gradient, exact for a curvature of one. One evaluation
    per iteration, plus one for every halving of a step. A problem rests when it is there, where no step gets any lower,
    or after max_iter iterations.
    """
    state = _State(start, *objective(start))
    active = torch.ones_like(state.values, dtype=torch.bool)
    pairs: deque[_Pair] = deque(maxlen=_HISTORY)
    for _ in range(max_iter):
        active &= _dot(state.gradients, state.gradients) / 2 >= excess
        if not bool(active.any()):
            break
        moved, found = _search(objective, state, -_inverse_hessian(pairs, state.gradients), active)
        longer = moved.gradients.norm(dim=1) >= state.gradients.norm(dim=1)
        active &= found & ~((moved.values >= state.values) & longer)  # what is left is rounding
        moved = moved.where(active, state)
        pairs.append(_pair(moved.points - state.points, moved.gradients - state.gradients))
        state = moved
    return state.points


def _search(objective: Objective, state: _State, directions: Tensor, active: Tensor) -> tuple[_State, Tensor]:
    """The first of the steps 1, 1/2, 1/4, ... that decreases enough, and whether there is one (B,)."""
    slopes = _dot(state.gradients, directions)
    reached, found, size = state, ~active, 1.0
    for _ in range(_HALVINGS):
        points = state.points + size * directions
        candidate = _State(points, *objective(points))
        bound = state.values + _SUFFICIENT * size * slopes + _ROUNDING[directions.dtype] * state.values.abs()
        enough = ~found & (candidate.values <= bound)
        reached, found = candidate.where(enough, reached), found | enough
        if bool(found.all()):
            break
        size /= 2
    return reached, found & active


def _pair(step: Tensor, change: Tensor) -> _Pair:
    product = _dot(step, change)
    return _Pair(step, change, torch.where(product > 0, 1 / product, 0.0))  # else the update would not stay definite


def _inverse_hessian(pairs: deque[_Pair], gradients: Tensor) -> Tensor:
    """The gradients times the estimated inverse Hessians: the two-loop recursion, algorithm 7.4."""
    result, weights = gradients, []
    for pair in reversed(pairs):
        weights.append(pair.rho * _dot(pair.step, result))
        result = result - weights[-1][:, None] * pair.change
    scale = torch.ones_like(gradients[:, 0])
    for pair in pairs:  # the latest that says something
        scale = torch.where(pair.rho > 0, 1 / (pair.rho * _dot(pair.change, pair.change)), scale)
    result = result * scale[:, None]
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        result = result + (weight - pair.rho * _dot(pair.change, result))[:, None] * pair.step
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) of (B, P) each."""
    return (a * b).sum(dim=1)
