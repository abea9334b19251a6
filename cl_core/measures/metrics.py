"""Accuracies with their uncertainty: top-k, balanced, a bootstrap interval for one run, McNemar's test between two.

Knows scores and labels, no model and no file. Accuracies are shares in [0, 1].
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from torch import Tensor

from cl_core.errors import DataError


def topk_classes(scores: Tensor, k: int = 1) -> Tensor:
    """The classes of highest score, best first: scores (N, C), not NaN -> (N, min(k, C)) int64.

    Of equal scores the lower class number comes first, on every device.
    """
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k]


def topk_correct(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """(N,) bool: whether the label is among `topk_classes`; labels (N,) int64 in [0, C)."""
    return (topk_classes(scores, k) == labels[:, None]).any(dim=1)


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of the N >= 1 examples whose label is among the k best, see `topk_correct`; 1 where k >= C.

    Raises DataError without examples.
    """
    if len(labels) == 0:
        raise DataError("an accuracy over 0 examples is undefined; give the split at least one labelled image")
    return share(topk_correct(scores, labels, k))


def share(correct: Tensor) -> float:
    """Part of (N,) bool that is true, rounded once (an integer count divided by N)."""
    return int(correct.sum()) / len(correct)


def balanced_share(correct: Tensor, labels: Tensor) -> float:
    """Mean over the classes that are present of the share of each that is true: (N,) bool, (N,) int64, N >= 1.

    Balanced accuracy, where `correct` says which examples are classified rightly: one over the number of classes for
    a constant answer, however unbalanced they are.
    """
    return statistics.fmean(share(correct[labels == label]) for label in labels.unique().tolist())


def accuracy_figures(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """{"top1": share, "top1_ci95": [low, high], "balanced_top1": share} of scores (N, C) for labels (N,), N >= 1."""
    correct = topk_correct(scores, labels)
    return {
        "top1": share(correct),
        "top1_ci95": list(bootstrap_interval(correct)),
        "balanced_top1": balanced_share(correct, labels),
    }


def imbalance(labels: Tensor) -> float:
    """How many times as many examples the largest class has as the smallest that is present: (N,) int64, N >= 1."""
    counts = labels.unique(return_counts=True)[1]
    return int(counts.max()) / int(counts.min())


def bootstrap_interval(correct: Tensor, seed: int = 0, n: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of an accuracy: (low, high), shares in [0, 1].

    correct: (N,) bool, N >= 1. n: number of resamples. A resample of N yes-or-no outcomes with replacement has a
    binomial number of hits, so the counts are drawn directly. Deterministic for a seed and a version of numpy.
    """
    counts = np.random.default_rng(seed).binomial(len(correct), share(correct), size=n)
    low, high = np.quantile(counts / len(correct), [0.025, 0.975])
    return float(low), float(high)


def interval_over_draws(correct: Tensor, seed: int = 0, n: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean accuracy of several draws of labels: (low, high), in [0, 1].

    correct: (draws, N) bool over the same N >= 1 images. Each resample takes draws and images with replacement, so that
    the interval holds for other labels and for other images; with one draw it is `bootstrap_interval`'s.
    """
    if len(correct) == 1:
        return bootstrap_interval(correct[0], seed)
    hits = correct.numpy().astype(np.float64)
    rng, (draws, images) = np.random.default_rng(seed), hits.shape
    means = []
    for _ in range(n):
        weights = rng.multinomial(images, np.full(images, 1 / images))
        means.append((hits[rng.integers(0, draws, draws)] @ weights).mean() / images)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> float:
    """Two-sided exact p-value that two models are equally accurate, from (N,) bool over the same examples in order.

    Only examples on which exactly one is right count: under equality they fall either way like a fair coin (McNemar
    1947, exact binomial form). 1 where there are none. Raises DataError for different lengths.
    """
    if correct_a.shape != correct_b.shape:
        raise DataError(
            f"McNemar's test pairs examples, but there are {len(correct_a)} and {len(correct_b)}; "
            "compare runs on the same test split"
        )
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    n = only_a + only_b
    return min(1.0, 2 * _coin_tail(min(only_a, only_b), n))


def _coin_tail(k: int, n: int) -> float:
    """P(at most k heads in n tosses of a fair coin), in whole numbers up to one division."""
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return total / 2**n
