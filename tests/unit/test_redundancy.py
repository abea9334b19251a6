"""Barlow Twins and VICReg, losses and methods: against their formulas with loops and their closed forms."""

from __future__ import annotations

import doctest
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.testing import check_loss
from cl_core.types import StepOutput
from plugins.encoders import resnet8
from plugins.losses import barlow_twins, vicreg
from plugins.losses.barlow_twins import BarlowTwins as BarlowTwinsLoss
from plugins.losses.barlow_twins import cross_correlation
from plugins.losses.vicreg import VICReg as VICRegLoss
from plugins.losses.vicreg import covariance_term, variance_term
from plugins.methods.redundancy import BarlowTwins, RedundancyReduction, VICReg, off_diagonal_mean_square

LOSSES = pytest.mark.parametrize("loss", [BarlowTwinsLoss(), VICRegLoss()], ids=["barlow_twins", "vicreg"])
METHODS = pytest.mark.parametrize(
    ("kind", "loss"), [(BarlowTwins, BarlowTwinsLoss()), (VICReg, VICRegLoss())], ids=["barlow_twins", "vicreg"]
)

# Four samples, three dimensions of mean 0 and biased variance 1, none correlated with another.
WHITE = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


def pairs(n: int = 9, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_a, noise = torch.randn(2, n, dim, generator=generator, dtype=dtype)
    return z_a, z_a + noise


def columns(z: Tensor) -> list[list[float]]:
    return z.T.tolist()


def barlow_twins_by_the_book(z_a: Tensor, z_b: Tensor, redundancy: float) -> float:
    """Equations 1 and 2 of the paper with loops."""
    total = 0.0
    for i, a in enumerate(columns(z_a)):
        for j, b in enumerate(columns(z_b)):
            c = statistics.correlation(a, b)
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


def vicreg_by_the_book(z_a: Tensor, z_b: Tensor) -> tuple[float, float, float]:
    """s, v(Z) + v(Z') halved, and c(Z) + c(Z') of the paper with loops."""
    (n, dim), variance, covariance = z_a.shape, 0.0, 0.0
    distance = sum((a - b) ** 2 for a, b in zip(z_a.flatten().tolist(), z_b.flatten().tolist(), strict=True))
    for view in (columns(z_a), columns(z_b)):
        for i, one in enumerate(view):
            variance += max(0.0, 1 - (statistics.variance(one) + 1e-4) ** 0.5) / dim / 2
            covariance += sum(statistics.covariance(one, two) ** 2 for j, two in enumerate(view) if j != i) / dim
    return distance / n / dim, variance, covariance


@pytest.mark.parametrize("redundancy", [0.0, 0.005, 1.0])
def test_barlow_twins_equals_the_formula_with_loops(redundancy):
    z_a, z_b = pairs()
    expected = barlow_twins_by_the_book(z_a, z_b, redundancy)
    # The epsilon that guards constant dimensions moves the fifth digit.
    assert BarlowTwinsLoss(redundancy, scale=1.0)(z_a, z_b).item() == pytest.approx(expected, abs=1e-3)
    assert BarlowTwinsLoss(redundancy, scale=1.0)(1e3 * z_a, 1e3 * z_b).item() == pytest.approx(expected, abs=1e-8)


def test_barlow_twins_scale_is_a_factor_on_the_whole():
    assert BarlowTwinsLoss(scale=0.1)(*pairs()).item() == pytest.approx(
        BarlowTwinsLoss(scale=1.0)(*pairs()).item() / 10
    )


def test_barlow_twins_of_equal_uncorrelated_views_is_zero():
    assert BarlowTwinsLoss(redundancy=1.0, scale=1.0)(WHITE, WHITE).item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_barlow_twins_of_constant_embeddings_is_their_width(dim):
    constant = torch.full((8, dim), 0.7)
    assert BarlowTwinsLoss(scale=1.0)(constant, -constant).item() == pytest.approx(dim, abs=1e-5)


def test_barlow_twins_ignores_shift_and_scale_of_a_dimension_and_the_order_of_all():
    loss, (z_a, z_b) = BarlowTwinsLoss(scale=1.0), (100 * z for z in pairs())
    value = loss(z_a, z_b).item()
    scale, shift = torch.tensor([1.0, 3, 10, 30]), torch.tensor([-50.0, 0, 7, 100])
    order = torch.tensor([2, 0, 3, 1])
    assert loss(scale * z_a + shift, z_b / scale.sqrt() - shift).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a[:, order], z_b[:, order]).item() == pytest.approx(value, abs=1e-9)
    assert loss(z_a[:, order], z_b).item() != pytest.approx(value, abs=1e-2)


def test_cross_correlation_lies_in_minus_one_to_one_and_transposes_with_the_views():
    for seed in range(10):
        z_a, z_b = pairs(3, seed=seed)
        assert cross_correlation(z_a, z_b).abs().max() <= 1
        torch.testing.assert_close(cross_correlation(z_a, z_b), cross_correlation(z_b, z_a).T)
    assert cross_correlation(WHITE, -WHITE).diagonal().tolist() == pytest.approx([-1, -1, -1], abs=1e-4)


def test_barlow_twins_reaches_its_upper_bound_where_views_are_opposite_and_dimensions_equal():
    z = torch.tensor([[1.0] * 3, [-1.0] * 3])
    loss = BarlowTwinsLoss(redundancy=0.5, scale=2.0)(z, -z).item()
    assert loss == pytest.approx(2 * 3 * (4 + 0.5 * 2), rel=1e-4)
    assert loss <= 2 * 3 * (4 + 0.5 * 2)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_vicreg_equals_the_formula_with_loops(weights, size):
    z_a, z_b = (size * z for z in pairs())
    expected = sum(weight * term for weight, term in zip(weights, vicreg_by_the_book(z_a, z_b), strict=True))
    assert VICRegLoss(*weights)(z_a, z_b).item() == pytest.approx(expected, abs=1e-10)


def test_vicreg_of_equal_constant_embeddings_is_the_variance_term_alone():
    constant = torch.full((8, 5), 3.0)
    assert VICRegLoss()(constant, constant).item() == pytest.approx(24.75, abs=1e-4)


def test_vicreg_of_white_embeddings_of_unit_variance_is_the_invariance_term_alone():
    z_a, z_b = WHITE, WHITE.roll(1, 0)
    assert VICRegLoss()(z_a, z_a).item() == pytest.approx(0, abs=1e-12)
    assert VICRegLoss()(z_a, z_b).item() == pytest.approx(25 * F.mse_loss(z_a, z_b).item(), abs=1e-12)


def test_variance_term_stops_at_standard_deviation_one():
    assert variance_term(WHITE * 0.75**0.5).item() == 0  # of unbiased variance 1
    assert variance_term(WHITE * 7).item() == 0
    assert variance_term(WHITE * 0.75**0.5 / 2).item() == pytest.approx(0.5, abs=1e-3)


def test_variance_and_covariance_ignore_a_shift_of_each_dimension():
    z, _ = pairs()
    moved = z + torch.tensor([3.0, -7, 0, 20])
    assert variance_term(0.5 * moved).item() == pytest.approx(variance_term(0.5 * z).item(), abs=1e-12)
    assert covariance_term(moved).item() == pytest.approx(covariance_term(z).item(), abs=1e-12)
    assert VICRegLoss()(moved, z).item() > VICRegLoss()(z, z).item() + 1


@LOSSES
def test_swapping_the_views_and_permuting_the_batch_change_nothing(loss):
    z_a, z_b = pairs()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert loss(z_b, z_a).item() == pytest.approx(loss(z_a, z_b).item(), abs=1e-10)
    assert loss(z_a[order], z_b[order]).item() == pytest.approx(loss(z_a, z_b).item(), abs=1e-10)
    assert loss(z_a[order], z_b).item() != pytest.approx(loss(z_a, z_b).item(), abs=1e-2)


@LOSSES
def test_gradient_agrees_with_finite_differences(loss):
    z_a, z_b = (z.requires_grad_() for z in pairs(5, 3))
    assert torch.autograd.gradcheck(loss, (z_a, z_b))


@LOSSES
def test_half_precision_and_autocast_give_the_float32_loss(loss):
    z_a, z_b = (z.bfloat16() for z in pairs())
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


@LOSSES
def test_embeddings_of_different_shape_are_refused(loss):
    with pytest.raises(ValueError, match=r"needs two embeddings of one shape, got \(9, 4\), \(8, 4\)"):
        loss(pairs(9)[0], pairs(8)[0])


@pytest.mark.parametrize("module", [barlow_twins, vicreg])
def test_the_docstring_examples_run(module):
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def dark(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.2, 0.9)[:, None, None, None]


def build(kind: type[RedundancyReduction], loss: nn.Module, **options: int) -> RedundancyReduction:
    torch.manual_seed(0)
    return kind(resnet8(width=4), noisy, dark, loss, **{"expander_dim": 12, **options})


def random_images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


@METHODS
def test_each_view_comes_from_its_own_chain(kind, loss):
    images = random_images()
    view_a, view_b = build(kind, loss).make_views(images, rng()).images
    assert torch.equal(view_a, noisy(images, rng().child(0)))
    assert torch.equal(view_b, dark(images, rng().child(1)))


@METHODS
def test_loss_is_that_of_the_expanded_views_each_passed_alone(kind, loss):
    method, batches = build(kind, loss), []
    views = method.make_views(random_images(), rng())
    z_a, z_b = (method.expander(method.encoder(view)) for view in views.images)
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    output = method(views)
    assert output.loss.item() == pytest.approx(loss(z_a, z_b).item(), rel=1e-5)
    torch.testing.assert_close(output.embedding, z_a.detach())
    assert batches == [6, 6]


@METHODS
def test_expander_has_three_layers_of_the_width_asked_for_and_a_plain_end(kind, loss):
    expander = build(kind, loss, expander_dim=20).expander
    assert [layer.out_features for layer in expander if isinstance(layer, nn.Linear)] == [20, 20, 20]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in expander) == 2
    assert isinstance(expander[-1], nn.Linear)


@METHODS
def test_gradient_reaches_the_encoder_and_only_the_loss_carries_one(kind, loss):
    method = build(kind, loss)
    output = method(method.make_views(random_images(), rng()))
    assert not output.embedding.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    assert method.encoder.conv1.weight.grad.abs().max() > 0


@METHODS
def test_constant_encoder_shows_the_trivial_figures(kind, loss):
    method = build(kind, loss)
    for parameter in method.expander[-1].parameters():
        nn.init.constant_(parameter, 0.0 if parameter.ndim > 1 else 0.7)
    figures = method(method.make_views(random_images(), rng())).metrics
    assert set(figures) == set(method.trivial())
    for name, value in method.trivial().items():
        assert figures[name].item() == pytest.approx(value, abs=1e-6)


def test_barlow_twins_figures_are_the_two_parts_of_the_cross_correlation():
    z_a, z_b = (z.float() for z in pairs())
    a, b = columns(z_a), columns(z_b)
    diagonal = [statistics.correlation(a[i], b[i]) for i in range(4)]
    rest = [statistics.correlation(a[i], b[j]) ** 2 for i in range(4) for j in range(4) if i != j]
    figures = BarlowTwins.figures(z_a, z_b)
    assert figures["agreement"].item() == pytest.approx(sum(diagonal) / 4, abs=1e-4)
    assert figures["redundancy"].item() == pytest.approx((sum(rest) / 12) ** 0.5, abs=1e-4)


def test_vicreg_figures_are_distance_deviation_and_covariance():
    z_a, z_b = (z.float() for z in pairs())
    views = columns(z_a), columns(z_b)
    deviations = [statistics.stdev(column) for view in views for column in view]
    rest = [statistics.covariance(v[i], v[j]) ** 2 for v in views for i in range(4) for j in range(4) if i != j]
    figures = VICReg.figures(z_a, z_b)
    assert figures["distance"].item() == pytest.approx((z_a - z_b).square().mean().item(), abs=1e-6)
    assert figures["deviation"].item() == pytest.approx(sum(deviations) / 8, abs=1e-5)
    assert figures["covariance"].item() == pytest.approx((sum(rest) / 24) ** 0.5, abs=1e-5)


def test_a_single_dimension_has_no_other_to_be_redundant_with():
    assert off_diagonal_mean_square(torch.ones(1, 1)).item() == 0


@METHODS
def test_bf16_autocast_gives_finite_float32_values(kind, loss):
    method = build(kind, loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert {tensor.dtype for tensor in (output.loss, output.embedding, *output.metrics.values())} == {torch.float32}
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def trained(method: RedundancyReduction, lr: float, steps: int = 30) -> list[StepOutput]:
    optimizer, outputs = torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9), []
    for epoch in range(steps):
        output = method(method.make_views(random_images(32), rng(32, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        outputs.append(output)
    return outputs


def test_training_makes_views_agree_and_the_redundancy_term_keeps_dimensions_apart():
    outputs = trained(build(BarlowTwins, BarlowTwinsLoss(redundancy=0.3)), lr=0.05)
    free = trained(build(BarlowTwins, BarlowTwinsLoss(redundancy=0.0)), lr=0.05)
    assert outputs[-1].loss.item() < 0.5 * outputs[0].loss.item()
    assert outputs[-1].metrics["agreement"] > outputs[0].metrics["agreement"] + 0.2
    assert outputs[-1].metrics["redundancy"] < free[-1].metrics["redundancy"] - 0.1


def test_training_brings_views_together_without_losing_their_variance():
    outputs = trained(build(VICReg, VICRegLoss()), lr=0.01)
    assert outputs[-1].loss.item() < 0.7 * outputs[0].loss.item()
    assert outputs[-1].metrics["deviation"] > 0.5
