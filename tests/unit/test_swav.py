"""SwAV: balanced codes against Sinkhorn-Knopp by the book, the swapped loss with loops, prototypes and their queue."""

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
from plugins.methods.swav import SwAV, cluster_figures, sinkhorn, swapped_loss


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def small(images: Tensor, rng: SampleRng) -> Tensor:
    return noisy(images, rng)[:, :, ::2, ::2]


def swav(seed: int = 0, **options: object) -> SwAV:
    torch.manual_seed(seed)
    sizes = {"prototypes": 5, "hidden_dim": 12, "out_dim": 8, "frozen_share": 0.0, "queue_from": 0.0}
    return SwAV(resnet8(width=4), noisy, small, **{**sizes, **options})


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def views_of(method: SwAV, n: int = 6, epoch: int = 0) -> Views:
    return method.make_views(random_images(n), rng(n, epoch))


def sgd(method: SwAV, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)


def step(method: SwAV, optimizer: torch.optim.Optimizer, epoch: int, progress: float, n: int = 6) -> float:
    output = method(views_of(method, n, epoch))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    method.after_update(progress)
    return output.loss.item()


def random_scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).tanh()


# Codes


def sinkhorn_by_the_book(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Prototypes to 1/K, then samples to 1/N, in turns; at the end each sample's code to 1."""
    n, k = len(scores), len(scores[0])
    q = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= total * k
        for i in range(n):
            total = sum(q[i])
            q[i] = [value / (total * n) for value in q[i]]
    return [[value * n for value in row] for row in q]


@pytest.mark.parametrize(("n", "k", "epsilon", "iterations"), [(6, 4, 0.05, 3), (3, 8, 0.1, 1), (16, 4, 0.5, 10)])
def test_sinkhorn_equals_the_book(n, k, epsilon, iterations):
    scores = random_scores(n, k)
    expected = torch.tensor(sinkhorn_by_the_book(scores.double().tolist(), epsilon, iterations))
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, atol=1e-5, rtol=1e-4)


def test_each_code_sums_to_one_and_prototypes_share_the_samples_the_better_the_longer():
    scores, unevenness = random_scores(64, 16), []
    for iterations in (1, 3, 10, 100):
        codes = sinkhorn(scores, 0.05, iterations)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
        unevenness.append((codes.sum(dim=0) - 64 / 16).abs().max().item())
    assert unevenness == sorted(unevenness, reverse=True)
    assert unevenness[0] > 0.1
    assert unevenness[-1] < 0.01


def test_equal_scores_give_uniform_codes():
    torch.testing.assert_close(sinkhorn(torch.full((6, 4), 0.3), 0.05, 3), torch.full((6, 4), 0.25))


def test_adding_a_constant_to_all_scores_leaves_the_codes():
    scores = random_scores(6, 4)
    torch.testing.assert_close(sinkhorn(scores + 3, 0.05, 3), sinkhorn(scores, 0.05, 3), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [1e4, -1e4, 1e-4])
def test_scores_of_any_size_give_finite_codes(size):
    codes = sinkhorn(random_scores(6, 4) * size, 0.01, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(6))


def test_no_gradient_passes_through_the_codes():
    assert not sinkhorn(random_scores(6, 4).requires_grad_(), 0.05, 3).requires_grad


# Loss and figures


def swapped_by_the_book(scores: Tensor, codes: Tensor, temperature: float) -> float:
    total, terms = 0.0, 0
    for t in range(len(codes)):
        for v in range(len(scores)):
            if v != t:
                predicted = (scores[v].double() / temperature).softmax(dim=1)
                total -= sum(float(q @ p.log()) for q, p in zip(codes[t].double(), predicted, strict=True))
                terms += scores.shape[1]
    return total / terms


@pytest.mark.parametrize("views", [2, 5])
def test_swapped_loss_equals_the_loop_over_pairs_of_different_views(views):
    scores, codes = random_scores(views, 6, 4), random_scores(2, 6, 4, seed=1).softmax(dim=2)
    expected = swapped_by_the_book(scores, codes, 0.1)
    assert swapped_loss(scores, codes, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_no_view_predicts_its_own_code():
    scores = torch.zeros(2, 3, 4)
    codes = F.one_hot(torch.tensor([[0, 1, 2], [3, 3, 3]]), 4).float()
    scores[1, torch.arange(3), [0, 1, 2]] = scores[0, :, 3] = 50.0
    assert swapped_loss(scores, codes, 0.1).item() == pytest.approx(0, abs=1e-6)


def test_equal_scores_cost_the_log_of_the_number_of_prototypes():
    scores = torch.full((2, 6, 7), 0.3)
    assert swapped_loss(scores, sinkhorn(scores[0], 0.05, 3).expand(2, -1, -1), 0.1).item() == pytest.approx(
        math.log(7), rel=1e-6
    )


@pytest.mark.parametrize(("nearest", "perplexity"), [([0, 0, 0, 0], 1.0), ([0, 0, 3, 3], 2.0), ([0, 1, 2, 3], 4.0)])
def test_perplexity_counts_the_prototypes_in_use(nearest, perplexity):
    scores = F.one_hot(torch.tensor(nearest), 6).float().expand(2, -1, -1)
    assert cluster_figures(scores, scores, 0.1)["prototype_perplexity"].item() == pytest.approx(perplexity, rel=1e-5)


def test_swapped_accuracy_compares_with_the_code_of_the_other_view():
    rows = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 0]])
    codes = F.one_hot(torch.tensor([[3, 1, 1, 1], [0, 1, 2, 2]]), 4).float()
    figures = cluster_figures(F.one_hot(rows, 4).float(), codes, 0.1)
    assert figures["swapped_accuracy"].item() == (3 + 2) / 8


# The method


def scores_of(method: SwAV, views: Views) -> Tensor:
    """(V, N, K), each view on its own: for eval mode."""
    z = [F.normalize(method.projector(method.encoder(view)), dim=1) for view in views.images]
    return torch.stack(z) @ method.prototypes.T


@pytest.mark.parametrize(
    ("small_crops", "options"),
    [(0, {}), (3, {}), (0, {"temperature": 0.3}), (0, {"epsilon": 0.2}), (0, {"iterations": 1})],
)
def test_loss_is_that_of_the_codes_of_the_first_two_views(small_crops, options):
    method = swav(small_crops=small_crops, **options).eval()
    views = views_of(method)
    scores = scores_of(method, views).detach()
    epsilon, iterations = options.get("epsilon", 0.05), options.get("iterations", 3)
    codes = torch.stack([sinkhorn(view, epsilon, iterations) for view in scores[:2]])
    expected = swapped_by_the_book(scores, codes, options.get("temperature", 0.1))
    output = method(views)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.metrics == cluster_figures(scores[:2], codes, options.get("temperature", 0.1))
    torch.testing.assert_close(output.embedding @ method.prototypes.T, scores[0], atol=1e-5, rtol=1e-4)


def test_views_are_two_of_one_chain_and_the_small_crops_of_the_other():
    images = random_images()
    views = swav(small_crops=2).make_views(images, rng()).images
    assert len(views) == 4
    for child, view in enumerate(views):
        chain = noisy if child < 2 else small
        assert torch.equal(view, chain(images, rng().child(child)))
    assert len(swav().make_views(images, rng()).images) == 2


def test_views_of_one_size_pass_together():
    method, batches = swav(small_crops=3), []
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(tuple(arguments[0].shape)))
    method(views_of(method))
    assert batches == [(12, 3, 8, 8), (18, 3, 4, 4)]


def test_constant_embedding_shows_the_trivial_figures():
    method = swav()
    for parameter in method.projector[-1].parameters():
        nn.init.zeros_(parameter)
    output = method(views_of(method))
    assert method.trivial()["loss"] == math.log(5)
    for name, value in {"loss": output.loss, **output.metrics}.items():
        if name != "swapped_accuracy":
            assert value.item() == pytest.approx(method.trivial()[name], rel=1e-6, abs=1e-6)


def test_prototypes_have_unit_length_from_the_start_and_after_each_step():
    method = swav()
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))
    start = method.prototypes.detach().clone()
    step(method, sgd(method, lr=5.0), epoch=0, progress=0.1)
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))
    assert (method.prototypes - start).abs().max() > 0.01


def test_prototypes_stay_for_their_share_of_training_and_move_afterwards():
    method = swav(frozen_share=0.5)
    optimizer, moved = sgd(method), []
    for epoch in range(4):
        before = method.prototypes.detach().clone()
        step(method, optimizer, epoch, progress=(epoch + 1) / 4)
        moved.append(bool((method.prototypes - before).abs().max() > 1e-4))
    assert moved == [False, False, True, True]


def test_the_encoder_learns_while_prototypes_are_frozen():
    method = swav(frozen_share=1.0)
    method(views_of(method)).loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == ["prototypes"]


def test_gradient_reaches_every_parameter_and_only_the_loss_carries_one():
    method = swav(small_crops=1)
    output = method(views_of(method))
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    assert not output.embedding.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_queue_takes_both_views_after_the_step_but_no_small_crops():
    method = swav(queue_size=20, small_crops=1).eval()
    before = method.queue.vectors.clone()
    views = views_of(method)
    method(views)
    assert torch.equal(method.queue.vectors, before)
    method.after_update(0.5)
    z = [F.normalize(method.projector(method.encoder(view)), dim=1) for view in views.images[:2]]
    torch.testing.assert_close(method.queue.vectors[:12], torch.cat(z), atol=1e-6, rtol=1e-5)
    assert torch.equal(method.queue.vectors[12:], before[12:])


@pytest.mark.parametrize(
    ("pushed", "progress", "takes_part"), [(20, 0.5, True), (20, 0.49, False), (19, 0.5, False), (19, 0.49, False)]
)
def test_full_queue_is_shared_out_with_the_batch_from_its_time_on(pushed, progress, takes_part):
    method = swav(queue_size=20, queue_from=0.5).eval()
    method.queue.push(random_scores(pushed, 8))
    method.progress.fill_(progress)
    views = views_of(method)
    scores = scores_of(method, views).detach()
    memory = (method.queue.vectors @ method.prototypes.T).detach()
    rows = [torch.cat([view, memory]) if takes_part else view for view in scores]
    codes = torch.stack([sinkhorn(view, 0.05, 3)[:6] for view in rows])
    assert method(views).loss.item() == pytest.approx(swapped_by_the_book(scores, codes, 0.1), rel=1e-4)


def test_a_method_without_queue_keeps_none():
    assert not any("queue" in name for name in swav().state_dict())


def test_bf16_autocast_gives_the_float32_loss_of_its_embeddings():
    method = swav(queue_size=12)
    method.queue.push(random_scores(12, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(views_of(method))
    output.loss.backward()
    method.after_update(0.5)
    assert output.loss.dtype == output.embedding.dtype == method.queue.vectors.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_loss_part_stays_in_full_precision_under_autocast():
    scores, codes = random_scores(2, 6, 4), random_scores(2, 6, 4, seed=1).softmax(dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, shared = swapped_loss(scores, codes, 0.1), sinkhorn(scores[0], 0.05, 3)
    assert loss.item() == swapped_loss(scores, codes, 0.1).item()
    assert torch.equal(shared, sinkhorn(scores[0], 0.05, 3))


def test_state_dict_reproduces_the_next_step_bit_for_bit():
    options = {"queue_size": 20, "small_crops": 1, "frozen_share": 0.5}
    first, second = swav(seed=0, **options), swav(seed=99, **options)
    optimizer, resumed = sgd(first), sgd(second)
    for epoch in range(5):  # past the frozen share, with a full queue
        step(first, optimizer, epoch, progress=(epoch + 1) / 8)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for epoch in (5, 6):
        progress = (epoch + 1) / 8
        assert step(first, optimizer, epoch, progress) == step(second, resumed, epoch, progress)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_training_lowers_the_loss_below_that_of_the_same_steps_without_learning():
    def last_losses(lr: float) -> float:
        method = swav()
        optimizer = sgd(method, lr)
        losses = [step(method, optimizer, epoch, progress=(epoch + 1) / 30, n=16) for epoch in range(30)]
        return sum(losses[-5:]) / 5

    assert last_losses(0.05) < last_losses(0.0) - 0.2
