"""NNCLR: its neighbours, the objective written with loops, its queue, and what its similarities say."""

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
from plugins.methods.nnclr import NNCLR, nearest


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def nnclr(seed: int = 0, **options: object) -> NNCLR:
    torch.manual_seed(seed)
    widths = {"hidden_dim": 12, "out_dim": 8, "predictor_hidden": 10, "queue_size": 20}
    return NNCLR(resnet8(width=4), noisy, **{**widths, **options})


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def views_of(method: NNCLR, n: int = 6, epoch: int = 0) -> Views:
    return method.make_views(random_images(n), rng(n, epoch))


def outputs(method: NNCLR, views: Views) -> tuple[list[Tensor], list[Tensor]]:
    z = [method.projector(method.encoder(view)) for view in views.images]
    return z, [method.predictor(projection) for projection in z]


def sgd(method: NNCLR, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9)


def step(method: NNCLR, optimizer: torch.optim.Optimizer, epoch: int, n: int = 6) -> float:
    output = method(views_of(method, n, epoch))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    method.after_update((epoch + 1) / 40)
    return output.loss.item()


def contrast_by_the_book(anchors: Tensor, candidates: Tensor, temperature: float) -> float:
    """Mean over i of -log exp(a_i.c_i / t) / sum_k exp(a_i.c_k / t), of unit vectors."""
    a, c = (F.normalize(x.detach().double(), dim=1) for x in (anchors, candidates))
    total = 0.0
    for i in range(len(a)):
        scores = [math.exp(float(a[i] @ c[k]) / temperature) for k in range(len(c))]
        total -= math.log(scores[i] / sum(scores))
    return total / len(a)


def neighbours_by_the_book(vectors: Tensor, memory: Tensor) -> Tensor:
    rows = []
    for vector in vectors:
        similarities = [F.cosine_similarity(vector, entry, dim=0).item() for entry in memory]
        rows.append(memory[similarities.index(max(similarities))])
    return torch.stack(rows)


def test_nearest_is_the_entry_of_highest_cosine_and_carries_no_gradient():
    generator = torch.Generator().manual_seed(0)
    vectors, memory = torch.randn(9, 5, generator=generator), F.normalize(torch.randn(30, 5, generator=generator))
    found = nearest((7 * vectors).requires_grad_(), memory)
    assert torch.equal(found, neighbours_by_the_book(vectors, memory))
    assert len(found.unique(dim=0)) > 3
    assert not found.requires_grad


def test_nearest_of_an_entry_is_the_entry_itself():
    memory = F.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(nearest(memory[4:9], memory), memory[4:9])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_contrasts_neighbours_with_predictions_of_the_other_view_in_both_directions(temperature):
    method = nnclr(temperature=temperature)
    views = views_of(method)
    (z_a, z_b), (p_a, p_b) = outputs(method, views)
    near_a, near_b = (neighbours_by_the_book(z, method.queue.vectors) for z in (z_a, z_b))
    directions = [contrast_by_the_book(near, p, temperature) for near, p in ((near_a, p_b), (near_b, p_a))]
    assert method(views).loss.item() == pytest.approx(sum(directions) / 2, rel=1e-4)


def test_loss_is_the_plain_contrast_where_the_projections_themselves_are_in_the_queue():
    method = nnclr().eval()
    views = views_of(method)
    (z_a, z_b), (p_a, p_b) = outputs(method, views)
    method.queue.push(torch.cat([z_a, z_b]))
    plain = (contrast_by_the_book(z_a, p_b, 0.2) + contrast_by_the_book(z_b, p_a, 0.2)) / 2
    output = method(views)
    assert output.loss.item() == pytest.approx(plain, rel=1e-4)
    assert output.metrics["neighbour_similarity"].item() == pytest.approx(
        output.metrics["sibling_similarity"].item(), abs=1e-5
    )


def test_swapping_the_views_leaves_the_loss_unchanged():
    method = nnclr().eval()
    a, b = views_of(method).images
    assert method(Views(images=(a, b))).loss.item() == pytest.approx(method(Views(images=(b, a))).loss.item(), abs=1e-5)


def test_similarities_are_those_of_siblings_and_of_neighbours_with_the_other_view():
    method = nnclr().eval()
    views = views_of(method)
    (z_a, z_b), _ = outputs(method, views)
    near_a, near_b = (neighbours_by_the_book(z, method.queue.vectors) for z in (z_a, z_b))
    metrics = method(views).metrics
    assert metrics["sibling_similarity"].item() == pytest.approx(F.cosine_similarity(z_a, z_b).mean().item(), abs=1e-5)
    crossed = torch.cat([F.cosine_similarity(near_a, z_b), F.cosine_similarity(near_b, z_a)]).mean().item()
    assert metrics["neighbour_similarity"].item() == pytest.approx(crossed, abs=1e-5)


def test_constant_projections_show_the_trivial_figures():
    method = nnclr(queue_size=6)
    nn.init.zeros_(method.projector[-1].weight)
    nn.init.ones_(method.projector[-1].bias)
    nn.init.zeros_(method.predictor[-1].weight)
    nn.init.zeros_(method.predictor[-1].bias)
    views = views_of(method)
    method(views)
    method.after_update(0.5)  # fills the queue
    output = method(views)
    assert output.loss.item() == pytest.approx(math.log(6), abs=1e-6)
    for name, value in method.trivial().items():
        assert output.metrics[name].item() == pytest.approx(value, abs=1e-6)


def test_queue_takes_the_projections_of_the_first_view_after_the_step():
    method = nnclr().eval()
    before = method.queue.vectors.clone()
    views = views_of(method)
    method(views)
    assert torch.equal(method.queue.vectors, before)
    method.after_update(0.5)
    (z_a, _), _ = outputs(method, views)
    torch.testing.assert_close(method.queue.vectors[:6], F.normalize(z_a, dim=1), atol=1e-6, rtol=1e-5)
    assert torch.equal(method.queue.vectors[6:], before[6:])


def test_projector_has_three_layers_with_norm_and_predictor_two_with_none_at_the_end():
    method = nnclr()
    layer = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(module) for module in method.projector] == [*layer, *layer, nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in method.predictor] == [*layer, nn.Linear]


def test_the_two_views_come_from_the_same_chain_and_differ():
    images = random_images()
    views = nnclr().make_views(images, rng()).images
    assert torch.equal(views[0], noisy(images, rng().child(0)))
    assert torch.equal(views[1], noisy(images, rng().child(1)))
    assert not torch.equal(*views)


def test_each_view_passes_alone():
    method, batches = nnclr(), []
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    method(views_of(method))
    assert batches == [6, 6]


def test_gradient_reaches_every_parameter_and_only_the_loss_carries_one():
    method = nnclr()
    output = method(views_of(method))
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    assert not output.embedding.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = nnclr()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(views_of(method))
    output.loss.backward()
    method.after_update(0.5)
    assert output.loss.dtype == output.embedding.dtype == method.queue.vectors.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_state_dict_reproduces_the_next_step_bit_for_bit():
    first, second = nnclr(seed=0), nnclr(seed=99)
    optimizer, resumed = sgd(first), sgd(second)
    for epoch in range(4):  # 24 projections: the queue of 20 has wrapped
        step(first, optimizer, epoch)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert step(first, optimizer, 4) == step(second, resumed, 4)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_training_lowers_the_loss_below_that_of_the_same_steps_without_learning():
    def last_losses(lr: float) -> float:
        method = nnclr()
        optimizer = sgd(method, lr)
        losses = [step(method, optimizer, epoch, n=16) for epoch in range(40)]
        return sum(losses[-5:]) / 5

    assert last_losses(0.05) < last_losses(0.0) - 0.3
