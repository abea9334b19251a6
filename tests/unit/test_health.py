"""Figures of features without labels, against closed forms and against slow versions written from the papers."""

import math

import numpy as np
import pytest
import torch

from cl_core.measures.health import (
    alignment,
    alpha_req,
    health_figures,
    lidar,
    room_figures,
    self_match,
    uniformity,
    view_figures,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, d, seed=0):
    """(n, d) with centred, orthonormal columns; n > d."""
    columns = torch.cat([torch.ones(n, 1, dtype=torch.float64), normal(n, d, seed=seed)], dim=1)
    return torch.linalg.qr(columns).Q[:, 1:]


@pytest.mark.parametrize(
    ("singular", "rank"),
    [
        ([1.0] * 5, 5.0),
        ([2.0, 0.0, 0.0], 1.0),
        ([3.0, 1.0], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),  # 1.7548
    ],
)
def test_rankme_is_the_entropy_of_the_singular_values(singular, rank):
    turn = torch.linalg.qr(normal(len(singular), len(singular))).Q
    features = torch.cat([torch.diag(torch.tensor(singular).double()) @ turn, torch.zeros(4, len(singular))])
    assert room_figures(features)["rankme"] == pytest.approx(rank, rel=1e-5)


def lidar_by_the_book(views: np.ndarray, ridge: float) -> float:
    """Equations 1 and 2 of arXiv:2312.04000 with loops; views (V, N, D)."""
    v, n, d = views.shape
    means = [sum(views[j, i] for j in range(v)) / v for i in range(n)]
    mean = sum(means) / n
    s_b = sum(np.outer(m - mean, m - mean) for m in means) / n
    s_w = sum(np.outer(views[j, i] - means[i], views[j, i] - means[i]) for j in range(v) for i in range(n)) / (n * v)
    values, vectors = np.linalg.eigh(s_w + ridge * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ s_b @ root).clip(0)
    p = eigenvalues / eigenvalues.sum()
    return float(np.exp(-sum(x * np.log(x) for x in p if x > 0)))


@pytest.mark.parametrize(("views", "n", "d", "ridge"), [(2, 9, 4, 1e-4), (3, 5, 8, 1e-4), (4, 30, 6, 0.1)])
def test_lidar_equals_the_equations_of_the_paper(views, n, d, ridge):
    features = normal(n, d) * torch.linspace(0.2, 3, d) + 0.5 * normal(views, n, d, seed=1)
    assert lidar(features, ridge) == pytest.approx(lidar_by_the_book(features.numpy(), ridge), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_lidar_of_embeddings_that_ignore_the_view_is_the_number_of_directions_they_fill(k):
    directions = torch.linalg.qr(normal(10, 10, seed=2)).Q[:k]
    features = 5 * orthogonal(40, k) @ directions + 2
    assert lidar(features.expand(4, 40, 10)) == pytest.approx(k, rel=1e-6)


def test_a_direction_in_which_views_differ_counts_for_less_in_lidar_and_for_all_in_rankme():
    signal = orthogonal(400, 4) * 20
    noise = normal(4, 400, 1, seed=3)
    views = torch.cat([signal.expand(4, 400, 4), noise], dim=2)
    assert lidar(views) == pytest.approx(4, abs=0.01)
    assert room_figures(views[0])["rankme"] == pytest.approx(5, abs=0.01)


def test_lidar_of_images_that_are_all_equal_is_one_and_of_infinite_features_not_a_number():
    assert lidar(torch.ones(3, 5, 4)) == 1.0
    assert math.isnan(lidar(torch.full((3, 5, 4), math.inf)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_is_the_exponent_by_which_eigenvalues_decay(alpha):
    variances = torch.arange(1, 65, dtype=torch.float64) ** -alpha
    features = orthogonal(200, 64) * variances.sqrt() + 3  # the mean is no direction of its own
    assert alpha_req(features) == pytest.approx(alpha, rel=1e-6)


def test_alpha_equals_a_line_through_the_logarithms_of_eigenvalues_11_to_50():
    features = normal(300, 80) * torch.linspace(3, 0.1, 80)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.numpy().T)))[::-1]
    slope, _ = np.polyfit(np.log(np.arange(11, 51)), np.log(eigenvalues[10:50]), 1)
    assert alpha_req(features) == pytest.approx(-slope, rel=1e-9)


def test_alpha_takes_as_many_eigenvalues_as_there_are_and_is_none_for_too_few():
    narrow = orthogonal(100, 20) * torch.arange(1, 21, dtype=torch.float64) ** -0.75
    assert alpha_req(narrow) == pytest.approx(1.5)
    assert alpha_req(torch.cat([narrow, torch.zeros(100, 30)], dim=1)) == pytest.approx(1.5)  # dead dimensions
    assert alpha_req(narrow[:, :14]) is None
    assert alpha_req(narrow[:15]) is None  # 15 images vary in 14 directions
    assert alpha_req(torch.ones(100, 20)) is None
    assert alpha_req(torch.full((100, 20), math.nan)) is None


def test_alignment_is_zero_for_identical_views_two_for_unrelated_and_four_for_opposite_ones():
    first, second = normal(4000, 32), normal(4000, 32, seed=1)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, second) == pytest.approx(2, abs=0.02)
    assert alignment(first, -first) == pytest.approx(4)


def test_alignment_equals_the_loop_over_images():
    first, second = normal(6, 3), normal(6, 3, seed=1)
    loop = [float((a / a.norm() - b / b.norm()).norm() ** 2) for a, b in zip(first, second, strict=True)]
    assert alignment(first, second) == pytest.approx(sum(loop) / 6)


def test_uniformity_is_zero_for_one_point_and_tends_to_minus_four_in_high_dimensions():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.zeros(5, 3)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.ones(1, 3)) == 0
    assert uniformity(normal(1000, 2048)) == pytest.approx(-4, abs=0.01)


def test_uniformity_equals_the_loop_over_pairs():
    features = normal(7, 3)
    unit = features / features.norm(dim=1, keepdim=True)
    terms = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(7) for j in range(i)]
    assert uniformity(features) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-9)


def test_views_that_agree_match_whatever_their_length():
    first = normal(40, 8)
    assert self_match(first, first * torch.linspace(0.1, 9, 40)[:, None]) == 1.0


def test_a_view_that_finds_another_image_does_not_match():
    first = torch.eye(4)
    second = torch.eye(4)[[0, 1, 3, 2]]
    assert self_match(first, second) == 0.5


def test_the_match_is_looked_for_among_second_views_and_not_the_other_way_round():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.2]])
    second = torch.tensor([[1.0, 0.05], [0.0, 1.0]])
    assert self_match(first, second) == 0.5  # both find the second view of the first image
    assert self_match(second, first) == 1.0


def test_features_that_are_all_equal_match_by_chance():
    assert self_match(torch.ones(50, 3), torch.ones(50, 3)) == 1 / 50
    assert self_match(torch.zeros(50, 3), torch.zeros(50, 3)) == 1 / 50


def test_unrelated_views_match_by_chance():
    assert self_match(normal(1000, 16), normal(1000, 16, seed=1)) < 0.01


def test_all_figures_are_those_of_whole_images_and_of_the_first_two_views_and_none_is_not_finite():
    whole, views = normal(60, 20), normal(4, 60, 20, seed=1)
    expected = view_figures(views[0], views[1]) | room_figures(whole) | {"lidar": lidar(views)}
    assert health_figures(whole, views) == expected
    assert set(expected) == {"self_match", "alignment", "rankme", "alpha_req", "uniformity", "lidar"}
    assert health_figures(whole * math.nan, views * math.nan).keys() == {"self_match"}
