"""Which labels a few-label experiment may see: nested class-balanced subsets, a function of keys and labels alone.

No chance and no file lists: adding an image changes few of the subsets' members, and every run sees the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cl_core.data.splits import hash_words


def nested_subsets(keys: Sequence[str], labels: np.ndarray, fractions: Sequence[float]) -> dict[str, np.ndarray]:
    """{"0.01": (n,) rows in ascending order, ...}: class-balanced subsets of the labelled examples, small to large.

    Every class gives equally many, those of smallest key hash, as long as it has them: as many as fit into the
    fraction, but at least one. So a smaller subset lies inside a larger one, and 1.0 is everything that has a label.
    """
    hashes = np.array([hash_words(key)[3] for key in keys], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    ranked = [order[labels[order] == label] for label in np.unique(labels[labels >= 0])]
    sizes = np.array([len(rows) for rows in ranked])
    chosen = {}
    for fraction in sorted(set(fractions)):
        per_class = _per_class(sizes, round(fraction * int(sizes.sum())))
        chosen[str(float(fraction))] = np.sort(np.concatenate([rows[:per_class] for rows in ranked]))
    return chosen


def different_subsets(subsets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each subset once, under its smallest fraction. They are nested, so equal sizes are equal subsets."""
    different: dict[int, str] = {}
    for name, rows in subsets.items():
        different.setdefault(len(rows), name)
    return {name: subsets[name] for name in different.values()}


def _per_class(sizes: np.ndarray, budget: int) -> int:
    """The largest quota q >= 1 for which the sum of min(size, q) over classes is within the budget."""
    quotas = np.arange(1, sizes.max() + 1)
    totals = np.minimum(sizes[None], quotas[:, None]).sum(axis=1)
    return max(1, int(np.searchsorted(totals, budget, side="right")))
