"""Supervised: labels and only labels decide, unlabelled images stay out of the loss, and mistakes are explained."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods.supervised import Supervised


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def supervised(**options: object) -> Supervised:
    torch.manual_seed(0)
    return Supervised(resnet8(width=4), noisy, **{"classes": 3, **options})


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def labelled(labels: list[int] | Tensor, images: Tensor | None = None) -> Views:
    labels = torch.as_tensor(labels)
    return Views(images=(random_images(len(labels)) if images is None else images,), labels=labels)


def logits_of(method: Supervised, views: Views) -> Tensor:
    return method.classifier(method.encoder(views.images[0]))


def coloured(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of three kinds that differ in colour, and their kind."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(n) % 3
    images = 0.6 * torch.rand(n, 3, 8, 8, generator=generator)
    images[torch.arange(n), kinds] += 0.4
    return images, kinds


def trained(images: Tensor, labels: Tensor, epochs: int = 12) -> Supervised:
    method = supervised()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        (view,) = method.make_views(images, rng(len(images), epoch)).images
        optimizer.zero_grad()
        method(labelled(labels, view)).loss.backward()
        optimizer.step()
    return method.eval()


def test_view_comes_from_the_chain_and_carries_no_label():
    views = supervised().make_views(random_images(), rng())
    assert len(views.images) == 1
    assert torch.equal(views.images[0], noisy(random_images(), rng().child(0)))
    assert views.labels is None
    assert views.targets is None
    assert Supervised.uses_labels  # so that the trainer fills them in


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_cross_entropy_with_smoothed_targets(smoothing):
    method = supervised(label_smoothing=smoothing).eval()
    views = labelled([0, 2, 1, 1, 0, 2])
    log_probabilities = logits_of(method, views).log_softmax(dim=1)
    targets = (1 - smoothing) * F.one_hot(views.labels, 3) + smoothing / 3
    expected = -(targets * log_probabilities).sum(dim=1).mean()
    assert method(views).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_accuracy_counts_right_labels():
    method = supervised().eval()
    right = logits_of(method, labelled([0] * 6)).argmax(dim=1)
    mixed = right.clone()
    mixed[:2] = (mixed[:2] + 1) % 3
    assert method(labelled(right)).metrics["accuracy"].item() == 1
    assert method(labelled(mixed)).metrics["accuracy"].item() == pytest.approx(4 / 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_unlabelled_images_change_neither_loss_nor_accuracy_nor_gradient(smoothing):
    method = supervised(label_smoothing=smoothing).eval()
    images, labels = random_images(), torch.tensor([2, -1, 0, 1, -1, -1])
    outputs, gradients = [], []
    for views in (labelled(labels, images), labelled(labels[labels >= 0], images[labels >= 0])):
        method.zero_grad()
        outputs.append(method(views))
        outputs[-1].loss.backward()
        gradients.append(method.encoder.conv1.weight.grad.clone())
    assert outputs[0].loss.item() == pytest.approx(outputs[1].loss.item(), abs=1e-6)
    assert outputs[0].metrics["accuracy"] == outputs[1].metrics["accuracy"]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [2, 10])
def test_zero_logits_show_the_trivial_figures(classes, smoothing):
    method = supervised(classes=classes, label_smoothing=smoothing)
    nn.init.zeros_(method.classifier.weight)
    nn.init.zeros_(method.classifier.bias)
    output = method(labelled(torch.arange(2 * classes) % classes))
    assert method.trivial() == {"loss": pytest.approx(math.log(classes)), "accuracy": 1 / classes}
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    assert output.metrics["accuracy"].item() == pytest.approx(method.trivial()["accuracy"])
    assert {"loss", *output.metrics} == set(method.trivial())


def test_too_few_classes_are_refused_with_the_number_that_would_do():
    with pytest.raises(ConfigError, match=r"method.classes 3 leaves no room for label 4.*here at least 5"):
        supervised()(labelled([0, 1, 2, 4]))


@pytest.mark.parametrize("views", [labelled([-1, -1]), Views(images=(random_images(2),))])
def test_batch_without_any_label_is_refused(views):
    with pytest.raises(ConfigError, match=r"no image has a label.*data.source with class labels"):
        supervised()(views)


def test_gradient_reaches_every_parameter():
    method = supervised()
    method(labelled([0, 1, 2, 0, -1, 1])).loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_representation_is_the_encoder_alone_on_images_as_they_are():
    method = supervised().eval()
    representation = method.representation()
    assert representation.input_name == "rgb"
    assert torch.equal(representation.pooled(random_images()), method.encoder(random_images()))
    counts = (sum(p.numel() for p in module.parameters()) for module in (representation, resnet8(width=4)))
    assert len(set(counts)) == 1


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = supervised()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(labelled([0, 1, 2, 0, 1, 2]))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_64_images_are_learnt_by_heart():
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))
    method = trained(images, labels, epochs=150)
    assert method(labelled(labels, images)).metrics["accuracy"].item() == 1


def test_true_labels_carry_over_to_new_images_and_shuffled_ones_do_not():
    (images, kinds), (new_images, new_kinds) = coloured(60, seed=0), coloured(300, seed=1)
    learnt = trained(images, kinds)(labelled(new_kinds, new_images)).metrics["accuracy"].item()
    shuffled = kinds[torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    guessed = trained(images, shuffled)(labelled(new_kinds, new_images)).metrics["accuracy"].item()
    assert learnt > 0.95
    assert guessed == pytest.approx(1 / 3, abs=0.15)


def test_linear_probe_of_the_frozen_features_equals_the_classifier():
    images, kinds = coloured(60, seed=0)
    method = trained(images, kinds)
    new_images, new_kinds = coloured(300, seed=1)
    with torch.no_grad():
        features, new = (method.representation().pooled(batch) for batch in (images, new_images))
        solution = torch.linalg.lstsq(F.pad(features, (0, 1), value=1), F.one_hot(kinds, 3).float()).solution
        probed = ((F.pad(new, (0, 1), value=1) @ solution).argmax(dim=1) == new_kinds).float().mean()
        own = method(labelled(new_kinds, new_images)).metrics["accuracy"]
    assert probed.item() == pytest.approx(own.item(), abs=0.01)
