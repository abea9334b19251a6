"""Which labels a few-label experiment may see: nested class-balanced draws, a function of keys and labels alone.

No file lists: adding an image changes few of the draws' members, and every run sees the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cl_core.data.splits import hash_words

ALL = "all"  #: the budget of every label


@dataclass(frozen=True)
class Budget:
    """A number of labels and the draws that have it.

    name: "4" for labels per class, "0.01" for a share, "all". draws: (n,) rows of the split in ascending order, each.
    same_as: the smaller budget that selects the same labels, "" where none does.
    """

    name: str
    draws: tuple[np.ndarray, ...]
    same_as: str = ""

    @property
    def labels(self) -> int:
        """Of a draw."""
        return len(self.draws[0])


class Drawing:
    """Labelled examples in the order in which they are drawn.

    keys: N names. labels: (N,) int64, -1 for none. groups: (N,) int64, equal for examples that belong together, or
    None; the members of a group in a class are drawn one after the other, and whole.
    """

    def __init__(self, keys: Sequence[str], labels: np.ndarray, groups: np.ndarray | None = None) -> None:
        self.keys, self.labels, self.groups = keys, labels, groups
        self.classes = np.unique(labels[labels >= 0])
        self.sizes = np.array([int((labels == label).sum()) for label in self.classes])
        self._orders: dict[int, list[np.ndarray]] = {}  # of each draw, which every budget asks for

    def of(self, budget: int | float | str) -> np.ndarray:
        """(n,) rows in ascending order of a budget's first draw: labels per class, a share, or "all"."""
        return self.per_class(self.count(budget))

    def count(self, budget: int | float | str) -> int:
        """Labels per class that a budget asks for."""
        if budget == ALL:
            return int(self.sizes.max())
        return budget if isinstance(budget, int) else self.quota(float(budget))

    def per_class(self, count: int, draw: int = 0) -> np.ndarray:
        """(n,) rows in ascending order: of every class `count` examples, or all where it has fewer.

        A smaller count selects a part of what a larger one does. Of groups at least one is taken, and no more than fit.
        """
        return np.sort(np.concatenate([self._first(rows, count) for rows in self._ranked(draw)]))

    def share(self, share: float, draw: int = 0) -> np.ndarray:
        """The same for a share of all labels: as many of every class as fit into it, but at least one."""
        return self.per_class(self.quota(share), draw)

    def quota(self, share: float) -> int:
        """The largest count >= 1 for which all classes together are within a share of all labels."""
        counts = np.arange(1, self.sizes.max() + 1)
        totals = np.minimum(self.sizes[None], counts[:, None]).sum(axis=1)
        return max(1, int(np.searchsorted(totals, round(share * int(self.sizes.sum())), side="right")))

    def _ranked(self, draw: int) -> list[np.ndarray]:
        """The rows of each class as they are drawn."""
        if draw not in self._orders:
            self._orders[draw] = self._by_hash(draw)
        return self._orders[draw]

    def _by_hash(self, draw: int) -> list[np.ndarray]:
        """The rows of each class by hash, of the group first."""
        prefix = f"draw {draw}: " if draw else ""  # the first is the order that a subset of the data has as well
        ranks = [np.array([hash_words(prefix + key)[3] for key in self.keys], dtype=np.uint64)]
        if self.groups is not None:
            ranks.append(np.array([hash_words(f"{prefix}group {group}")[3] for group in self.groups], dtype=np.uint64))
        order = np.lexsort(ranks)
        return [order[self.labels[order] == label] for label in self.classes]

    def _first(self, rows: np.ndarray, count: int) -> np.ndarray:
        if self.groups is None or len(rows) <= count:
            return rows[:count]
        ends = np.append(np.flatnonzero(np.diff(self.groups[rows])) + 1, len(rows))
        fitting = ends[ends <= count]
        return rows[: fitting[-1] if len(fitting) else ends[0]]


def budgets(drawing: Drawing, *, per_class: Sequence[int | str], shares: Sequence[float], draws: int) -> list[Budget]:
    """Small to large. per_class: counts, or "all". draws: of the smallest.

    Where a budget takes all labels there is one draw, see `draws_of` for the others.
    """
    counts = {str(budget): drawing.count(budget) for budget in (*per_class, *map(float, shares))}
    ordered = sorted(counts.items(), key=lambda item: min(item[1], int(drawing.sizes.max())))
    found: list[Budget] = []
    for name, count in ordered:
        rows = drawing.per_class(count)
        same = next((known.same_as or known.name for known in found if known.labels == len(rows)), "")
        first = found[0].labels if found else len(rows)
        wanted = 1 if len(rows) == drawing.sizes.sum() else draws_of(len(rows), first, draws)
        found.append(Budget(name, (rows, *(drawing.per_class(count, draw) for draw in range(1, wanted))), same))
    return found


def draws_of(labels: int, smallest: int, draws: int) -> int:
    """How often so many labels are drawn, where the smallest budget is drawn `draws` times.

    Falls with the square root of the labels, as the spread between draws does.
    """
    return max(1, math.ceil(draws / math.sqrt(labels / smallest)))
