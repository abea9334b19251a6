"""Figures of features without labels, against values that can be computed by hand."""

import math

import pytest
import torch

from cl_core.measures.health import health_figures, self_match


@pytest.mark.parametrize(
    ("singular", "rank"),
    [
        ([1.0] * 5, 5.0),
        ([2.0, 0.0, 0.0], 1.0),
        ([3.0, 1.0], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),  # 1.7548
    ],
)
def test_rankme_is_the_entropy_of_the_singular_values(singular, rank):
    turn = torch.linalg.qr(torch.randn(len(singular), len(singular), generator=torch.Generator().manual_seed(0))).Q
    features = torch.cat([torch.diag(torch.tensor(singular)) @ turn, torch.zeros(4, len(singular))])
    assert health_figures(features, features)["rankme"] == pytest.approx(rank, rel=1e-5)


def test_views_that_agree_match_whatever_their_length():
    first = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
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
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(1000, 16, generator=generator), torch.randn(1000, 16, generator=generator)
    assert self_match(first, second) < 0.01
