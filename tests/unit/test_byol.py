"""BYOL against its closed forms: the regression, the moving average, and what must never receive gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods import BYOL
from plugins.methods.byol import regression_loss
from plugins.methods.ema import momentum_at, move_average

WIDTHS = {"hidden_dim": 12, "out_dim": 8, "predictor_hidden": 10}


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def dark(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.2, 0.9)[:, None, None, None]


def byol(seed: int = 0, **options: object) -> BYOL:
    torch.manual_seed(seed)
    return BYOL(resnet8(width=4), noisy, dark, **WIDTHS, **options)


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def step(method: BYOL, optimizer: torch.optim.Optimizer, epoch: int, progress: float) -> Tensor:
    output = method(method.make_views(random_images(), rng(epoch=epoch)))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    method.after_update(progress)
    return output.loss.detach()


def sgd(method: BYOL) -> torch.optim.SGD:
    groups = [{"params": group.params} for group in method.parameter_groups()]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def online_parameters(method: BYOL) -> list[Tensor]:
    return [*method.encoder.parameters(), *method.projector.parameters()]


def test_each_view_comes_from_its_own_chain():
    images = random_images()
    view_a, view_b = byol().make_views(images, rng()).images
    assert torch.equal(view_a, noisy(images, rng().child(0)))
    assert torch.equal(view_b, dark(images, rng().child(1)))


def test_views_of_a_sample_do_not_depend_on_its_batch():
    method, images = byol(), random_images()
    whole = method.make_views(images, rng()).images
    alone = method.make_views(images[4:5], SampleRng(7, 0, torch.tensor([4]))).images
    for view, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(single[0], view[4], atol=1e-6, rtol=0)


def test_regression_is_two_minus_two_cosines_and_ignores_scale():
    generator = torch.Generator().manual_seed(0)
    p, z = torch.randn(2, 9, 5, generator=generator)
    expected = (F.normalize(p) - F.normalize(z)).square().sum(1).mean()
    assert regression_loss(p, z).item() == pytest.approx(expected.item(), abs=1e-6)
    assert regression_loss(100 * p, z / 100).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("factor", "value"), [(3.0, 0.0), (-3.0, 4.0)])
def test_regression_is_zero_for_parallel_and_four_for_opposite_vectors(factor, value):
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    assert regression_loss(factor * z, z).item() == pytest.approx(value, abs=1e-5)


def test_regression_of_random_vectors_is_about_two():
    p, z = torch.randn(2, 2000, 256, generator=torch.Generator().manual_seed(0))
    assert regression_loss(p, z).item() == pytest.approx(2, abs=0.02)


def test_loss_is_the_sum_of_both_directions_and_the_metric_their_mean():
    method = byol()
    views = method.make_views(random_images(), rng())
    output = method(views)
    directions = []
    for here, there in (views.images, views.images[::-1]):
        p = method.predictor(method.projector(method.encoder(here)))
        directions.append((F.normalize(p) - F.normalize(method.target(there))).square().sum(1).mean().item())
    assert output.loss.item() == pytest.approx(sum(directions), abs=1e-5)
    assert output.metrics["direction_loss"].item() == pytest.approx(sum(directions) / 2, abs=1e-5)
    assert 0 < output.metrics["direction_loss"].item() < 4


def test_swapping_the_views_leaves_the_loss_unchanged():
    method = byol().eval()
    a, b = method.make_views(random_images(), rng()).images
    assert method(Views(images=(a, b))).loss.item() == pytest.approx(method(Views(images=(b, a))).loss.item(), abs=1e-6)


def test_constant_output_shows_the_trivial_loss():
    method = byol()
    for last in (method.projector[-1], method.predictor[-1], method.target[1][-1]):
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
    output = method(method.make_views(random_images(), rng()))
    assert {"loss", *output.metrics} == set(method.trivial())
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    assert output.metrics["direction_loss"].item() == pytest.approx(method.trivial()["direction_loss"], abs=1e-6)


def test_gradient_reaches_encoder_projector_and_predictor_but_never_the_target():
    method = byol()
    output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    missing = {name for name, parameter in method.named_parameters() if parameter.grad is None}
    assert missing == {name for name, _ in method.named_parameters() if name.startswith("target.")}
    assert not output.embedding.requires_grad


def test_gradient_is_that_of_a_detached_target():
    method = byol().eval()
    views = method.make_views(random_images(), rng())
    method(views).loss.backward()
    gradient = method.encoder.conv1.weight.grad.clone()
    method.zero_grad()
    p_a, p_b = (method.predictor(method.projector(method.encoder(view))) for view in views.images)
    z_a, z_b = (method.target(view).detach() for view in views.images)
    (4 - 2 * F.cosine_similarity(p_a, z_b) - 2 * F.cosine_similarity(p_b, z_a)).mean().backward()
    torch.testing.assert_close(gradient, method.encoder.conv1.weight.grad, atol=1e-6, rtol=1e-4)


def test_target_is_a_frozen_copy_without_predictor_in_no_parameter_group():
    method = byol()
    target = list(method.target.parameters())
    assert len(target) == len(online_parameters(method))
    assert all(torch.equal(*pair) for pair in zip(target, online_parameters(method), strict=True))
    assert not any(parameter.requires_grad for parameter in target)
    grouped = {id(parameter) for group in method.parameter_groups() for parameter in group.params}
    assert grouped == {id(p) for p in [*online_parameters(method), *method.predictor.parameters()]}


def test_target_is_not_part_of_the_representation():
    representation = byol().representation()
    assert not any("target" in name or "predictor" in name for name in representation.state_dict())


def test_momentum_follows_its_cosine():
    assert momentum_at(0, 0.99) == pytest.approx(0.99)
    assert momentum_at(0.5, 0.99) == pytest.approx((1 + 0.99) / 2)
    assert momentum_at(1, 0.99) == 1
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_average_of_a_constant_source_has_the_closed_form(momentum):
    target, source = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    start = [parameter.clone() for parameter in target.parameters()]
    for _ in range(20):
        move_average(target, source, momentum)
    for now, before, constant in zip(target.parameters(), start, source.parameters(), strict=True):
        expected = momentum**20 * before + (1 - momentum**20) * constant
        torch.testing.assert_close(now, expected, atol=1e-14, rtol=0)


def test_target_equals_online_when_momentum_is_zero():
    method = byol(base_momentum=0.0)
    step(method, sgd(method), epoch=0, progress=0.0)
    assert all(torch.equal(*pair) for pair in zip(method.target.parameters(), online_parameters(method), strict=True))


def test_target_never_moves_when_momentum_is_one():
    method = byol(base_momentum=1.0)
    start = [parameter.clone() for parameter in method.target.parameters()]
    optimizer = sgd(method)
    for epoch in range(3):
        step(method, optimizer, epoch, progress=(epoch + 1) / 3)
    assert all(torch.equal(*pair) for pair in zip(method.target.parameters(), start, strict=True))
    assert not torch.equal(method.encoder.conv1.weight, start[0])


def test_average_takes_the_weights_after_the_optimiser_step():
    method = byol(base_momentum=0.8)
    start = [parameter.clone() for parameter in method.target.parameters()]
    step(method, sgd(method), epoch=0, progress=0.5)
    for now, before, source in zip(method.target.parameters(), start, online_parameters(method), strict=True):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * source, atol=1e-6, rtol=1e-5)


def test_target_batch_norm_statistics_come_from_its_own_forward_passes():
    method = byol(base_momentum=0.5)
    views = method.make_views(random_images(), rng())
    before = method.target[0].bn1.running_mean.clone()
    with torch.no_grad():
        expected = before
        for view in views.images:
            mean = method.target[0].conv1(view).mean((0, 2, 3))
            expected = 0.9 * expected + 0.1 * mean
        method.encoder.conv1.weight.mul_(2)  # the online network's statistics differ from now on
    method(views)
    method.after_update(0.5)
    torch.testing.assert_close(method.target[0].bn1.running_mean, expected)
    assert not torch.allclose(method.encoder.bn1.running_mean, expected)


def test_target_follows_train_and_eval_mode():
    method = byol()
    assert method.train().target[0].bn1.training
    method.eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method(method.make_views(random_images(), rng()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_each_network_sees_each_view_alone():
    method, batches = byol(), []
    for network in (method.encoder, method.target[0]):
        network.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    method(method.make_views(random_images(), rng()))
    assert batches == [6, 6, 6, 6]


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = byol()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == output.embedding.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_state_dict_reproduces_the_next_step_bit_for_bit():
    first, second = byol(seed=0), byol(seed=99)
    optimizer, resumed = sgd(first), sgd(second)
    for epoch in range(2):
        step(first, optimizer, epoch, progress=(epoch + 1) / 4)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(first, optimizer, 2, 0.75), step(second, resumed, 2, 0.75))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_deep_copy_of_the_method_has_a_target_of_its_own():
    method = byol(base_momentum=0.0)
    twin = copy.deepcopy(method)
    step(twin, sgd(twin), epoch=0, progress=0.0)
    assert not torch.equal(twin.target[0].conv1.weight, method.target[0].conv1.weight)
    assert torch.equal(twin.target[0].conv1.weight, twin.encoder.conv1.weight)


def test_a_constant_momentum_of_zero_makes_the_target_the_network_itself_throughout():
    constant = byol(base_momentum=0.0, momentum_schedule="constant")
    rising = byol(base_momentum=0.0)
    for method in (constant, rising):
        step(method, sgd(method), 0, progress=0.5)
    online, target = online_parameters(constant), list(constant.target.parameters())
    assert all(torch.equal(a, b) for a, b in zip(online, target, strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(online_parameters(rising), rising.target.parameters(), strict=True)
    )
