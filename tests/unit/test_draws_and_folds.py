"""Draws of labels are nested, balanced and stable; folds inside them never see what they are judged on."""

from collections import Counter

import numpy as np
import pytest

from cl_core.evaluation.draws import Drawing, budgets
from cl_core.evaluation.folds import MANY, stratified_folds

KEYS = [f"key-{number}" for number in range(200)]
LABELS = np.array([0] * 60 + [1] * 60 + [2] * 60 + [-1] * 20)


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_a_draw_is_balanced_and_lies_inside_the_same_draw_of_a_larger_budget(draw):
    drawing = Drawing(KEYS, LABELS)
    smaller: set[int] = set()
    for count in (1, 4, 16, 60, 100):
        rows = drawing.per_class(count, draw)
        assert Counter(LABELS[rows].tolist()) == dict.fromkeys(range(3), min(count, 60))
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())


def test_draws_differ_and_do_not_depend_on_order():
    drawing, shuffled = Drawing(KEYS, LABELS), np.random.default_rng(0).permutation(200)
    again = Drawing([KEYS[row] for row in shuffled], LABELS[shuffled])
    draws = [{KEYS[row] for row in drawing.per_class(4, draw)} for draw in range(3)]
    assert len({frozenset(draw) for draw in draws}) == 3
    assert [{KEYS[shuffled[row]] for row in again.per_class(4, draw)} for draw in range(3)] == draws


def test_a_share_takes_as_many_of_each_class_as_fit_but_one_at_least():
    labels = np.array([0] * 90 + [1] * 10)
    drawing = Drawing([str(number) for number in range(100)], labels)
    counts = [Counter(labels[drawing.share(share)].tolist()) for share in (0.001, 0.1, 0.4, 1.0)]
    assert counts == [{0: 1, 1: 1}, {0: 5, 1: 5}, {0: 30, 1: 10}, {0: 90, 1: 10}]


def test_a_group_is_drawn_whole():
    labels, groups = np.arange(120) % 2, np.arange(120) // 6  # six images of a patient, of both classes
    drawing = Drawing([str(number) for number in range(120)], labels, groups)
    rows = drawing.per_class(9)
    for label in (0, 1):
        counts = Counter(groups[rows][labels[rows] == label].tolist())
        assert set(counts.values()) == {3}
        assert len(counts) == 3


def test_budgets_come_small_to_large_with_fewer_draws_and_name_what_they_equal():
    found = budgets(Drawing(KEYS, LABELS), per_class=["all", 1, 4, 60, 500], shares=[0.02], draws=5)
    assert [budget.name for budget in found] == ["1", "0.02", "4", "all", "60", "500"]
    assert [budget.labels for budget in found] == [3, 3, 12, 180, 180, 180]
    assert [len(budget.draws) for budget in found] == [5, 5, 3, 1, 1, 1]
    assert [budget.same_as for budget in found] == ["", "1", "", "", "all", "all"]


@pytest.mark.parametrize("count", [2, 5, 30])
def test_folds_share_nothing_with_what_they_hold_out_and_together_hold_out_everything(count):
    labels = np.repeat([0, 1, 2], [4, 9, 20])
    folds = stratified_folds(labels, count, seed=0)
    assert len(folds) == min(count, 4)
    for fold in folds:
        assert not set(fold.learnt) & set(fold.held)
        assert set(fold.learnt) | set(fold.held) == set(range(33))
        assert set(labels[fold.learnt]) == {0, 1, 2}
    assert sorted(np.concatenate([fold.held for fold in folds]).tolist()) == list(range(33))


def test_one_label_of_a_class_is_always_learnt_from_and_one_of_each_leaves_no_folds():
    assert stratified_folds(np.arange(10), 5, seed=0) == []
    folds = stratified_folds(np.array([0, 0, 0, 1, 1, 1, 2]), 5, seed=0)
    assert len(folds) == 3
    assert all(6 in fold.learnt for fold in folds)


def test_many_labels_are_held_out_once():
    (fold,) = stratified_folds(np.arange(MANY + 8) % 4, 5, seed=0)
    assert len(fold.held) == (MANY + 8) // 5


def test_no_group_is_on_both_sides():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 90), np.arange(90) // 5
    folds = stratified_folds(labels, 5, seed=1, groups=groups)
    assert len(folds) > 1
    assert not any(set(groups[fold.learnt]) & set(groups[fold.held]) for fold in folds)
