"""How many labels does a reference need for the accuracy that we reach with n? Read off the measured curves.

Knows accuracies at label budgets, no model and no file. Accuracies are shares in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cl_core.errors import DataError
from cl_core.measures.paired import Floats, Runs


@dataclass(frozen=True)
class Needed:
    """Labels that a reference needs for an accuracy, with a 95 % interval; infinite where more than the curve has.

    most, least: labels at the ends of the reference's curve, beyond which nothing was measured.
    """

    labels: float
    low: float
    high: float
    least: int
    most: int


def labels_needed(accuracy: float, labels: Sequence[int], accuracies: Sequence[float]) -> float:
    """The smallest m with reference(m) >= accuracy; math.inf where no measured budget is enough.

    labels: ascending budgets, at least one. accuracies: of the reference at each. The curve is made monotone by
    isotonic regression and is linear in log m between budgets. What the first budget already reaches gives the first
    budget: less was not measured. Raises DataError for budgets that do not ascend.
    """
    if len(labels) != len(accuracies) or not labels or any(b <= a for a, b in pairwise(labels)):
        raise DataError(f"budgets {list(labels)} with {len(accuracies)} accuracies are no curve; give one per budget")
    return float(_read_off(np.array([accuracy]), labels, np.array([accuracies], dtype=np.float64))[0])


def isotonic(values: Floats) -> Floats:
    """The non-decreasing sequences nearest to values (n, B) in squares, row by row.

    Place k of the fit is the largest, over starts up to k, of the smallest mean from there to an end from k on.
    """
    places = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), values.cumsum(1)], axis=1)

    def at(k: int) -> Floats:
        lowest = [
            np.min([(sums[:, end] - sums[:, start]) / (end - start) for end in range(k + 1, places + 1)], axis=0)
            for start in range(k + 1)
        ]
        return np.asarray(np.max(lowest, axis=0))

    return np.stack([at(k) for k in range(places)], axis=1)


def labels_saved(ours: Runs, reference: Sequence[tuple[int, Runs]]) -> Needed:
    """How many labels the reference needs for the accuracy of `ours`.

    reference: its runs at ascending numbers of labels, on the same test images. The interval is that of the
    hierarchical bootstrap over seeds, draws and images, the same images for all.
    """
    labels = [count for count, _ in reference]
    needed = labels_needed(ours.accuracy, labels, [runs.accuracy for _, runs in reference])
    found = np.sort(_read_off(ours.resampled, labels, np.stack([runs.resampled for _, runs in reference], axis=1)))
    low, high = (float(found[round(q * (len(found) - 1))]) for q in (0.025, 0.975))
    return Needed(needed, low, high, least=labels[0], most=labels[-1])


def _read_off(accuracies: Floats, labels: Sequence[int], curves: Floats) -> Floats:
    """(n,) labels at which each curve of (n, B) reaches each of (n,) accuracies."""
    curves = isotonic(curves)
    reached = curves >= accuracies[:, None] - 1e-12  # sums of the same answers in another order are equal
    end = reached.argmax(1)
    start, rows = np.maximum(end - 1, 0), np.arange(len(curves))
    low, high = curves[rows, start], curves[rows, end]
    logs = np.log(np.array(labels, dtype=np.float64))
    share = (accuracies - low) / np.where(high > low, high - low, 1.0)
    between = np.exp(logs[start] + share * (logs[end] - logs[start]))
    first: Floats = np.where(end == 0, float(labels[0]), between)
    return np.where(reached.any(1), first, math.inf)
