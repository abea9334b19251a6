"""How many labels does a reference need for the accuracy that we reach with n? Read off the measured curves.

Knows accuracies at label budgets, no model and no file. Accuracies are shares in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cl_core.errors import DataError
from cl_core.measures.paired import Runs


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
    curve = isotonic(accuracies)
    reached = np.flatnonzero(curve >= accuracy)
    if len(reached) == 0:
        return math.inf
    k = int(reached[0])
    if k == 0:
        return float(labels[0])
    share = (accuracy - curve[k - 1]) / (curve[k] - curve[k - 1])
    return float(labels[k - 1] * (labels[k] / labels[k - 1]) ** share)


def isotonic(values: Sequence[float]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to (n,) values in squares, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []  # mean, length
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((m * a + n * b) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in blocks], [length for _, length in blocks])


def labels_saved(ours: Runs, reference: Sequence[tuple[int, Runs]]) -> Needed:
    """How many labels the reference needs for the accuracy of `ours`.

    reference: its runs at ascending numbers of labels, on the same test images. The interval is that of the
    hierarchical bootstrap over seeds, draws and images, the same images for all.
    """
    labels = [count for count, _ in reference]
    needed = labels_needed(ours.accuracy, labels, [runs.accuracy for _, runs in reference])
    curves = np.stack([runs.resampled for _, runs in reference], axis=1)
    resamples = zip(ours.resampled, curves, strict=True)
    found = sorted(labels_needed(float(accuracy), labels, list(curve)) for accuracy, curve in resamples)
    low, high = (found[round(q * (len(found) - 1))] for q in (0.025, 0.975))
    return Needed(needed, low, high, least=labels[0], most=labels[-1])
