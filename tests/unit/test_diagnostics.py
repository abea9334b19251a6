"""Collapse figures against closed forms and against loops."""

import math

import pytest
import torch

from cl_core.measures.diagnostics import alignment_uniformity, collapse_figures, effective_rank


def test_equal_rows_have_no_spread_rank_one_and_cosine_one():
    figures = collapse_figures(torch.tensor([[3.0, 4.0, 0.0]]).repeat(16, 1))
    assert figures == pytest.approx({"feature_std": 0.0, "effective_rank": 1.0, "mean_cosine": 1.0}, abs=1e-7)


def test_the_two_ends_of_every_axis_are_spread_evenly():
    dim = 8
    axes = torch.cat([torch.eye(dim), -torch.eye(dim)])
    figures = collapse_figures(axes * torch.linspace(0.1, 90, 2 * dim)[:, None])  # lengths do not matter
    expected = {"feature_std": 1.0, "effective_rank": dim, "mean_cosine": -1 / (2 * dim - 1)}
    assert figures == pytest.approx(expected, rel=1e-6)


def test_orthogonal_rows_have_mean_cosine_zero():
    assert collapse_figures(torch.eye(5))["mean_cosine"] == pytest.approx(0, abs=1e-12)


def test_two_opposite_points_keep_their_spread_but_have_rank_one():
    point = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    figures = collapse_figures(torch.cat([point, -point] * 8))
    assert figures["effective_rank"] == pytest.approx(1.0)
    assert figures["feature_std"] == pytest.approx(math.sqrt(4) / 4)  # one dimension of four has deviation 1


def test_random_vectors_are_far_from_collapse():
    figures = collapse_figures(torch.randn(256, 64, generator=torch.Generator().manual_seed(0)))
    assert figures["feature_std"] == pytest.approx(1.0, abs=0.02)
    assert figures["effective_rank"] > 50
    assert abs(figures["mean_cosine"]) < 0.01


def test_mean_cosine_equals_the_loop_over_pairs():
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    pairs = [torch.cosine_similarity(z[i], z[j], dim=0).item() for i in range(7) for j in range(7) if i != j]
    assert collapse_figures(z)["mean_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_effective_rank_of_a_diagonal_is_the_exponential_of_its_entropy():
    weights = [0.5, 0.25, 0.25]
    entropy = -sum(p * math.log(p) for p in weights)
    assert effective_rank(torch.diag(torch.tensor(weights) * 7)) == pytest.approx(math.exp(entropy))


def test_zeros_have_rank_one_and_a_matrix_that_is_not_finite_has_none():
    assert effective_rank(torch.zeros(4, 3)) == 1.0
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("inf")]])))


def test_figures_of_low_precision_and_of_large_batches_stay_the_same():
    z = torch.randn(512, 16, generator=torch.Generator().manual_seed(2))
    wanted = collapse_figures(z)
    assert collapse_figures(z.to(torch.bfloat16)) == pytest.approx(wanted, rel=0.02, abs=1e-3)
    assert collapse_figures(z.repeat_interleave(4, dim=0)) == pytest.approx(wanted, rel=0.02, abs=5e-3)


def test_a_single_row_counts_as_collapsed():
    assert collapse_figures(torch.ones(1, 4)) == pytest.approx(
        {"feature_std": 0.0, "effective_rank": 1.0, "mean_cosine": 1.0}
    )


def test_alignment_is_zero_for_equal_views_and_four_for_opposite_ones():
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    assert alignment_uniformity(z, 2 * z)["alignment"] == pytest.approx(0, abs=1e-10)
    assert alignment_uniformity(z, -z)["alignment"] == pytest.approx(4)


def test_uniformity_is_zero_for_equal_rows_and_minus_four_for_orthogonal_ones():
    assert alignment_uniformity(torch.ones(4, 3), torch.ones(4, 3))["uniformity"] == pytest.approx(0, abs=1e-9)
    # Different axes lie sqrt(2) apart: log exp(-2 * 2) = -4.
    assert alignment_uniformity(torch.eye(4), torch.eye(4))["uniformity"] == pytest.approx(-4)


def test_uniformity_equals_the_loop_over_pairs():
    z_a, z_b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(4))

    def slow(z):
        z = z / z.norm(dim=1, keepdim=True)
        terms = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(6) for j in range(i)]
        return math.log(sum(terms) / len(terms))

    assert alignment_uniformity(z_a, z_b)["uniformity"] == pytest.approx((slow(z_a) + slow(z_b)) / 2, abs=1e-5)
