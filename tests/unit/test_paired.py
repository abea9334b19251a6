"""Paired tests and labels saved, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.stats import binomtest

from cl_core.errors import DataError
from cl_core.measures.labels_saved import isotonic, labels_needed, labels_saved
from cl_core.measures.paired import RESAMPLES, Runs, holm, paired_difference


def runs(*seeds) -> Runs:
    return Runs(tuple(np.atleast_2d(np.asarray(seed, dtype=bool)) for seed in seeds))


def answers(share: float, images: int, seed: int, draws: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((draws, images)) < share


def test_one_run_each_is_judged_by_the_exact_test_of_scipy() -> None:
    a, b = answers(0.7, 200, 0), answers(0.6, 200, 1)
    found = paired_difference(runs(a), runs(b))
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    assert found.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert found.value == pytest.approx((only_a - only_b) / 200)
    assert found.test == "McNemar's test on 200 images"


def test_the_interval_over_images_is_that_of_the_difference_per_image() -> None:
    a, b = answers(0.7, 400, 0), answers(0.6, 400, 1)
    found = paired_difference(runs(a), runs(b))
    differences = a[0].astype(float) - b[0]
    error = differences.std() / math.sqrt(400)
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)


def test_the_hierarchical_bootstrap_equals_a_loop_over_seeds_draws_and_images() -> None:
    a = [answers(0.75, 120, seed, draws=2) for seed in range(3)]
    b = [answers(0.65, 120, 10 + seed, draws=2) for seed in range(3)]
    found = paired_difference(runs(*a), runs(*b))
    rng, slow = np.random.default_rng(5), []
    for _ in range(RESAMPLES):
        images = rng.integers(120, size=120)
        means = []
        for seed in rng.integers(3, size=3):
            picked = rng.integers(2, size=2)
            means.append((a[seed][picked].astype(float) - b[seed][picked])[:, images].mean())
        slow.append(np.mean(means))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)
    assert found.p == pytest.approx(2 * min(np.mean(np.array(slow) <= 0), np.mean(np.array(slow) >= 0)), abs=0.05)
    assert found.test == "paired bootstrap over 3 seeds, 2 draws of labels and 120 images"


def test_what_changes_from_seed_to_seed_widens_the_interval() -> None:
    base = answers(0.5, 1000, 0)
    steady = paired_difference(runs(base | answers(0.1, 1000, 1), base | answers(0.1, 1000, 2)), runs(base, base))
    shaky = paired_difference(runs(base | answers(0.2, 1000, 1), base), runs(base, base))
    assert shaky.high - shaky.low > 2 * (steady.high - steady.low)


def test_equal_answers_show_no_difference_and_the_same_runs_give_the_same_figures() -> None:
    same = runs(answers(0.5, 50, 0), answers(0.5, 50, 1))
    found = paired_difference(same, runs(*same.seeds))
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    one, two = (paired_difference(runs(answers(0.6, 90, 3, 4)), runs(answers(0.5, 90, 4, 4))) for _ in range(2))
    assert one == two


def test_more_draws_on_one_side_are_still_compared_on_the_same_images() -> None:
    found = paired_difference(runs(answers(0.9, 300, 0, draws=5)), runs(answers(0.5, 300, 1)))
    assert found.low > 0.3
    assert found.p < 2 / (RESAMPLES + 1), "Holm's correction of many such must not hide a plain difference"


def test_other_numbers_of_images_are_refused() -> None:
    with pytest.raises(DataError, match="same images, but there are 10 and 12; compare runs on the same test split"):
        paired_difference(runs(answers(0.5, 10, 0)), runs(answers(0.5, 12, 0)))
    with pytest.raises(DataError, match=r"judged on \[3, 4\] images"):
        runs([True] * 3, [True] * 4)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as statsmodels' multipletests
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("accuracy", "labels"),
    [(0.5, 10.0), (0.4, 10.0), (0.6, 10 * 10**0.5), (0.7, 100.0), (0.75, 100 * 4**0.5), (0.8, 400.0), (0.81, math.inf)],
)
def test_labels_are_read_off_a_line_in_the_logarithm(accuracy: float, labels: float) -> None:
    assert labels_needed(accuracy, [10, 100, 400], [0.5, 0.7, 0.8]) == pytest.approx(labels)


def test_a_curve_that_dips_is_made_monotone_first() -> None:
    values = [0.3, 0.6, 0.5, 0.5, 0.9, 0.8]
    many = np.random.default_rng(0).random((20, 6))
    many[0] = values
    for row, fit in zip(many, isotonic(many), strict=True):
        assert fit == pytest.approx(isotonic_regression(row).x)
    assert labels_needed(0.55, [10, 20, 40, 80, 160, 320], values) == pytest.approx(80 * 2 ** (1 / 19))


def test_budgets_out_of_order_are_no_curve() -> None:
    with pytest.raises(DataError, match=r"budgets \[10, 10\] with 2 accuracies are no curve"):
        labels_needed(0.5, [10, 10], [0.4, 0.6])


def test_the_interval_of_the_labels_saved_covers_images_and_says_more_than_all() -> None:
    curve = [(10, runs(answers(0.4, 2000, 1))), (100, runs(answers(0.6, 2000, 2))), (1000, runs(answers(0.8, 2000, 3)))]
    found = labels_saved(runs(answers(0.7, 2000, 4)), curve)
    assert found.low < found.labels < found.high
    assert 200 < found.low < 316 < found.high < 500, "log-linear: 0.7 lies half way between 100 and 1,000"
    assert (found.least, found.most) == (10, 1000)
    beyond = labels_saved(runs(answers(0.9, 2000, 4)), curve)
    assert (beyond.labels, beyond.low, beyond.high) == (math.inf, math.inf, math.inf)
