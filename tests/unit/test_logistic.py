"""The search for the logistic regression: how near the minimum it ends, on features that make it hard."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from cl_core.measures.lbfgs import minimise
from cl_core.measures.logistic import fit_classifiers


def hard_features(n, dim):
    """Correlated, badly scaled features of four overlapping classes, with a constant one among them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (n,), generator=generator)
    latent = torch.randn(n, 6, generator=generator) + torch.randn(4, 6, generator=generator)[labels]
    features = latent @ torch.randn(6, dim, generator=generator) + 0.05 * torch.randn(n, dim, generator=generator)
    features = features.relu() * torch.logspace(-3, 3, dim)
    features[:, 0] = 7.0
    return features, labels


def objective_in_double(standard, labels, weight, bias, l2):
    return float(cross_entropy(standard @ weight.T + bias, labels) + l2 / 2 * weight.square().sum())


@pytest.mark.parametrize(("n", "dim"), [(600, 40), (60, 100)])
def test_every_penalty_of_a_grid_reaches_the_minimum(n, dim):
    features, labels = hard_features(n, dim)
    grid = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
    for l2, found in zip(grid, fit_classifiers(features, labels, 4, grid), strict=True):
        standard = (features.double() - found.mean) * found.scale
        best = LogisticRegression(C=1 / (l2 * n), tol=1e-9, max_iter=20000).fit(standard.numpy(), labels.numpy())
        least = objective_in_double(standard, labels, torch.tensor(best.coef_), torch.tensor(best.intercept_), l2)
        reached = objective_in_double(standard, labels, found.weight.double(), found.bias.double(), l2)
        assert reached - least < 2e-5


def test_a_search_ends_where_the_function_is_least():
    curvature = torch.linspace(0.5, 3, 8)
    target = torch.arange(8.0)

    def quadratic(point):
        away = point - target
        return (curvature * away.square()).sum(dim=1).double() / 2, curvature * away

    found = minimise(quadratic, torch.zeros(2, 8), excess=1e-9, max_iter=50)
    torch.testing.assert_close(found, target.expand(2, 8), atol=1e-4, rtol=0)


def test_a_search_stops_at_its_last_iteration_and_where_no_step_is_lower():
    values = []

    def bowl(point):
        values.append(point.square().sum(dim=1).double())
        return values[-1], 0.2 * point

    minimise(bowl, torch.ones(1, 3), excess=0, max_iter=4)
    assert len(values) == 5

    def wrong_gradient(point):
        return point.sum(dim=1).double(), -torch.ones(1, 3)

    assert torch.equal(minimise(wrong_gradient, torch.ones(1, 3), excess=0, max_iter=4), torch.ones(1, 3))
