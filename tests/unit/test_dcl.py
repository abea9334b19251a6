"""DCL and DCLW against their formulas written with loops, their closed forms, and NT-Xent."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.errors import ConfigError
from cl_core.testing import check_loss
from plugins.losses import NTXent, dcl
from plugins.losses.dcl import DCL, DCLW

LOSSES = pytest.mark.parametrize("loss", [DCL(0.2), DCLW(0.2)], ids=["dcl", "dclw"])


def pairs(n: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, dim, generator=generator, dtype=dtype)
    return z[0], z[1]


def cosine(u: list[float], v: list[float]) -> float:
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def weights_by_the_book(z_a: list[list[float]], z_b: list[list[float]], sigma: float) -> list[float]:
    """2 minus the von Mises-Fisher factor over its mean in the batch."""
    factors = [math.exp(cosine(a, b) / sigma) for a, b in zip(z_a, z_b, strict=True)]
    return [2 - factor / (sum(factors) / len(factors)) for factor in factors]


def dcl_by_the_book(
    z_a: list[list[float]], z_b: list[list[float]], temperature: float, weights: list[float] | None = None
) -> list[float]:
    """The paper's loss of each of the 2N anchors, those of the first view first."""
    n, losses = len(z_a), []
    for here, there in ((z_a, z_b), (z_b, z_a)):
        for i in range(n):
            negatives = [view[k] for view in (here, there) for k in range(n) if k != i]
            push = math.log(sum(math.exp(cosine(here[i], other) / temperature) for other in negatives))
            pull = cosine(here[i], there[i]) / temperature
            losses.append(push - (1 if weights is None else weights[i]) * pull)
    return losses


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(("n", "temperature"), [(2, 1.0), (5, 0.1), (16, 0.5)])
def test_dcl_equals_the_formula_with_loops(n, temperature):
    z_a, z_b = pairs(n, seed=n, dtype=torch.float64)
    expected = mean(dcl_by_the_book(z_a.tolist(), z_b.tolist(), temperature))
    assert DCL(temperature)(z_a, z_b).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "sigma"), [(2, 0.5), (6, 0.5), (6, 2.0)])
def test_dclw_equals_the_formula_with_loops(n, sigma):
    z_a, z_b = pairs(n, seed=n, dtype=torch.float64)
    weights = weights_by_the_book(z_a.tolist(), z_b.tolist(), sigma)
    expected = mean(dcl_by_the_book(z_a.tolist(), z_b.tolist(), 0.1, weights))
    assert DCLW(0.1, sigma)(z_a, z_b).item() == pytest.approx(expected, abs=1e-12)


def test_nt_xent_of_an_anchor_is_the_softplus_of_its_dcl():
    z_a, z_b = pairs(7, dtype=torch.float64)
    anchors = torch.tensor(dcl_by_the_book(z_a.tolist(), z_b.tolist(), 0.3), dtype=torch.float64)
    assert NTXent(0.3)(z_a, z_b).item() == pytest.approx(F.softplus(anchors).mean().item(), abs=1e-12)


@LOSSES
@pytest.mark.parametrize("n", [2, 3, 8])
def test_equal_embeddings_cost_the_log_of_the_number_of_negatives_less_the_pull(loss, n):
    same = torch.ones(n, 4)
    # push log((2N - 2) exp(1 / t)) less pull 1 / t
    assert loss(same, same).item() == pytest.approx(math.log(2 * n - 2), abs=1e-5)


@LOSSES
def test_loss_goes_below_zero_where_siblings_are_equal_and_the_rest_is_orthogonal(loss):
    z = torch.eye(6)
    assert loss(z, z).item() == pytest.approx(math.log(10) - 1 / 0.2, abs=1e-5)


def test_weights_have_mean_one_and_may_be_negative():
    positive = torch.tensor([1.0, -1, -1, -1, -1, -1])
    weights = DCLW(sigma=0.5).weights(positive)
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert weights[0].item() == pytest.approx(2 - 6 * math.exp(2) / (math.exp(2) + 5 * math.exp(-2)), abs=1e-5)
    assert weights[0] < 0


def test_weights_fade_as_sigma_grows():
    z_a, z_b = pairs(5)
    assert DCLW(0.2, sigma=1e4)(z_a, z_b).item() == pytest.approx(DCL(0.2)(z_a, z_b).item(), abs=1e-3)
    assert DCLW(0.2, sigma=0.5)(z_a, z_b).item() != pytest.approx(DCL(0.2)(z_a, z_b).item(), abs=1e-1)


@pytest.mark.parametrize("common", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("loss", [DCL(0.2), DCLW(0.2, sigma=0.5)], ids=["dcl", "dclw"])
def test_gradient_of_a_positive_similarity_is_its_weight_over_temperature_whatever_the_negatives(loss, common):
    n = 4
    angle = torch.tensor([0.1, 0.5, 1.0, 1.4], dtype=torch.float64, requires_grad=True)
    # Each pair turns in a plane of its own; the shared coordinate sets the cosine of negatives, common^2, alone.
    shared = torch.full((n, 1), common, dtype=torch.float64)
    own, rest = math.sqrt(1 - common**2) * torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    z_a = torch.cat([shared, own, rest], dim=1)
    z_b = torch.cat([shared, own * angle.cos(), own * angle.sin()], dim=1)
    loss(z_a, z_b).backward()
    weights = [1.0] * n
    if isinstance(loss, DCLW):
        weights = weights_by_the_book(z_a.tolist(), z_b.tolist(), 0.5)
    slope = (common**2 - 1) * angle.detach().sin()  # of the positive's cosine
    expected = -torch.tensor(weights, dtype=torch.float64) / 0.2 * slope / n  # a pair is two of 2N anchors
    torch.testing.assert_close(angle.grad, expected, atol=1e-12, rtol=0)


@LOSSES
def test_loss_stays_within_its_bounds(loss):
    for seed in range(20):
        value = loss(*pairs(4, dim=2, seed=seed)).item() - math.log(6)
        assert -2 / 0.2 <= value <= (4 if isinstance(loss, DCLW) else 2) / 0.2


@LOSSES
def test_rescaling_swapping_and_permuting_change_nothing(loss):
    z_a, z_b = pairs(9)
    value = loss(z_a, z_b).item()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    scale = torch.logspace(-6, 6, 9)[:, None]
    assert loss(z_a * scale, z_b / scale).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_b, z_a).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a[order], z_b[order]).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a, z_b.roll(1, 0)).item() != pytest.approx(value, abs=1e-3)


def test_gradient_agrees_with_finite_differences():
    z_a, z_b = (z.requires_grad_() for z in pairs(4, dim=3, dtype=torch.float64))
    assert torch.autograd.gradcheck(DCL(0.3), (z_a, z_b))


@LOSSES
def test_half_precision_and_autocast_give_the_float32_loss(loss):
    z_a, z_b = (z.bfloat16() for z in pairs(8))
    value = loss(z_a, z_b)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(z_a.float(), z_b.float()).item(), abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(z_a.float(), z_b.float()).item() == pytest.approx(value.item(), abs=1e-6)


@LOSSES
def test_loss_keeps_the_contract(loss):
    check_loss(loss)


@LOSSES
def test_a_single_pair_is_refused_with_the_edit(loss):
    with pytest.raises(ConfigError, match=r"needs more than one image and got a batch of 1; raise train\.batch_size"):
        loss(*pairs(1))


def test_embeddings_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"DCLW needs two embeddings of one shape, got \(3, 6\), \(2, 6\)"):
        DCLW()(pairs(3)[0], pairs(2)[0])


def test_the_docstring_examples_run():
    results = doctest.testmod(dcl)
    assert results.attempted >= 6
    assert results.failed == 0
