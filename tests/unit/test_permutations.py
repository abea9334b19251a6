"""Permutation tables of the jigsaw puzzle: their distances, their balance, and greedy search against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from cl_core.errors import ConfigError
from plugins.methods.permutations import every_permutation, hamming_distances, permutation_set


@pytest.mark.parametrize(
    ("tiles", "size", "rule", "distance"),
    [
        (9, 9, "algebraic", 9),
        (9, 64, "algebraic", 8),
        (9, 72, "algebraic", 8),
        (9, 504, "algebraic", 7),
        (9, 1512, "algebraic", 6),
        (4, 4, "algebraic", 4),
        (4, 12, "algebraic", 3),
        (4, 24, "algebraic", 2),
        (9, 10, "maxmin", 8),
        (9, 64, "maxmin", 7),
        (9, 100, "maxmin", 6),
        (9, 64, "paper", 2),
        (4, 12, "maxmin", 3),
    ],
)
def test_table_holds_different_permutations_at_the_promised_distance(tiles, size, rule, distance):
    table = permutation_set(tiles, size, rule)
    assert table.shape == (size, tiles)
    assert torch.equal(table.sort(dim=1).values, torch.arange(tiles).expand(size, tiles))
    assert len(table.unique(dim=0)) == size
    assert hamming_distances(table).min() == distance


@pytest.mark.parametrize(("rule", "mean"), [("paper", 8.080), ("maxmin", 8.080), ("algebraic", 8.09)])
def test_mean_distance_hardly_tells_the_rules_apart(rule, mean):
    assert hamming_distances(permutation_set(9, 100, rule)).float().mean().item() == pytest.approx(mean, abs=0.015)


@pytest.mark.parametrize("rule", ["algebraic", "maxmin", "paper"])
def test_equal_arguments_give_equal_tables(rule):
    assert torch.equal(permutation_set(9, 30, rule), permutation_set(9, 30, rule))


@pytest.mark.parametrize("size", range(2, 73, 7))
def test_every_prefix_of_the_affine_group_keeps_its_distance(size):
    assert hamming_distances(permutation_set(9, size, "algebraic")).min() >= 8


@pytest.mark.parametrize(("tiles", "size"), [(9, 63), (9, 72), (9, 504), (4, 12), (4, 24)])
def test_every_cell_comes_to_every_slot_equally_often(tiles, size):
    counts = F.one_hot(permutation_set(tiles, size, "algebraic"), tiles).sum(dim=0)
    assert (counts == size // tiles).all()


@pytest.mark.parametrize("size", [10, 64, 100])
def test_every_cell_comes_to_every_slot(size):
    for rule in ("algebraic", "maxmin", "paper"):
        assert F.one_hot(permutation_set(9, size, rule), 9).sum(dim=0).min() > 0


def test_affine_set_is_a_group():
    rows = {tuple(row) for row in permutation_set(9, 72, "algebraic").tolist()}
    assert {tuple(a[x] for x in b) for a in rows for b in rows} == rows


def test_all_permutations_are_listed_in_lexicographic_order():
    assert every_permutation(5).tolist() == [list(row) for row in itertools.permutations(range(5))]


def test_greedy_rules_follow_their_definition():
    everything = [list(row) for row in itertools.permutations(range(4))]

    def by_the_book(size: int, rule: str) -> list[list[int]]:
        chosen = [everything[0]]
        while len(chosen) < size:
            best, best_score = None, None
            for candidate in everything:
                if candidate in chosen:
                    continue
                distances = [sum(a != b for a, b in zip(candidate, row, strict=True)) for row in chosen]
                score = (sum(distances),) if rule == "paper" else (min(distances), sum(distances))
                if best_score is None or score > best_score:
                    best, best_score = candidate, score
            chosen.append(best)
        return chosen

    for rule in ("paper", "maxmin"):
        assert permutation_set(4, 10, rule).tolist() == by_the_book(10, rule)


def test_algebraic_rule_names_the_tile_numbers_it_knows():
    with pytest.raises(ConfigError, match="knows sets for 4 and 9 tiles, not for 5; use 'maxmin'"):
        permutation_set(5, 10, "algebraic")
