"""MoCo v2 and v3 against the order of the released code, their closed forms, and the guard of batch statistics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Method, Views
from plugins.encoders import resnet8
from plugins.methods.info_nce import contrast_figures, cosines, info_nce
from plugins.methods.moco_v2 import MoCoV2, queue_similarity
from plugins.methods.moco_v3 import MoCoV3


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def dark(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.2, 0.9)[:, None, None, None]


def moco_v2(seed: int = 0, **options: object) -> MoCoV2:
    torch.manual_seed(seed)
    return MoCoV2(resnet8(width=4), noisy, **{"queue_size": 20, "out_dim": 8, **options})


def moco_v3(seed: int = 0, **options: object) -> MoCoV3:
    torch.manual_seed(seed)
    widths = {"hidden_dim": 12, "out_dim": 8, "predictor_hidden": 10}
    return MoCoV3(resnet8(width=4), noisy, dark, **{**widths, **options})


MAKERS = pytest.mark.parametrize("make", [moco_v2, moco_v3])


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def views_of(method: Method, n: int = 6, epoch: int = 0) -> Views:
    return method.make_views(random_images(n), rng(n, epoch))


def sgd(method: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def step(method: Method, optimizer: torch.optim.Optimizer, epoch: int, progress: float, n: int = 6) -> float:
    output = method(views_of(method, n, epoch))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    method.after_update(progress)
    return output.loss.item()


def vectors(n: int, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


# The objective


def info_nce_by_the_book(similarity: list[list[float]], own: list[int], temperature: float) -> float:
    total = 0.0
    for scores, index in zip(similarity, own, strict=True):
        total -= math.log(math.exp(scores[index] / temperature) / sum(math.exp(s / temperature) for s in scores))
    return total / len(similarity)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_the_loop(temperature):
    similarity, own = vectors(5, 9).tanh(), torch.tensor([0, 8, 3, 3, 1])
    expected = info_nce_by_the_book(similarity.double().tolist(), own.tolist(), temperature)
    assert info_nce(similarity, own, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_one_candidate_costs_nothing_and_equal_scores_the_log_of_their_number():
    own = torch.zeros(3, dtype=torch.int64)
    assert info_nce(vectors(3, 1), own, 0.2).item() == 0
    assert info_nce(torch.full((3, 9), 0.4), own, 0.2).item() == pytest.approx(math.log(9))


def test_a_shift_of_the_scores_of_an_anchor_changes_nothing():
    similarity, own = vectors(4, 6), torch.arange(4)
    shifted = similarity + vectors(4, 1, seed=1)
    assert info_nce(shifted, own, 0.5).item() == pytest.approx(info_nce(similarity, own, 0.5).item(), rel=1e-5)


def test_gradient_of_the_scores_is_softmax_minus_one_hot():
    similarity, own = vectors(4, 6).requires_grad_(), torch.tensor([5, 0, 2, 2])
    info_nce(similarity, own, 1.0).backward()
    expected = (similarity.softmax(dim=1) - F.one_hot(own, 6)).detach() / 4
    torch.testing.assert_close(similarity.grad, expected)


def test_figures_count_anchors_to_whom_their_own_is_nearest_and_ties_as_misses():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.8, 0.3, 0.4], [0.1, 0.2, 0.3]])
    figures = contrast_figures(similarity, torch.tensor([0, 1, 2, 2]))
    assert figures["contrastive_accuracy"].item() == 0.5
    assert figures["positive_similarity"].item() == pytest.approx((0.9 + 0.5 + 0.4 + 0.3) / 4)


def test_cosines_ignore_scale_and_stay_in_full_precision_under_autocast():
    a, b = vectors(4), vectors(5, seed=1)
    expected = F.cosine_similarity(a[:, None], b[None], dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = cosines(100 * a, b / 100)
    torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=1e-5)


# MoCo v2


def test_similarities_have_the_own_key_first_and_then_the_queue():
    queries, keys, negatives = vectors(4), vectors(4, seed=1), vectors(9, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = queue_similarity(3 * queries, keys / 3, negatives)
    assert similarity.shape == (4, 10)
    torch.testing.assert_close(similarity[:, 0], F.cosine_similarity(queries, keys), atol=1e-6, rtol=1e-5)
    expected = F.cosine_similarity(queries[:, None], negatives[None], dim=2)
    torch.testing.assert_close(similarity[:, 1:], expected, atol=1e-6, rtol=1e-5)


def test_v2_takes_the_steps_of_the_released_code_in_their_order():
    """Average, keys, logits against the old queue, optimiser step, enqueue; the first average changes nothing."""
    method = moco_v2(ghost_batch=None, momentum=0.9)
    query = nn.Sequential(copy.deepcopy(method.encoder), copy.deepcopy(method.head))
    key, queue = copy.deepcopy(query), list(method.queue.vectors.clone())
    optimizer, reference = sgd(method), sgd(query)
    for epoch in range(5):
        view_q, view_k = views_of(method, epoch=epoch).images
        with torch.no_grad():
            for average, source in zip(key.parameters(), query.parameters(), strict=True):
                average.copy_(0.9 * average + 0.1 * source)
            keys = F.normalize(key(view_k), dim=1)
        queries = F.normalize(query(view_q), dim=1)
        negatives = queries @ torch.stack(queue).T
        logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), negatives], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
        reference.zero_grad()
        loss.backward()
        reference.step()
        for offset, vector in enumerate(keys):
            queue[(6 * epoch + offset) % 20] = vector
        progress = (epoch + 1) / 5
        assert step(method, optimizer, epoch, progress) == pytest.approx(loss.item(), abs=1e-4)
    torch.testing.assert_close(method.queue.vectors, torch.stack(queue), atol=1e-4, rtol=1e-3)
    assert method.queue.pointer == 10


def test_v2_forward_leaves_the_queue_and_the_update_lets_the_keys_in():
    method = moco_v2(momentum=1.0).eval()
    before = method.queue.vectors.clone()
    views = views_of(method)
    method(views)
    assert torch.equal(method.queue.vectors, before)
    method.after_update(0.5)
    keys = F.normalize(method.key_network(views.images[1]), dim=1)
    torch.testing.assert_close(method.queue.vectors[:6], keys, atol=1e-6, rtol=1e-5)
    assert torch.equal(method.queue.vectors[6:], before[6:])


def test_v2_positive_is_the_key_of_the_other_view_of_the_same_image():
    method = moco_v2().eval()
    view_q, view_k = views_of(method).images
    q, k = method.head(method.encoder(view_q)), method.key_network(view_k)
    expected = F.cosine_similarity(q, k).mean().item()
    metrics = method(Views(images=(view_q, view_k))).metrics
    assert metrics["positive_similarity"].item() == pytest.approx(expected, abs=1e-6)


def test_v2_zero_similarities_show_the_trivial_figures():
    method = moco_v2()
    for network in (method.head, method.key_network[1]):
        for parameter in network[-1].parameters():
            nn.init.zeros_(parameter)
    output = method(views_of(method))
    assert method.trivial()["loss"] == pytest.approx(math.log(21))
    assert output.loss.item() == pytest.approx(math.log(21), abs=1e-6)
    assert output.metrics["information_bound"].item() == pytest.approx(method.trivial()["information_bound"], abs=1e-6)
    assert output.metrics["contrastive_accuracy"].item() == method.trivial()["contrastive_accuracy"] == 0


def test_v2_temperature_divides_the_cosines():
    method = moco_v2(temperature=0.5).eval()
    view_q, view_k = views_of(method).images
    q, k = method.head(method.encoder(view_q)), method.key_network(view_k)
    similarity = queue_similarity(q, k, method.queue.vectors)
    expected = F.cross_entropy(similarity / 0.5, torch.zeros(6, dtype=torch.int64)).item()
    assert method(Views(images=(view_q, view_k))).loss.item() == pytest.approx(expected, abs=1e-6)


def test_v2_head_has_no_batch_norm_and_the_width_of_the_encoder_unless_given():
    assert [type(layer) for layer in moco_v2().head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [moco_v2(hidden_dim=width).head[0].out_features for width in (None, 24)] == [16, 24]


def numbered_images(n: int) -> Tensor:
    return torch.arange(n).float()[:, None, None, None].expand(n, 3, 8, 8).contiguous()


def groups_seen(network: nn.Module, seen: list[set[int]]) -> None:
    network.register_forward_hook(lambda _, arguments, __: seen.append({int(x) for x in arguments[0][:, 0, 0, 0]}))


@pytest.mark.parametrize(("n", "ghost", "groups"), [(16, 4, 4), (18, 4, 5), (8, 32, 2), (4, 32, 2), (5, 2, 2)])
def test_v2_no_key_shares_its_batch_statistics_with_the_group_of_its_query(n, ghost, groups):
    method, queries, keys = moco_v2(ghost_batch=ghost), list[set[int]](), list[set[int]]()
    groups_seen(method.encoder, queries)
    groups_seen(method.key_network[0], keys)
    method(Views(images=(numbered_images(n), numbered_images(n))))
    for seen in (queries, keys):
        assert len(seen) == groups
        assert sorted(row for group in seen for row in group) == list(range(n))
        assert min(map(len, seen)) >= 2
        assert max(map(len, seen)) <= max(ghost, 3)  # no images are left over for a group of one
    shared = max(len(a & b) for a in queries for b in keys)
    assert shared <= math.ceil(max(map(len, queries)) / groups)


@pytest.mark.parametrize(("n", "ghost"), [(6, None), (2, 32), (3, 32)])
def test_v2_batch_passes_whole_without_the_guard_or_when_it_is_too_small(n, ghost):
    method, seen = moco_v2(ghost_batch=ghost), list[set[int]]()
    groups_seen(method.encoder, seen)
    groups_seen(method.key_network[0], seen)
    assert torch.isfinite(method(Views(images=(numbered_images(n), numbered_images(n)))).loss)
    assert seen == [set(range(n)), set(range(n))]


def test_v2_keys_come_back_in_the_order_of_their_queries():
    split, whole = (moco_v2(ghost_batch=ghost).eval() for ghost in (4, None))
    a, b = split(views_of(split, 18)), whole(views_of(whole, 18))
    assert a.loss.item() == pytest.approx(b.loss.item(), abs=1e-6)
    torch.testing.assert_close(a.embedding, b.embedding)


def test_v2_key_network_moves_by_the_constant_momentum_after_the_step():
    method = moco_v2(momentum=0.8)
    start = [p.clone() for p in method.key_network.parameters()]
    step(method, sgd(method), epoch=0, progress=1.0)
    online = [*method.encoder.parameters(), *method.head.parameters()]
    for now, before, source in zip(method.key_network.parameters(), start, online, strict=True):
        torch.testing.assert_close(now, 0.8 * before + 0.2 * source, atol=1e-6, rtol=1e-5)


# MoCo v3


def v3_parts(method: MoCoV3, views: Views) -> tuple[list[Tensor], list[Tensor]]:
    queries = [method.predictor(method.projector(method.encoder(view))) for view in views.images]
    return queries, [method.key_network(view) for view in views.images]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_v3_loss_is_two_tau_times_the_sum_of_both_directions(temperature):
    method = moco_v3(temperature=temperature)
    views = views_of(method)
    (q_a, q_b), (k_a, k_b) = v3_parts(method, views)
    total = 0.0
    for queries, keys in ((q_a, k_b), (q_b, k_a)):
        similarity = F.normalize(queries).double() @ F.normalize(keys).double().T
        total += info_nce_by_the_book(similarity.tolist(), list(range(6)), temperature)
    output = method(views)
    assert output.loss.item() == pytest.approx(2 * temperature * total, rel=1e-4)
    # Of the loss as it was before the factor 2 * temperature.
    assert output.metrics["information_bound"].item() == pytest.approx(math.log(6) - total / 2, abs=1e-4)


def test_v3_equal_similarities_cost_four_tau_log_n_and_tell_nothing():
    method = moco_v3(temperature=0.3)
    nn.init.zeros_(method.predictor[-1].weight)
    nn.init.zeros_(method.predictor[-1].bias)
    output = method(views_of(method))
    assert output.loss.item() == pytest.approx(4 * 0.3 * math.log(6), abs=1e-5)
    assert output.metrics["contrastive_accuracy"].item() == method.trivial()["contrastive_accuracy"] == 0


def test_v3_swapping_the_views_leaves_the_loss_unchanged():
    method = moco_v3().eval()
    a, b = views_of(method).images
    assert method(Views(images=(a, b))).loss.item() == pytest.approx(method(Views(images=(b, a))).loss.item(), abs=1e-5)


def test_v3_projections_are_standardised_without_scale_and_shift():
    method = moco_v3()
    assert isinstance(method.projector[-1], nn.BatchNorm1d)
    assert not method.projector[-1].affine
    z = method.projector(method.encoder(random_images(30)))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    assert isinstance(method.predictor[-1], nn.Linear)


def test_v3_views_come_from_their_own_chains():
    images = random_images()
    view_a, view_b = moco_v3().make_views(images, rng()).images
    assert torch.equal(view_a, noisy(images, rng().child(0)))
    assert torch.equal(view_b, dark(images, rng().child(1)))


def test_v3_momentum_rises_to_one_along_a_cosine():
    method = moco_v3(base_momentum=0.8)
    optimizer = sgd(method)
    start = [p.clone() for p in method.key_network.parameters()]
    step(method, optimizer, epoch=0, progress=0.5)
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    for now, before, source in zip(method.key_network.parameters(), start, online, strict=True):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * source, atol=1e-6, rtol=1e-5)
    halfway = [p.clone() for p in method.key_network.parameters()]
    step(method, optimizer, epoch=1, progress=1.0)
    assert all(torch.equal(*pair) for pair in zip(method.key_network.parameters(), halfway, strict=True))


# Both


def test_v2_views_come_from_the_same_chain_and_differ():
    images = random_images()
    views = moco_v2().make_views(images, rng()).images
    assert torch.equal(views[0], noisy(images, rng().child(0)))
    assert torch.equal(views[1], noisy(images, rng().child(1)))
    assert not torch.equal(*views)


@MAKERS
def test_key_network_is_a_frozen_copy_in_no_parameter_group_and_no_representation(make):
    method = make()
    keys = list(method.key_network.parameters())
    online = dict(method.named_parameters())
    grouped = {id(p) for group in method.parameter_groups() for p in group.params}
    assert not any(p.requires_grad or id(p) in grouped for p in keys)
    assert grouped == {id(p) for name, p in online.items() if not name.startswith("key_network.")}
    assert torch.equal(method.key_network[0].conv1.weight, method.encoder.conv1.weight)
    assert method.representation().encoder is method.encoder


@MAKERS
def test_gradient_reaches_all_but_the_key_network(make):
    method = make()
    output = method(views_of(method))
    output.loss.backward()
    missing = {name for name, p in method.named_parameters() if p.grad is None}
    assert missing == {name for name, _ in method.named_parameters() if name.startswith("key_network.")}
    assert not output.embedding.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())


@MAKERS
def test_bf16_autocast_gives_a_finite_float32_loss(make):
    method = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(views_of(method))
    output.loss.backward()
    method.after_update(0.5)
    assert output.loss.dtype == output.embedding.dtype == torch.float32
    assert all(tensor.dtype != torch.bfloat16 for tensor in method.state_dict().values())
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


@MAKERS
def test_state_dict_reproduces_the_next_step_bit_for_bit(make):
    first, second = make(seed=0), make(seed=99)
    optimizer, resumed = sgd(first), sgd(second)
    for epoch in range(4):  # 24 keys: the queue of 20 has wrapped
        step(first, optimizer, epoch, progress=(epoch + 1) / 8)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert step(first, optimizer, 4, 0.75) == step(second, resumed, 4, 0.75)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


@MAKERS
def test_training_tells_keys_better_than_the_same_steps_without_learning(make):
    def last_losses(lr: float) -> float:
        method = make()
        optimizer = sgd(method, lr)
        losses = [step(method, optimizer, epoch, progress=(epoch + 1) / 30, n=16) for epoch in range(30)]
        return sum(losses[-5:]) / 5

    assert last_losses(0.05) < last_losses(0.0) - 0.3
