"""Counter-based randomness: what makes every view a pure function of (seed, epoch, sample, view, draw)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_core.data.sampling import SampleRng, batch_rows, epoch_order, mix

MANY = torch.arange(20_000)
GOLDEN = {
    "integers": [531097, 220401, 892259],
    "uniform": [[16340397, 2667859], [6992311, 1182349], [8335095, 13748813]],
    "permutation": [[0, 3, 2, 4, 1], [3, 0, 2, 1, 4], [0, 1, 3, 4, 2]],
    "child": [452213, 768963, 638664],
    "normal": [0.043203, 1.22576, 1.707552],
    "mix": [8147104208329303767, 7510213797696614745, 8245168133484221968],
    "order": [7, 5, 0, 4, 1, 6, 2, 3],
}


def every_kind_of_draw(rng: SampleRng) -> dict[str, Tensor]:
    return {
        "uniform": rng.uniform(-1, 3, (2, 3)),
        "normal": rng.normal(shape=(4,)),
        "bernoulli": rng.bernoulli(0.3),
        "integers": rng.integers(-5, 7, (2,)),
        "permutation": rng.permutation(6),
        "child": rng.child(2).uniform(),
    }


def chi_square(counts: Tensor, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_draws_of_a_sample_do_not_depend_on_its_batch(batch: int) -> None:
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:256]
    together = every_kind_of_draw(SampleRng(3, 5, rows))
    for start in range(0, len(rows), batch):
        part = every_kind_of_draw(SampleRng(3, 5, rows[start : start + batch]))
        for kind, values in part.items():
            assert torch.equal(values, together[kind][start : start + batch]), kind
        if start >= 4 * batch:
            break


def test_each_of_seed_epoch_sample_and_draw_number_changes_the_draws() -> None:
    rows = torch.arange(64)
    base = SampleRng(0, 0, rows)
    draws = [base.uniform(), base.uniform(), SampleRng(1, 0, rows).uniform(), SampleRng(0, 1, rows).uniform()]
    draws += [SampleRng(0, 0, rows + 1).uniform(), base.child(0).uniform(), base.child(1).uniform()]
    for k, first in enumerate(draws):
        for second in draws[:k]:
            assert (first == second).sum() <= 1
    # Sample i + 1 is not the shifted stream of sample i, as it would be if seeds were added.
    assert not torch.equal(SampleRng(0, 0, rows).uniform()[1:], SampleRng(1, 0, rows).uniform()[:-1])


def test_uniform_fills_its_interval_evenly() -> None:
    values = SampleRng(0, 0, MANY).uniform(2.0, 6.0)
    assert values.dtype == torch.float32
    assert values.min() >= 2
    assert values.max() < 6
    counts = torch.histc(values, bins=20, min=2, max=6)
    assert chi_square(counts, 1000) < 50  # 19 degrees of freedom: p about 1e-4


def test_draws_of_neighbouring_samples_and_of_consecutive_numbers_are_uncorrelated() -> None:
    rng = SampleRng(0, 0, MANY)
    first, second = rng.uniform() - 0.5, rng.uniform() - 0.5
    limit = 5 / math.sqrt(len(MANY)) / 12  # five standard errors of the mean product
    assert (first[1:] * first[:-1]).mean().abs() < limit
    assert (first * second).mean().abs() < limit
    pair = SampleRng(0, 1, MANY).uniform(shape=(2,)) - 0.5
    assert (pair[:, 0] * pair[:, 1]).mean().abs() < limit
    assert (first * pair[:, 0]).mean().abs() < limit


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    values = SampleRng(0, 0, MANY).normal(mean=1.0, std=2.0)
    standard = (values - 1) / 2
    assert standard.mean().abs() < 0.03
    assert abs(float(standard.std()) - 1) < 0.03
    assert abs(float((standard.abs() > 1.96).float().mean()) - 0.05) < 0.007
    assert torch.isfinite(values).all()


def test_bernoulli_is_never_at_zero_always_at_one_and_as_often_as_asked_between() -> None:
    rng = SampleRng(0, 0, MANY)
    assert not rng.bernoulli(0.0).any()
    assert rng.bernoulli(1.0).all()
    assert abs(float(rng.bernoulli(0.2).float().mean()) - 0.2) < 0.015


def test_integers_reach_both_ends_evenly_and_never_the_upper_bound() -> None:
    values = SampleRng(0, 0, MANY).integers(-3, 7)
    assert values.dtype == torch.int64
    assert (int(values.min()), int(values.max())) == (-3, 6)
    assert chi_square(torch.bincount(values + 3).float(), 2000) < 34  # 9 degrees of freedom: p about 1e-4
    assert (SampleRng(0, 0, MANY).integers(4, 5) == 4).all()


def test_permutation_gives_each_order_equally_often() -> None:
    orders = SampleRng(0, 0, MANY).permutation(4)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(len(MANY), 4))
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts.float(), len(MANY) / 24) < 56  # 23 degrees of freedom: p about 1e-4


def test_child_does_not_depend_on_what_was_drawn_from_the_parent() -> None:
    fresh, used = SampleRng(0, 0, MANY), SampleRng(0, 0, MANY)
    used.uniform(shape=(3,))
    used.permutation(5)
    assert torch.equal(fresh.child(7).uniform(), used.child(7).uniform())


def test_grandchildren_are_all_different_streams() -> None:
    parent = SampleRng(0, 0, torch.arange(4))
    streams = [parent.child(view).child(operation).uniform() for view in range(8) for operation in range(8)]
    assert len({tuple(stream.tolist()) for stream in streams}) == 64


def test_rows_continue_the_streams_of_the_chosen_samples() -> None:
    rng = SampleRng(0, 0, torch.arange(10))
    rng.uniform()
    part = rng.rows(torch.tensor([8, 2]))
    assert len(part) == 2
    assert torch.equal(part.uniform(), rng.uniform()[[8, 2]])


def test_the_stream_never_changes_silently() -> None:
    """Golden values: if these change, every stored plan and every claim of reproducibility is void."""
    rng = SampleRng(42, 3, torch.tensor([0, 1, 2**40]))
    assert rng.integers(0, 1_000_000).tolist() == GOLDEN["integers"]
    assert rng.uniform(shape=(2,)).mul(2**24).long().tolist() == GOLDEN["uniform"]
    assert rng.permutation(5).tolist() == GOLDEN["permutation"]
    assert rng.child(1).integers(0, 1_000_000).tolist() == GOLDEN["child"]
    assert rng.normal().tolist() == pytest.approx(GOLDEN["normal"], abs=1e-6)
    assert [mix(0), mix(1, 2, 3), mix(-1)] == GOLDEN["mix"]
    assert epoch_order(8, 0, 0).tolist() == GOLDEN["order"]


def test_the_stream_is_splitmix64_in_plain_integers() -> None:
    """Steele, Lea & Flood 2014, figure 15, over the counter (draw << 32) + value under the sample's key."""
    word, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def finalise(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & word
        return x ^ x >> 31

    seed, epoch, rows = 42, 3, [0, 1, 2**40]
    rng = SampleRng(seed, epoch, torch.tensor(rows))
    drawn = torch.stack([rng.integers(0, 2**62, (2,)), rng.integers(0, 2**62, (2,))])
    for k, row in enumerate(rows):
        key = finalise((row * gamma + (mix(seed, epoch) << 1)) & word)
        for draw in (0, 1):
            for value in (0, 1):
                counter = (draw << 32) + value
                bits = finalise((key + (counter + 1) * gamma) & word)
                assert int(drawn[draw, k, value]) == bits >> 1 & (2**62 - 1)


def test_mix_depends_on_every_word_and_on_their_order() -> None:
    words = {mix(1, 2), mix(2, 1), mix(1, 2, 0), mix(3), mix(1), mix(0, 1, 2)}
    assert len(words) == 6
    assert all(0 <= word < 2**63 for word in words)


def test_epoch_order_is_a_permutation_that_differs_between_epochs_and_seeds() -> None:
    orders = [epoch_order(500, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(500))
    for k, first in enumerate(orders):
        for second in orders[:k]:
            assert (first == second).sum() < 10
    # Seeds and epochs are hashed, not added: (seed 0, epoch 1) is not (seed 1, epoch 0).
    assert not torch.equal(orders[1], orders[3])


def test_batch_rows_walk_through_each_epoch_without_repeats_and_drop_the_rest() -> None:
    steps = [batch_rows(10, 3, step, seed=0) for step in range(6)]
    assert [epoch for _, epoch in steps] == [0, 0, 0, 1, 1, 1]
    for epoch in (0, 1):
        rows = torch.cat([rows for rows, number in steps if number == epoch])
        assert rows.tolist() == epoch_order(10, 0, epoch)[:9].tolist()
    resumed, _ = batch_rows(10, 3, 4, seed=0)
    assert torch.equal(resumed, steps[4][0])
