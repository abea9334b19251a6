"""Accuracies and their uncertainty."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from cl_core.errors import DataError
from cl_core.measures.metrics import (
    accuracy_figures,
    balanced_share,
    bootstrap_interval,
    imbalance,
    mcnemar,
    topk_accuracy,
    topk_classes,
)


def test_topk_counts_a_label_among_the_k_best():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = torch.tensor([2, 0, 0])
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_topk_of_more_than_all_classes_is_one():
    assert topk_accuracy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]), 5) == 1


def test_of_equal_scores_the_lower_class_comes_first():
    assert topk_classes(torch.zeros(2, 4), 2).tolist() == [[0, 1], [0, 1]]


def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(DataError, match="over 0 examples"):
        topk_accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_balanced_accuracy_is_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    labels = torch.from_numpy(rng.integers(0, classes, 200) ** 2)  # some classes are absent, the first is frequent
    predicted = torch.where(torch.from_numpy(rng.random(200) < 0.6), labels, labels.roll(1))
    expected = balanced_accuracy_score(labels.numpy(), predicted.numpy())
    assert balanced_share(predicted == labels, labels) == pytest.approx(expected, abs=1e-12)


def test_a_constant_answer_gets_the_largest_class_and_one_over_the_number_of_classes():
    labels = torch.tensor([0] * 62 + [2] * 19 + [3] * 19)
    figures = accuracy_figures(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(100, 4), labels)
    assert (figures["top1"], figures["balanced_top1"]) == (0.62, pytest.approx(1 / 3))
    assert imbalance(labels) == 62 / 19


def test_bootstrap_equals_resampling_by_hand():
    correct = torch.arange(200) % 4 != 0
    rng = np.random.default_rng(1)
    means = correct.numpy()[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    assert bootstrap_interval(correct, n=4000) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)


def test_bootstrap_is_deterministic_and_holds_the_accuracy():
    correct = torch.arange(90) % 3 == 0
    low, high = bootstrap_interval(correct, seed=3)
    assert (low, high) == bootstrap_interval(correct, seed=3)
    assert low < 1 / 3 < high


def test_bootstrap_of_a_perfect_run_has_no_width():
    assert bootstrap_interval(torch.ones(10, dtype=torch.bool)) == (1.0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 5), (1, 9), (12, 3), (0, 6)])
def test_mcnemar_equals_counting_all_outcomes_of_fair_coins(only_a, only_b):
    a = torch.tensor([True] * only_a + [False] * only_b + [True] * 7)
    b = torch.tensor([False] * only_a + [True] * only_b + [True] * 7)
    n, extreme = only_a + only_b, min(only_a, only_b)
    heads = [sum(toss) for toss in itertools.product((0, 1), repeat=n)]
    tail = sum(head <= extreme for head in heads) / len(heads)
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail), abs=1e-15)


def test_mcnemar_is_symmetric_and_finite_for_many_examples():
    a, b = torch.arange(20000) % 2 == 0, torch.arange(20000) % 3 == 0
    assert mcnemar(a, b) == mcnemar(b, a)
    assert 0 <= mcnemar(a, b) < 1e-10


def test_mcnemar_of_different_test_splits_is_an_error():
    with pytest.raises(DataError, match="same test split"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))
