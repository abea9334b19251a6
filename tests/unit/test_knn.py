"""Weighted nearest neighbours against a loop."""

import math

import pytest
import torch

from cl_core.errors import ConfigError, DataError
from cl_core.measures import knn
from cl_core.measures.knn import effective_k, knn_predict, protocol_id


def knn_by_the_book(query, bank, labels, num_classes, k, temperature):
    """Wu et al. 2018, section 3.4, one query and one neighbour at a time."""
    rows = []
    for q in query.double().tolist():
        cosines = []
        for b, label in zip(bank.double().tolist(), labels.tolist(), strict=True):
            dot = sum(x * y for x, y in zip(q, b, strict=True))
            cosines.append((dot / math.hypot(*q) / math.hypot(*b), label))
        votes = [0.0] * num_classes
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return torch.tensor(rows)


def sample(queries=7, bank=40, dim=5, classes=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (bank,), generator=generator)
    return torch.randn(queries, dim, generator=generator), torch.randn(bank, dim, generator=generator) * 9, labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (10, 0.1), (40, 0.07), (25, 1.0)])
def test_knn_equals_the_loop(k, temperature):
    query, bank, labels = sample()
    fast = knn_predict(query, bank, labels, 4, k, temperature=temperature)
    torch.testing.assert_close(fast, knn_by_the_book(query, bank, labels, 4, k, temperature), atol=1e-5, rtol=1e-4)


def test_chunks_do_not_change_the_scores(monkeypatch):
    query, bank, labels = sample(queries=23)
    whole = knn_predict(query, bank, labels, 4, 10)
    monkeypatch.setattr(knn, "_CHUNK_VALUES", 100)  # two queries at a time
    torch.testing.assert_close(knn_predict(query, bank, labels, 4, 10), whole)


def test_classes_may_be_sparse():
    query, bank, labels = sample(classes=2)
    scores = knn_predict(query, bank, labels * 7, 9, 10)
    assert scores.shape == (7, 9)
    assert set(scores.nonzero()[:, 1].tolist()) <= {0, 7}


def test_a_tiny_temperature_does_not_overflow():
    query, bank, labels = sample()
    scores = knn_predict(query, bank, labels, 4, 10, temperature=1e-4)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores.argmax(1), knn_predict(query, bank, labels, 4, 1).argmax(1))


def test_half_precision_and_rows_of_zeros_are_taken():
    query, bank, labels = sample()
    query[0] = 0
    assert torch.isfinite(knn_predict(query.half(), bank.half(), labels, 4, 10)).all()


def test_no_query_gives_no_score():
    query, bank, labels = sample(queries=0)
    assert knn_predict(query, bank, labels, 4, 10).shape == (0, 4)


def test_k_above_the_bank_is_reduced_and_the_id_says_so():
    assert (effective_k(200, 120), protocol_id(200, 120)) == (120, "knn/instdisc-v1(k=120)")
    assert (effective_k(200, 200), protocol_id(200, 200)) == (200, "knn/instdisc-v1")


@pytest.mark.parametrize("k", [0, 41])
def test_k_outside_the_bank_is_an_error(k):
    with pytest.raises(ConfigError, match="between 1 and the 40 examples"):
        knn_predict(*sample(), 4, k)


def test_an_unlabelled_bank_is_an_error():
    query, bank, labels = sample()
    with pytest.raises(DataError, match="leave unlabelled examples out"):
        knn_predict(query, bank, labels - 1, 4, 10)


@pytest.mark.parametrize(("columns", "k"), [(400, 10), (403, 17), (409, 20), (60, 3), (50, 40)])
def test_the_search_by_groups_finds_what_a_full_search_does(columns, k):
    values = torch.randn(30, columns, generator=torch.Generator().manual_seed(columns))
    values[0] = values[0].sort().values  # the largest side by side
    found, places = knn._largest(values, k)
    expected = values.topk(k, dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(values.gather(1, places), expected.values)
    assert all(len(set(row)) == k for row in places.tolist())
