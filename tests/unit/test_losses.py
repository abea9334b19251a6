"""NT-Xent against Algorithm 1 of SimCLR written with loops, and against its closed forms."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.losses import NTXent, nt_xent


def nt_xent_by_the_book(z: list[list[float]], temperature: float) -> float:
    """Algorithm 1 of SimCLR with loops: rows 2k-1 and 2k (from one) are the two views of image k."""

    def similarity(u: list[float], v: list[float]) -> float:
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))

    def one(i: int, j: int) -> float:
        denominator = 0.0
        for k in range(len(z)):
            if k != i:
                denominator += math.exp(similarity(z[i], z[k]) / temperature)
        return -math.log(math.exp(similarity(z[i], z[j]) / temperature) / denominator)

    total = 0.0
    for k in range(len(z) // 2):
        total += one(2 * k, 2 * k + 1) + one(2 * k + 1, 2 * k)
    return total / len(z)


def pairs(n: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, dim, generator=generator, dtype=dtype)
    return z[0], z[1]


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (2, 1.0), (5, 0.1), (16, 2.0)])
def test_nt_xent_equals_algorithm_1(n, temperature):
    z_a, z_b = pairs(n, seed=n)
    interleaved = torch.stack([z_a, z_b], dim=1).flatten(0, 1).double().tolist()
    expected = nt_xent_by_the_book(interleaved, temperature)
    assert NTXent(temperature)(z_a, z_b).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_nt_xent_is_half_of_the_two_block_form_of_the_released_code():
    z_a, z_b = pairs(7, dtype=torch.float64)
    a, b, itself = F.normalize(z_a), F.normalize(z_b), torch.eye(7, dtype=torch.bool)
    ab, aa, bb = a @ b.T / 0.5, a @ a.T / 0.5, b @ b.T / 0.5
    aa, bb = aa.masked_fill(itself, -torch.inf), bb.masked_fill(itself, -torch.inf)
    rows = torch.arange(7)
    released = F.cross_entropy(torch.cat([ab, aa], 1), rows) + F.cross_entropy(torch.cat([ab.T, bb], 1), rows)
    assert NTXent(0.5)(z_a, z_b).item() == pytest.approx(released.item() / 2, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_equal_embeddings_cost_the_log_of_the_number_of_candidates(n):
    same = torch.ones(n, 4)
    assert NTXent(0.5)(same, same).item() == pytest.approx(math.log(2 * n - 1), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equal_siblings_among_orthogonal_others_have_the_closed_form(temperature):
    z, n = torch.eye(6), 6
    expected = math.log(1 + (2 * n - 2) * math.exp(-1 / temperature))
    assert NTXent(temperature)(z, z).item() == pytest.approx(expected, abs=1e-6)


def test_a_single_pair_costs_nothing():
    assert NTXent(0.1)(*pairs(1)).item() == pytest.approx(0, abs=1e-6)


def test_loss_stays_between_zero_and_its_upper_bound():
    for seed in range(20):
        n, temperature = 4, 0.2
        loss = NTXent(temperature)(*pairs(n, dim=2, seed=seed)).item()
        assert 0 <= loss <= math.log(2 * n - 1) + 2 / temperature


def test_rescaling_single_embeddings_changes_nothing():
    z_a, z_b = pairs(5)
    scale = torch.logspace(-6, 6, 5)[:, None]
    assert NTXent()(z_a * scale, z_b / scale).item() == pytest.approx(NTXent()(z_a, z_b).item(), abs=1e-5)


def test_swapping_the_views_changes_nothing():
    z_a, z_b = pairs(5)
    assert NTXent()(z_b, z_a).item() == pytest.approx(NTXent()(z_a, z_b).item(), abs=1e-6)


def test_permuting_the_pairs_changes_nothing():
    z_a, z_b = pairs(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert NTXent()(z_a[order], z_b[order]).item() == pytest.approx(NTXent()(z_a, z_b).item(), abs=1e-6)


def test_breaking_up_the_pairs_changes_the_loss():
    z_a, z_b = pairs(9)
    assert NTXent()(z_a, z_b.roll(1, 0)).item() != pytest.approx(NTXent()(z_a, z_b).item(), abs=1e-3)


def test_gradient_agrees_with_finite_differences():
    z_a, z_b = (z.requires_grad_() for z in pairs(4, dim=3, dtype=torch.float64))
    assert torch.autograd.gradcheck(NTXent(0.3), (z_a, z_b))


def test_gradient_is_orthogonal_to_each_embedding():
    z_a, z_b = (z.requires_grad_() for z in pairs(6, dtype=torch.float64))
    NTXent(0.2)(z_a, z_b).backward()
    torch.testing.assert_close((z_a * z_a.grad).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert z_a.grad.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_give_the_float32_loss_of_their_values(dtype):
    z_a, z_b = (z.to(dtype) for z in pairs(8))
    loss = NTXent(0.1)(z_a, z_b)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(NTXent(0.1)(z_a.float(), z_b.float()).item(), abs=1e-6)


def test_autocast_leaves_the_loss_in_full_precision():
    z_a, z_b = (z.requires_grad_() for z in pairs(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = NTXent(0.05)(z_a, z_b)
    loss.backward()
    assert loss.item() == pytest.approx(NTXent(0.05)(z_a, z_b).item(), abs=1e-6)
    assert torch.isfinite(z_a.grad).all()


def test_a_zero_embedding_gives_no_nan():
    z_a, z_b = pairs(3)
    z_a[0] = 0
    assert torch.isfinite(NTXent()(z_a, z_b))


def test_embeddings_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"nt_xent needs two embeddings of one shape, got \(3, 6\), \(2, 6\)"):
        NTXent()(pairs(3)[0], pairs(2)[0])


def test_the_docstring_example_runs():
    results = doctest.testmod(nt_xent)
    assert results.attempted >= 3
    assert results.failed == 0
