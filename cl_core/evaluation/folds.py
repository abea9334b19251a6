"""Splits of a few labels into those that are learnt from and those that a choice is made on.

Choices are made inside the given labels, so that twelve labels are twelve. Every class keeps its share in every fold,
and a group is never on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

MANY = 512  # labels, beyond which one held-out fold tells enough


@dataclass(frozen=True)
class Fold:
    """(n,) and (m,) positions among the given labels, in ascending order; they share none."""

    learnt: np.ndarray
    held: np.ndarray


def stratified_folds(labels: np.ndarray, count: int, seed: int, groups: np.ndarray | None = None) -> list[Fold]:
    """Up to `count` folds of (N,) labels, the held-out parts disjoint; of more than 512 labels the first alone.

    A class with one label (or in one group alone) is always learnt from. No folds where no class has two. There are no
    more folds than the smallest other class has labels.
    """
    units = np.arange(len(labels)) if groups is None else groups
    sizes = {label: len(np.unique(units[labels == label])) for label in np.unique(labels)}
    divisible = [label for label, size in sizes.items() if size > 1]
    if not divisible:
        return []
    rows = np.flatnonzero(np.isin(labels, divisible))
    parts = min(count, *(sizes[label] for label in divisible))
    held = _held(labels[rows], None if groups is None else groups[rows], parts, seed)
    everything = np.arange(len(labels))
    folds = [Fold(np.setdiff1d(everything, rows[part]), rows[part]) for part in held if len(part)]
    if groups is not None:  # what is always learnt from may belong to a held-out group through another class
        folds = [Fold(fold.learnt[~np.isin(groups[fold.learnt], groups[fold.held])], fold.held) for fold in folds]
    return folds[:1] if len(labels) > MANY else folds


def _held(labels: np.ndarray, groups: np.ndarray | None, parts: int, seed: int) -> Sequence[np.ndarray]:
    if groups is None:
        splitter = StratifiedKFold(parts, shuffle=True, random_state=seed)
        return [held for _, held in splitter.split(labels, labels)]
    grouped = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return [held for _, held in grouped.split(labels, labels, groups)]
