"""Sets of permutations that are far apart in Hamming distance: the classes of a jigsaw puzzle.

Gather form throughout: row l says which cell each slot receives, `slot[k] = cell[row[k]]`, cells row-major, and the
first row is the identity. Every set is a pure function of its arguments. Two random permutations of nine already differ
in eight places on average; it is the smallest distance that makes puzzles unambiguous, so that is what to compare.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cl_core.errors import ConfigError

Rule = Literal["algebraic", "maxmin", "paper"]
Row = tuple[int, ...]

MAX_GREEDY_TILES = 9  # 9! = 362,880 candidates of 9 bytes; one more would need ten times as much


def permutation_set(tiles: int, size: int, rule: Rule = "algebraic") -> Tensor:
    """`size` different permutations of `tiles` cells: (size, tiles) int64.

    algebraic: subsets of groups, for 4 and 9 tiles, with a guaranteed smallest distance. 9 tiles: up to 9 rows differ
        everywhere, up to 72 (affine maps of GF(9)) in at least 8 places, up to 504 (Moebius maps of GF(8)) in 7, up to
        1,512 (with Frobenius) in 6; no larger set reaches 9, 8 or 7. 4 tiles: 4 rows differ everywhere, 12 (the even
        ones) in 3, all 24 in 2. In multiples of `tiles`, every cell comes to every slot equally often.
    maxmin: greedy, each new row the farthest from its nearest predecessor, ties by the sum of distances.
    paper: greedy by the sum alone (Noroozi & Favaro 2016, arXiv:1603.09246, algorithm 1), starting from the identity;
        its smallest distance is 2 or 3.

    Raises ConfigError where there are not that many permutations, or no such set for this number of tiles.
    """
    if not 2 <= size <= math.factorial(tiles):
        raise ConfigError(
            f"method.classes {size} is impossible: {tiles} tiles have {math.factorial(tiles)} orders; "
            f"choose 2 to {math.factorial(tiles)}"
        )
    if rule == "algebraic":
        return torch.tensor(_algebraic_rows(tiles, size))
    if tiles > MAX_GREEDY_TILES:
        raise ConfigError(f"method.rule {rule!r} searches all orders, too many for {tiles} tiles; use a smaller grid")
    return torch.from_numpy(_greedy_rows(tiles, size, rule).astype(np.int64))


def hamming_distances(table: Tensor) -> Tensor:
    """Number of slots in which two rows differ, for every pair of rows: (P, T) -> (P * (P - 1) / 2,) int64."""
    first, second = torch.triu_indices(len(table), len(table), offset=1)
    return (table[first] != table[second]).sum(dim=1)


def _greedy_rows(tiles: int, size: int, rule: Rule) -> np.ndarray:
    candidates = every_permutation(tiles)
    columns = np.ascontiguousarray(candidates.T)  # one slot after the other: each comparison is one streaming pass
    total = np.zeros(len(candidates), np.int32)
    nearest = np.full(len(candidates), tiles, np.uint8)
    chosen = [0]
    while len(chosen) < size:
        distance = _distance_to(columns, candidates[chosen[-1]])
        total += distance
        total[chosen[-1]] = -(tiles**2) * size  # never again, whatever is added
        np.minimum(nearest, distance, out=nearest)
        score = total if rule == "paper" else nearest * np.int32(tiles * size + 1) + total
        chosen.append(int(score.argmax()))
    return candidates[chosen]


def _distance_to(columns: np.ndarray, row: np.ndarray) -> np.ndarray:
    distance = np.zeros(columns.shape[1], np.uint8)
    for column, cell in zip(columns, row, strict=True):
        distance += column != cell
    return distance


def every_permutation(tiles: int) -> np.ndarray:
    """All orders of 0..tiles-1 in lexicographic order: (tiles!, tiles) uint8."""
    table = np.zeros((1, 1), np.uint8)
    for length in range(2, tiles + 1):
        # Behind each first element come the orders of the others, which skip that element.
        blocks = [np.insert(table + (table >= first), 0, first, axis=1) for first in range(length)]
        table = np.concatenate(blocks)
    return table


def _algebraic_rows(tiles: int, size: int) -> list[Row]:
    groups: dict[int, list[Callable[[], list[Row]]]] = {4: [_symmetric_4], 9: [_affine_9, _moebius_9]}
    if tiles not in groups:
        raise ConfigError(f"method.rule 'algebraic' knows sets for 4 and 9 tiles, not for {tiles}; use 'maxmin'")
    for group in groups[tiles]:
        rows = group()
        if len(rows) >= size:
            return rows[:size]
    raise ConfigError(
        f"method.classes {size} exceeds the largest algebraic set for {tiles} tiles, {len(rows)}; "
        f"choose at most that many, or rule 'maxmin'"
    )


def _symmetric_4() -> list[Row]:
    """All 24, the even ones first, each half in cosets of Klein's four-group."""
    klein = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)]
    orders = sorted(itertools.permutations(range(4)), key=lambda row: (_is_odd(row), row))
    return _in_cosets(orders, klein)


def _is_odd(row: Row) -> bool:
    return bool(sum(first > second for first, second in itertools.combinations(row, 2)) % 2)


def _affine_9() -> list[Row]:
    """AGL(1, 9): x -> a x + b over GF(9) = GF(3)[i], i^2 = -1; element u + v i is number u + 3 v. 72 rows."""

    def times(x: int, y: int) -> int:
        (b, a), (d, c) = divmod(x, 3), divmod(y, 3)
        return (a * c - b * d) % 3 + 3 * ((a * d + b * c) % 3)

    def plus(x: int, y: int) -> int:
        return (x + y) % 3 + 3 * ((x // 3 + y // 3) % 3)

    return [tuple(plus(times(a, x), b) for x in range(9)) for a in range(1, 9) for b in range(9)]


def _moebius_9() -> list[Row]:
    """PGL(2, 8), then the rest of PGammaL(2, 8): x -> (a x + b) / (c x + d) over GF(8) and infinity (8). 1,512 rows."""
    affine = [(a, b, 0, 1) for a in range(1, 8) for b in range(8)]
    broken = [(a, b, 1, d) for a in range(8) for b in range(8) for d in range(8) if _times_8(a, d) != b]
    maps = [tuple(_moebius(x, *coefficients) for x in range(9)) for coefficients in affine + broken]
    cycle = next(row for row in maps if len(_powers(row)) == 9 and all(x != y for x, y in enumerate(row)))
    frobenius = (*(_times_8(x, x) for x in range(8)), 8)
    twisted = [_compose(power, row) for power in _powers(frobenius) for row in maps]
    return _in_cosets(twisted, _powers(cycle))


def _moebius(x: int, a: int, b: int, c: int, d: int) -> int:
    if x == 8:
        return _divide_8(a, c)
    return _divide_8(_times_8(a, x) ^ b, _times_8(c, x) ^ d)


def _times_8(x: int, y: int) -> int:
    """Product in GF(8) = GF(2)[t] / (t^3 + t + 1); bit k of a number is the coefficient of t^k."""
    product = 0
    for bit in range(3):
        product ^= (x << bit) * (y >> bit & 1)
    for bit in (4, 3):
        product ^= (0b1011 << bit - 3) * (product >> bit & 1)
    return product


def _divide_8(x: int, y: int) -> int:
    return 8 if y == 0 else next(z for z in range(8) if _times_8(z, y) == x)


def _compose(outer: Row, inner: Row) -> Row:
    return tuple(outer[x] for x in inner)


def _powers(row: Row) -> list[Row]:
    powers = [tuple(range(len(row)))]
    while (following := _compose(row, powers[-1])) != powers[0]:
        powers.append(following)
    return powers


def _in_cosets(rows: Sequence[Row], regular: Sequence[Row]) -> list[Row]:
    """The rows, reordered into cosets of a subgroup that moves every cell to every slot once (a Latin square each)."""
    ordered: dict[Row, None] = {}
    for row in rows:
        if row not in ordered:
            ordered.update(dict.fromkeys(_compose(row, element) for element in regular))
    return list(ordered)
