"""Logistic regression in the span of few examples is that of all features, for many problems at once."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cl_core.measures import span

COSTS = [1e-3, 1e-2, 1e-1, 1.0]


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator)
    directions = torch.randn(4, 300, generator=generator)
    return torch.randn(60, 300, generator=generator).double() + 0.1 * directions[labels], labels


def test_problems_of_different_sizes_are_solved_as_scikit_learn_solves_each(examples, monkeypatch):
    monkeypatch.setattr(span, "_EXCESS", 1e-13)
    features, labels = examples
    problems = [torch.arange(60), torch.arange(40), torch.arange(20, 55)]
    found = span.solve(features @ features.T, labels, problems, COSTS, num_classes=4, max_iter=500)
    for rows, solutions in zip(problems, found, strict=True):
        for cost, solution in zip(COSTS, solutions, strict=True):
            reference = LogisticRegression(C=cost, tol=1e-10, max_iter=5000).fit(features[rows], labels[rows])
            weight = solution.dual @ features[solution.rows]
            torch.testing.assert_close(weight, torch.from_numpy(reference.coef_), atol=1e-5, rtol=0)
            scores = solution.scores(features @ features.T, torch.arange(60))
            expected = torch.from_numpy(reference.decision_function(features))
            torch.testing.assert_close(scores.softmax(1), expected.softmax(1), atol=1e-5, rtol=0)


def test_together_is_as_alone(examples):
    features, labels = examples
    problems = [torch.arange(60), torch.arange(30)]
    both = span.solve(features @ features.T, labels, problems, COSTS, num_classes=4, max_iter=200)
    for rows, solutions in zip(problems, both, strict=True):
        (alone,) = span.solve(features @ features.T, labels, [rows], COSTS, num_classes=4, max_iter=200)
        for ours, its in zip(solutions, alone, strict=True):
            torch.testing.assert_close(ours.dual, its.dual, atol=1e-4, rtol=0)
