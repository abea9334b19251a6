"""SupCon, loss and method: against the formula with loops, NT-Xent, its bounds, and what labels change."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.testing import check_loss
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.losses import NTXent, supcon
from plugins.losses.supcon import SupCon as SupConLoss
from plugins.methods import SimCLR
from plugins.methods.supcon import SupCon, class_metrics

LABELS = torch.tensor([0, 1, 0, 2, 0, 1])


def pairs(n: int = 6, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, dim, generator=generator, dtype=dtype)
    return z[0], z[1]


def supcon_by_the_book(z: list[list[float]], labels: list[int], temperature: float) -> float:
    """Equation 2 of the paper with loops, over all embeddings of a two-view batch and the label of each."""

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in z[i])) / math.sqrt(sum(b * b for b in z[j])) / temperature

    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        denominator = sum(math.exp(similarity(i, a)) for a in others)
        total -= sum(math.log(math.exp(similarity(i, p)) / denominator) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 0, 1], [3, 3, 3, 3, 3, 3], [5, 4, 3, 2, 1, 0]])
def test_loss_equals_equation_2(labels, temperature):
    z_a, z_b = pairs(dtype=torch.float64)
    expected = supcon_by_the_book(torch.cat([z_a, z_b]).tolist(), labels * 2, temperature)
    assert SupConLoss(temperature)(z_a, z_b, torch.tensor(labels)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("labels", [None, torch.arange(6), torch.full((6,), -1), torch.tensor([-1, 3, -1, 7, -1, 0])])
def test_loss_is_nt_xent_where_no_two_images_share_a_known_class(labels):
    z_a, z_b = pairs()
    assert SupConLoss(0.3)(z_a, z_b, labels).item() == pytest.approx(NTXent(0.3)(z_a, z_b).item(), abs=1e-6)


def test_unlabelled_images_are_no_positives_of_each_other_among_labelled_ones():
    z_a, z_b = pairs(dtype=torch.float64)
    expected = supcon_by_the_book(torch.cat([z_a, z_b]).tolist(), [0, 1, 0, 90, 91, 1] * 2, 0.2)
    loss = SupConLoss(0.2)(z_a, z_b, torch.tensor([0, 1, 0, -1, -1, 1]))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_equal_embeddings_cost_the_log_of_the_number_of_candidates(n):
    same = torch.ones(n, 4)
    assert SupConLoss()(same, same, torch.zeros(n, dtype=torch.int64)).item() == pytest.approx(
        math.log(2 * n - 1), abs=1e-5
    )


def test_positives_compete_so_that_even_perfect_classes_cost_the_log_of_their_number():
    images, classes = 12, 3
    labels = torch.arange(images) % classes
    perfect = torch.eye(classes)[labels]
    floor = math.log(2 * images / classes - 1)  # log |P|
    assert SupConLoss(0.02)(perfect, perfect, labels).item() == pytest.approx(floor, abs=1e-5)
    for seed in range(20):
        assert SupConLoss(0.02)(*pairs(images, seed=seed), labels).item() > floor


def test_loss_stays_below_its_upper_bound():
    opposite = torch.tensor([[1.0, 0], [-1, 0]])
    loss = SupConLoss(0.2)(opposite, -opposite).item()
    assert math.log(3) < loss <= math.log(3) + 2 / 0.2


def test_rescaling_swapping_permuting_and_renaming_classes_change_nothing():
    loss, (z_a, z_b) = SupConLoss(0.2), pairs()
    value = loss(z_a, z_b, LABELS).item()
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    scale = torch.logspace(-6, 6, 6)[:, None]
    assert loss(z_a * scale, z_b / scale, LABELS).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_b, z_a, LABELS).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a[order], z_b[order], LABELS[order]).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a, z_b, 10 - LABELS).item() == pytest.approx(value, abs=1e-5)
    assert loss(z_a, z_b, LABELS[order]).item() != pytest.approx(value, abs=1e-3)


def test_gradient_agrees_with_finite_differences():
    z_a, z_b = (z.requires_grad_() for z in pairs(dim=3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: SupConLoss(0.3)(a, b, LABELS), (z_a, z_b))


def test_half_precision_and_autocast_give_the_float32_loss():
    loss, (z_a, z_b) = SupConLoss(0.05), (z.bfloat16() for z in pairs())
    value = loss(z_a, z_b, LABELS)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(z_a.float(), z_b.float(), LABELS).item(), abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(z_a.float(), z_b.float(), LABELS).item() == pytest.approx(value.item(), abs=1e-6)


def test_loss_keeps_the_contract_without_labels():
    check_loss(SupConLoss())


def test_labels_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"SupCon needs one label for each of 6 pairs, got labels \(12,\)"):
        SupConLoss()(*pairs(), LABELS.repeat(2))


def test_a_single_pair_is_refused_with_the_edit():
    with pytest.raises(ConfigError, match=r"got a batch of 1; raise train\.batch_size"):
        SupConLoss()(*pairs(1))


def test_the_docstring_example_runs():
    results = doctest.testmod(supcon)
    assert results.attempted >= 3
    assert results.failed == 0


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def method(**options: object) -> SupCon:
    torch.manual_seed(0)
    return SupCon(resnet8(width=4), noisy, SupConLoss(0.2), **{"out_dim": 8, **options})


def views_of(supcon_method: SupCon, labels: Tensor = LABELS, epoch: int = 0) -> Views:
    n = len(labels)
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    views = supcon_method.make_views(images, SampleRng(7, epoch, torch.arange(n)))
    return Views(images=views.images, labels=labels)


def test_method_hands_labels_to_the_loss_of_one_joint_pass():
    supcon_method = method()
    assert supcon_method.uses_labels
    views = views_of(supcon_method)
    z = supcon_method.head(supcon_method.encoder(torch.cat(views.images)))
    expected = SupConLoss(0.2)(z[:6], z[6:], LABELS).item()
    output = supcon_method(views)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.loss.item() != pytest.approx(SupConLoss(0.2)(z[:6], z[6:]).item(), abs=1e-3)
    torch.testing.assert_close(output.embedding, z[:6].detach())


def test_method_without_known_classes_is_simclr():
    supcon_method = method()
    torch.manual_seed(0)
    simclr = SimCLR(resnet8(width=4), noisy, NTXent(0.2), out_dim=8)
    views = views_of(supcon_method, torch.full((6,), -1))
    ours, theirs = supcon_method(views), simclr(views)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
    assert ours.metrics["positives"].item() == 1
    for our_name, their_name in {
        "positive_similarity": "positive_similarity",
        "class_accuracy": "contrastive_accuracy",
    }.items():
        assert ours.metrics[our_name].item() == pytest.approx(theirs.metrics[their_name].item(), abs=1e-6)


def test_head_takes_the_options_of_simclr():
    head = method(hidden_dim=24, out_dim=7, head_layers=3, head_norm=False).head
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [24, 24, 7]
    assert isinstance(head[-1], nn.Linear)


def test_gradient_reaches_every_parameter():
    supcon_method = method()
    output = supcon_method(views_of(supcon_method))
    output.loss.backward()
    assert [name for name, p in supcon_method.named_parameters() if p.grad is None] == []
    assert not output.embedding.requires_grad


def test_figures_equal_a_loop_over_anchors():
    (z_a, z_b), labels = pairs(seed=3), torch.tensor([0, -1, 0, 2, -1, 0])
    z, classes = torch.cat([z_a, z_b]), [0, 11, 0, 2, 14, 0] * 2
    hits, similarities, counts = 0, [], []
    for i in range(12):
        others = {j: F.cosine_similarity(z[i], z[j], dim=0).item() for j in range(12) if j != i}
        positives = [j for j in others if classes[j] == classes[i]]
        hits += classes[max(others, key=others.get)] == classes[i]
        similarities += [others[j] for j in positives]
        counts.append(len(positives))
    figures = class_metrics(z_a, z_b, labels)
    assert 0 < hits < 12
    assert figures["class_accuracy"].item() == pytest.approx(hits / 12)
    assert figures["positive_similarity"].item() == pytest.approx(sum(similarities) / len(similarities), abs=1e-6)
    assert figures["positives"].item() == pytest.approx(sum(counts) / 12)


def test_constant_encoder_shows_the_trivial_figures():
    supcon_method = method(head_norm=False)
    for parameter in supcon_method.head[-1].parameters():
        nn.init.constant_(parameter, 0.0 if parameter.ndim > 1 else 1.0)
    output = supcon_method(views_of(supcon_method))
    assert output.metrics["positive_similarity"].item() == pytest.approx(1, abs=1e-6)
    assert supcon_method.trivial() == {"positive_similarity": 1.0}
    assert output.loss.item() == pytest.approx(math.log(11), abs=1e-6)


@pytest.mark.parametrize("loss", [NTXent(), lambda z_a, z_b: z_a.sum()], ids=["module", "function"])
def test_a_loss_without_labels_is_refused_with_the_edit(loss):
    with pytest.raises(ConfigError, match=r"takes no labels; set loss: \{name: supcon\}, or method: \{name: simclr\}"):
        SupCon(resnet8(width=4), noisy, loss)


def test_any_loss_that_can_take_labels_is_welcome():
    SupCon(resnet8(width=4), noisy, lambda *embeddings: embeddings[0].sum())


def test_bf16_autocast_gives_a_finite_float32_loss():
    supcon_method = method()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = supcon_method(views_of(supcon_method))
    output.loss.backward()
    assert {tensor.dtype for tensor in (output.loss, output.embedding, *output.metrics.values())} == {torch.float32}
    assert torch.isfinite(supcon_method.encoder.conv1.weight.grad).all()


def test_training_brings_classes_together():
    supcon_method = method()
    optimizer = torch.optim.SGD(supcon_method.parameters(), lr=0.1, momentum=0.9)
    labels, accuracies, losses = torch.arange(16) % 2, [], []
    for epoch in range(20):
        output = supcon_method(views_of(supcon_method, labels, epoch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
        accuracies.append(output.metrics["class_accuracy"].item())
    assert losses[-1] < losses[0] - 0.5
    assert losses[-1] > math.log(15)  # the floor of 8 images of a class
    assert accuracies[-1] == 1
