"""Is one classifier better than another on the same test images? Paired tests over images, seeds and draws of labels.

Knows answers that were right or wrong, no model and no file. Shares and differences are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from cl_core.errors import DataError

RESAMPLES = 2000
_CHUNK = 200  # resamples at a time, so that their weights stay small

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Which of N test images were classified rightly: for each seed an array (D, N) bool, a row per draw of labels."""

    seeds: tuple[Flags, ...]

    def __post_init__(self) -> None:
        """Raises DataError without an answer, and for seeds that were judged on different numbers of images."""
        widths = {flags.shape[1] for flags in self.seeds}
        if len(widths) != 1 or 0 in widths or any(len(flags) == 0 for flags in self.seeds):
            raise DataError(f"runs were judged on {sorted(widths)} images; all need the same, at least one")

    @property
    def images(self) -> int:
        """N."""
        return self.seeds[0].shape[1]

    @property
    def is_single(self) -> bool:
        """Whether there is one seed with one draw."""
        return len(self.seeds) == 1 and len(self.seeds[0]) == 1

    @property
    def accuracy(self) -> float:
        """Mean over seeds of the mean over draws, a share in [0, 1]."""
        return float(np.mean([flags.mean() for flags in self.seeds]))

    @cached_property
    def resampled(self) -> Floats:
        """(2000,) accuracies under the hierarchical bootstrap: seeds, draws of each seed, and images with replacement.

        Runs over the same images meet the same images in resample k; those of as many seeds the same seeds, and of as
        many draws the same draws. So differences of two are paired.
        """
        stacked = np.concatenate(self.seeds).astype(np.float32).T
        counts = _image_counts(self.images)
        pieces = [counts[k : k + _CHUNK].astype(np.float32) @ stacked for k in range(0, RESAMPLES, _CHUNK)]
        hits = np.concatenate(pieces).astype(np.float64)  # (2000, runs), whole numbers
        means: Floats = (hits * _run_weights(tuple(len(flags) for flags in self.seeds))).sum(1) / self.images
        return means


@dataclass(frozen=True)
class Difference:
    """Of two accuracies, with its 95 % interval and the two-sided p value of no difference; `test` names the test."""

    value: float
    low: float
    high: float
    p: float
    test: str


def paired_difference(ours: Runs, other: Runs) -> Difference:
    """How much better `ours` is, over the same images in the same order.

    One run each: McNemar's exact test, with the interval of the bootstrap over images. Otherwise the hierarchical
    bootstrap over seeds, draws and images (2,000 resamples), whose p value is twice the share of resamples on the far
    side of 0, counting the data as one resample, or, where none is there, the tail of a normal distribution with their
    mean and deviation, so that a correction for many comparisons does not hide what is plain. Raises DataError for
    different numbers of images.
    """
    if ours.images != other.images:
        raise DataError(
            f"a paired test needs the same images, but there are {ours.images} and {other.images}; compare runs on the "
            "same test split"
        )
    differences = ours.resampled - other.resampled
    low, high = np.quantile(differences, [0.025, 0.975])
    value = ours.accuracy - other.accuracy
    if ours.is_single and other.is_single:
        import torch  # a second, which reports without such a pair save

        from cl_core.measures.metrics import mcnemar

        p = mcnemar(torch.from_numpy(ours.seeds[0][0]), torch.from_numpy(other.seeds[0][0]))
        return Difference(value, float(low), float(high), p, f"McNemar's test on {ours.images:,} images")
    return Difference(value, float(low), float(high), _bootstrap_p(differences), _name(ours, other))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for testing several times, in the given order (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1; none falls below a smaller one's, none exceeds 1.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p_values[k]))
        corrected[k] = floor
    return corrected


def _bootstrap_p(differences: Floats) -> float:
    """Twice the share of resamples on the far side of 0; where none is there, the normal tail, which has no floor."""
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + len(differences)))
    deviation = float(differences.std())
    if beyond or deviation == 0:
        return p
    return min(p, math.erfc(abs(float(differences.mean())) / deviation / math.sqrt(2)))


def _name(ours: Runs, other: Runs) -> str:
    seeds = max(len(ours.seeds), len(other.seeds))
    draws = max(len(flags) for flags in (*ours.seeds, *other.seeds))
    over = [f"{seeds} seeds"] * (seeds > 1) + [f"{draws} draws of labels"] * (draws > 1)
    return f"paired bootstrap over {', '.join(over)} and {ours.images:,} images"


@lru_cache(maxsize=2)
def _image_counts(images: int) -> NDArray[np.uint8]:
    """(2000, N): how often each image is in each resample."""
    rng = np.random.default_rng(0)
    counts = np.empty((RESAMPLES, images), dtype=np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    return counts


@lru_cache(maxsize=64)
def _run_weights(draws: tuple[int, ...]) -> Floats:
    """(2000, sum of draws): what each run counts in each resample, rows of sum 1. draws: how many each seed has."""
    seeds = np.random.default_rng([1, len(draws)]).integers(len(draws), size=(RESAMPLES, len(draws)))
    weights = []
    for seed, count in enumerate(draws):
        picks = np.random.default_rng([2, seed, count]).multinomial(count, [1 / count] * count, size=RESAMPLES)
        weights.append(picks / count * (seeds == seed).sum(1, keepdims=True) / len(draws))
    return np.concatenate(weights, axis=1)
