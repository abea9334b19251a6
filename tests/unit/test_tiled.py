"""Tiled log-sum-exps against the matrix they avoid, written from the definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cl_core import tiled
from cl_core.tiled import log_sum_exp, log_sum_exp_among
from plugins.losses import DCL, DCLW, InfoNCE, NTXent, SupCon
from plugins.losses.contrastive import contrastive_loss
from plugins.losses.scores import MLP, Bilinear, Cosine, Dot, Gaussian

SIDE = 8
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small enough that a test meets many of them."""
    monkeypatch.setattr(tiled, "CPU_TILE", SIDE)
    monkeypatch.setattr(tiled, "CPU_TILE_OF_NETWORK", SIDE - 1)


def embeddings(count: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Siblings that are not alike: where they are, the gradient vanishes and the definition itself has no digits."""
    generator = torch.Generator().manual_seed(seed)
    z_a, z_b = torch.randn(2, count, dim, generator=generator, dtype=DOUBLE)
    return z_a, z_b


def error(loss, definition, *inputs: Tensor, dtype: torch.dtype = DOUBLE) -> tuple[float, float]:
    """Of the value and, as the norm of the difference over the norm, of all gradients together."""
    values, gradients = [], []
    for function, kind in ((loss, dtype), (definition, DOUBLE)):
        leaves = [z.to(kind).requires_grad_() for z in inputs]
        value = function(*leaves)
        values.append(value.item())
        gradients.append(torch.cat([g.double().flatten() for g in torch.autograd.grad(value, leaves)]))
    difference = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    return abs(values[0] - values[1]) / max(1, abs(values[1])), difference


def plain(temperature: float, *, decoupled: bool = False, sigma: float | None = None, labels: Tensor | None = None):
    """NT-Xent, DCL, DCLW and SupCon as settings of the objective over the whole (2N, 2N) matrix."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        z, n = F.normalize(torch.cat([z_a, z_b]), dim=1), len(z_a)
        itself = torch.eye(2 * n, dtype=torch.bool)
        positives = itself.roll(n, dims=1)
        if labels is not None:
            positives = (labels.repeat(2)[:, None] == labels.repeat(2)) & ~itself
        weight = None
        if sigma is not None:
            weight = (2 - n * (F.cosine_similarity(z_a, z_b) / sigma).softmax(dim=0)).repeat(2).detach()
        options = {"decoupled": decoupled, "weight": weight}
        return contrastive_loss(z @ z.T / temperature, positives, ~positives & ~itself, **options).mean()

    return loss


def losses(temperature: float, pairs: int):
    labels = torch.arange(pairs) % 3
    yield NTXent(temperature), plain(temperature)
    yield lambda a, b: SupCon(temperature)(a, b, labels), plain(temperature, labels=labels)
    yield DCL(temperature), plain(temperature, decoupled=True)
    yield DCLW(temperature), plain(temperature, decoupled=True, sigma=0.5)


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 8, 12, 21])
@pytest.mark.parametrize("temperature", [0.001, 0.02, 0.07, 0.5, 3.0])
def test_losses_and_their_gradients_are_those_of_the_whole_matrix(pairs, temperature):
    for loss, definition in losses(temperature, pairs):
        value, gradient = error(loss, definition, *embeddings(pairs))
        assert value < 1e-12
        assert gradient < 1e-10


@pytest.mark.parametrize("pairs", [3, 16, 21, 200])
@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5])
def test_float32_comes_within_a_hundred_thousandth_of_float64(pairs, temperature):
    for loss, definition in losses(temperature, pairs):
        inputs = [z.float() for z in embeddings(pairs, dim=16)]
        value, gradient = error(loss, definition, *inputs, dtype=torch.float32)
        assert value < 1e-5
        assert gradient < 1e-5


def test_a_single_pair_has_no_other_image_and_costs_exactly_nothing():
    z_a, z_b = (z.requires_grad_() for z in embeddings(1))
    loss = NTXent(0.1)(z_a, z_b)
    loss.backward()
    assert loss == 0
    assert z_a.grad.abs().max() == z_b.grad.abs().max() == 0


def test_nt_xent_of_perfect_pairs_keeps_all_its_digits():
    z = torch.eye(20)
    expected = torch.tensor(38.0).double().mul(torch.tensor(-1 / 0.03).double().exp()).log1p()
    assert NTXent(0.03)(z, z).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected < 1e-12


def test_equal_embeddings_have_no_gradient():
    for loss, _ in losses(0.1, 12):
        z = torch.ones(12, 5, dtype=DOUBLE, requires_grad=True)
        loss(z, z).backward()
        assert z.grad.abs().max() < 1e-14


def test_anchors_of_one_process_against_the_candidates_of_all():
    z, offset, mine = torch.cat(embeddings(21)), 11, 13
    left_out = offset + torch.stack([torch.arange(mine), torch.arange(mine).roll(5)], dim=1)

    def matrix(anchors: Tensor, candidates: Tensor) -> Tensor:
        return (anchors @ candidates.T).scatter(1, left_out, -torch.inf).logsumexp(dim=1).square().sum()

    def ours(anchors: Tensor, candidates: Tensor) -> Tensor:
        return log_sum_exp(anchors, candidates, left_out).square().sum()

    value, gradient = error(ours, matrix, z[offset : offset + mine], z)
    assert value < 1e-12
    assert gradient < 1e-12


@pytest.mark.parametrize("count", [2, 18], ids=["plain", "tiles"])
def test_an_anchor_without_candidates_gets_minus_infinity_and_no_gradient(count):
    z = torch.cat(embeddings(count // 2))
    everything = torch.arange(count).repeat(count, 1)
    for result in (log_sum_exp, lambda a, _, out: log_sum_exp_among(a, out)):
        leaf = z.clone().requires_grad_()
        found = result(leaf, leaf, everything)
        assert (found == -torch.inf).all()
        found.nan_to_num(neginf=0).sum().backward()
        assert leaf.grad.abs().max() == 0


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_one_tile_for_rows_and_columns_gives_what_anchors_and_candidates_apart_give(size):
    z, itself = torch.cat(embeddings(15)) * size, torch.arange(30)[:, None]
    value, gradient = error(
        lambda z: log_sum_exp_among(z, itself).square().mean(), lambda z: log_sum_exp(z, z, itself).square().mean(), z
    )
    assert value < 1e-12
    assert gradient < 1e-12


@pytest.mark.parametrize(
    "score", [Dot(2.0), Cosine(0.1), Gaussian(0.7), Bilinear(6), MLP(6)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_info_nce_with_any_score_is_the_cross_entropy_of_the_whole_matrix(score, symmetric):
    score, own = score.double(), torch.arange(17)

    def matrix(z_a: Tensor, z_b: Tensor, *_: Tensor) -> Tensor:
        scores = score(z_a, z_b)
        forth = F.cross_entropy(scores, own)
        return (forth + F.cross_entropy(scores.T, own)) / 2 if symmetric else forth

    gradients = []
    for loss in (InfoNCE(score, symmetric=symmetric), matrix):
        leaves = [z.requires_grad_() for z in embeddings(17)] + list(score.parameters())
        value = loss(*leaves[:2])
        gradients.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_frozen_weights_and_constant_embeddings_take_no_gradient():
    torch.manual_seed(0)
    score = MLP(6).double()
    frozen, *rest = score.parameters()
    frozen.requires_grad_(False)
    z_a, z_b = embeddings(10)
    InfoNCE(score)(z_a.requires_grad_(), z_b).backward()
    assert frozen.grad is None
    assert z_b.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in rest[1::2])  # not biases: the last changes nothing


def test_second_derivatives_are_refused_instead_of_wrong():
    z_a, z_b = (z.requires_grad_() for z in embeddings(9))
    (slope,) = torch.autograd.grad(NTXent(0.5)(z_a, z_b), z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_autocast_around_the_backward_pass_changes_nothing():
    def slope(autocast: bool) -> Tensor:
        z_a, z_b = (z.float().requires_grad_() for z in embeddings(20))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = NTXent(0.1)(z_a, z_b) + InfoNCE(Cosine(0.1))(z_a, z_b)
            loss.backward()
        return z_a.grad

    assert torch.equal(slope(True), slope(False))


def test_only_tiles_exist_and_no_matrix(monkeypatch):
    """2,000 pairs of which the matrix would have 16 million scores."""
    monkeypatch.setattr(tiled, "CPU_TILE", 64)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            largest = max([largest, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
            return result

    z_a, z_b = (z.float().requires_grad_() for z in embeddings(2000, dim=4))
    labels = torch.arange(2000) % 7
    with Watch():
        for loss, _ in losses(0.5, 2000):
            loss(z_a, z_b).backward()
        SupCon()(z_a, z_b, labels).backward()
    assert largest <= 4000 * 4 * 8  # the (2N, D) of embeddings
