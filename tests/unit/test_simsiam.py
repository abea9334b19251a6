"""SimSiam against its closed forms: what takes gradient, and what happens without stop-gradient or predictor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.measures.diagnostics import collapse_figures
from cl_core.types import Augmentation, Views
from plugins.encoders import resnet8
from plugins.methods.simsiam import SimSiam, mean_cosine

WIDTHS = {"hidden_dim": 12, "out_dim": 16, "predictor_hidden": 6}


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def buried(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=3.0, shape=images.shape[1:])


def simsiam(**options: object) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(resnet8(width=4), noisy, **{**WIDTHS, **options})


def random_images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def views_of(method: SimSiam) -> Views:
    return method.make_views(random_images(), rng())


def gradients(method: SimSiam, loss: Tensor) -> list[Tensor]:
    method.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in [*method.encoder.parameters(), *method.projector.parameters()]]


def test_the_two_views_come_from_the_same_chain_and_differ():
    images = random_images()
    view_a, view_b = simsiam().make_views(images, rng()).images
    assert torch.equal(view_a, noisy(images, rng().child(0)))
    assert torch.equal(view_b, noisy(images, rng().child(1)))
    assert not torch.equal(view_a, view_b)


@pytest.mark.parametrize("options", [{}, {"stop_gradient": False}, {"predictor": False}])
def test_loss_is_minus_the_mean_cosine_of_both_directions(options):
    method = simsiam(**options)
    views = views_of(method)
    z_a, z_b = (method.projector(method.encoder(view)) for view in views.images)
    p_a, p_b = method.predictor(z_a), method.predictor(z_b)
    expected = [-(F.normalize(p) * F.normalize(z)).sum(1).mean().item() for p, z in ((p_a, z_b), (p_b, z_a))]
    output = method(views)
    assert output.loss.item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    similarity = (F.normalize(z_a) * F.normalize(z_b)).sum(1).mean().item()
    assert output.metrics["positive_similarity"].item() == pytest.approx(similarity, abs=1e-6)
    torch.testing.assert_close(output.embedding, z_a.detach())


def test_swapping_the_views_leaves_the_loss_unchanged():
    method = simsiam()
    a, b = views_of(method).images
    assert method(Views(images=(a, b))).loss.item() == pytest.approx(method(Views(images=(b, a))).loss.item(), abs=1e-6)


@pytest.mark.parametrize(("factor", "value"), [(3.0, 1.0), (-3.0, -1.0)])
def test_cosine_is_one_for_parallel_and_minus_one_for_opposite_vectors(factor, value):
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    assert mean_cosine(factor * z, z).item() == pytest.approx(value, abs=1e-6)


def test_loss_of_random_vectors_is_about_zero():
    p, z = torch.randn(2, 2000, 64, generator=torch.Generator().manual_seed(0))
    assert mean_cosine(p, z).item() == pytest.approx(0, abs=0.02)


def test_constant_output_shows_the_trivial_loss():
    method = simsiam(predictor=False).eval()
    nn.init.zeros_(method.projector[-2].weight)
    nn.init.ones_(method.projector[-1].running_mean)
    output = method(views_of(method))
    assert {"loss", *output.metrics} == set(method.trivial())
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    assert output.metrics["positive_similarity"].item() == pytest.approx(
        method.trivial()["positive_similarity"], abs=1e-6
    )


def test_gradient_is_that_of_detached_projections():
    method = simsiam()
    views = views_of(method)
    actual = gradients(method, method(views).loss)
    z_a, z_b = (method.projector(method.encoder(view)) for view in views.images)
    p_a, p_b = method.predictor(z_a), method.predictor(z_b)
    constant_a, constant_b = z_a.detach(), z_b.detach()
    cosine = F.cosine_similarity(p_a, constant_b) + F.cosine_similarity(p_b, constant_a)
    torch.testing.assert_close(actual, gradients(method, -cosine.mean() / 2), atol=1e-6, rtol=1e-4)


def test_projection_that_is_predicted_takes_no_gradient_unless_the_stop_is_off():
    for stop_gradient in (True, False):
        method = simsiam(stop_gradient=stop_gradient)
        for parameter in method.predictor.parameters():
            nn.init.zeros_(parameter)
        nn.init.ones_(method.predictor[-1].bias)  # a constant prediction passes nothing back to its own view
        grads = gradients(method, method(views_of(method)).loss)
        assert any(grad.abs().max() > 0 for grad in grads) is not stop_gradient


def test_without_predictor_the_stop_only_halves_the_gradient():
    stopped, free = (simsiam(predictor=False, stop_gradient=stop) for stop in (True, False))
    views = views_of(free)
    halved = gradients(stopped, stopped(views).loss)
    whole = gradients(free, free(views).loss)
    assert whole[0].abs().max() > 1e-4
    torch.testing.assert_close([2 * grad for grad in halved], whole, atol=1e-6, rtol=1e-4)


def test_gradient_reaches_every_parameter_and_only_the_loss_carries_one():
    method = simsiam()
    output = method(views_of(method))
    assert not output.embedding.requires_grad
    assert not output.metrics["positive_similarity"].requires_grad
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("layers", "widths"), [(2, [12, 16]), (3, [12, 12, 16])])
def test_projector_ends_in_batch_norm_without_parameters(layers, widths):
    projector = simsiam(projector_layers=layers).projector
    assert [layer.out_features for layer in projector if isinstance(layer, nn.Linear)] == widths
    assert list(projector[-1].parameters()) == []
    z = projector(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(16), atol=1e-2, rtol=0)


def test_predictor_is_a_bottleneck_that_ends_in_a_linear_layer():
    predictor = simsiam().predictor
    assert [type(layer) for layer in predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (predictor[0].out_features, predictor[-1].out_features) == (6, 16)


def test_each_view_passes_alone():
    method, batches = simsiam(), []
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    method(views_of(method))
    assert batches == [6, 6]


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = simsiam()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(views_of(method))
    output.loss.backward()
    assert output.loss.dtype == output.embedding.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def trained(chain: Augmentation, steps: int, **options: bool) -> tuple[list[float], dict[str, float]]:
    """The losses of a short training, and the spread of the last embedding."""
    torch.manual_seed(0)
    method = SimSiam(resnet8(width=4), chain, **WIDTHS, **options)
    optimizer, losses = torch.optim.SGD(method.parameters(), lr=0.2, momentum=0.9), []
    for epoch in range(steps):
        output = method(method.make_views(random_images(32), rng(32, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses, collapse_figures(output.embedding)


def test_training_lowers_the_loss_and_keeps_the_embeddings_apart():
    losses, figures = trained(noisy, steps=30)
    assert losses[-1] < losses[0] - 0.3
    assert figures["feature_std"] > 0.9


@pytest.mark.parametrize("missing", ["nothing", "stop_gradient", "predictor"])
def test_views_with_little_in_common_collapse_where_stop_gradient_or_predictor_is_missing(missing):
    options = {} if missing == "nothing" else {missing: False}
    _, figures = trained(buried, steps=120, **options)
    # The last batch norm keeps up each dimension's spread, so the rank tells what spread and loss may not.
    assert (figures["effective_rank"] < 4) is bool(options)


def test_the_predictor_alone_keeps_its_learning_rate():
    method = simsiam()
    predictor = {id(parameter) for parameter in method.predictor.parameters()}
    for group in method.parameter_groups():
        assert {id(parameter) in predictor for parameter in group.params} == {group.constant_lr}
