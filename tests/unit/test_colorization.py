"""Colorization: what the encoder may see, what each pixel is worth, and the method's closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cl_core.assembly import PixelEncoder
from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Encoder, Views
from plugins.encoders import resnet8
from plugins.methods.color import ColorBins, lab_to_rgb, rgb_to_lab
from plugins.methods.colorization import Colorization
from plugins.methods.pixel_head import PixelHead, last_map


def darker(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.5, 1.0)[:, None, None, None]


def as_it_is(images: Tensor, rng: SampleRng) -> Tensor:
    return images


def encoder(**overrides: float) -> Encoder:
    return resnet8(width=4, **overrides)


def colorization(seed: int = 0, augment=as_it_is, factory=encoder, **options: object) -> Colorization:
    torch.manual_seed(seed)
    return Colorization(factory, augment, **{"head_dim": 8, **options})


def random_images(n: int = 6, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def answer(method: Colorization, logits: Tensor) -> None:
    """Make the network give the same logits (Q,) to every pixel."""
    nn.init.zeros_(method.head.answer.weight)
    with torch.no_grad():
        method.head.answer.bias.copy_(logits)


def answering(method: Colorization, monkeypatch: pytest.MonkeyPatch, logits: Tensor) -> None:
    """Make the network give these logits (N, Q, h, w)."""
    monkeypatch.setattr(method, "logits", lambda *_: logits)


def pixels(*colours: tuple[float, float]) -> Views:
    """One image whose asked pixels have these colours."""
    ab = torch.tensor(colours).T[None, :, None, :]
    return Views(images=(torch.zeros(1, 1, 8, 8),), extras={"ab": ab})


# What goes in


def test_input_is_the_lightness_of_the_augmented_image():
    views = colorization(augment=darker).make_views(random_images(), rng())
    lab = rgb_to_lab(darker(random_images(), rng().child(0)))
    assert len(views.images) == 1
    torch.testing.assert_close(views.images[0], (lab[:, :1] - 50) / 100)
    assert torch.equal(views.extras["ab"], lab[:, 1:, ::2, ::2])


def test_no_colour_leaks_into_the_input():
    lab = torch.cat([torch.full((2, 1, 8, 8), 60.0), torch.rand(2, 2, 8, 8) * 40 - 20], dim=1)
    first, swapped = (colorization().make_views(lab_to_rgb(colours), rng(2)) for colours in (lab, lab[:, [0, 2, 1]]))
    torch.testing.assert_close(first.images[0], swapped.images[0], atol=1e-5, rtol=0)
    assert (first.extras["ab"] - swapped.extras["ab"].flip(1)).abs().max() < 1e-2
    assert (first.extras["ab"] - swapped.extras["ab"]).abs().max() > 1


def test_encoder_takes_one_channel():
    asked = []
    colorization(factory=lambda **overrides: asked.append(overrides) or encoder(**overrides))
    assert asked == [{"in_channels": 1}]


def test_views_of_a_sample_do_not_depend_on_its_batch_nor_on_the_encoder():
    whole = colorization(augment=darker).make_views(random_images(), rng())
    alone = colorization(augment=darker, factory=lambda **_: PixelEncoder()).make_views(
        random_images()[4:5], SampleRng(7, 0, torch.tensor([4]))
    )
    torch.testing.assert_close(alone.images[0][0], whole.images[0][4], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.extras["ab"][0], whole.extras["ab"][4], atol=1e-4, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_stride_th_pixel_is_asked_for(stride):
    method = colorization(stride=stride)
    views = method.make_views(random_images(), rng())
    size = -(-16 // stride)
    assert views.extras["ab"].shape == (6, 2, size, size)
    assert method.logits(views.images[0], (size, size)).shape == (6, 77, size, size)


# The decoder


@pytest.mark.parametrize("resolution", [1, 4, 5, 20])
def test_head_answers_at_the_wanted_size_whatever_the_map(resolution):
    head = PixelHead(4, 6, 5).eval()
    assert head(torch.rand(2, 4, resolution, resolution), (8, 9)).shape == (2, 5, 8, 9)


def test_head_answers_where_the_feature_lies():
    head = PixelHead(1, 6, 5).eval()
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 3, 0] = 9
    changed = (head(features, (16, 16)) - head(torch.zeros(1, 1, 4, 4), (16, 16))).abs().sum(dim=1)[0] > 0
    assert changed[12:, :4].all()
    assert not changed[:11].any()
    assert not changed[:, 5:].any()


def test_encoder_without_maps_is_refused():
    class Tokens(PixelEncoder):
        def stages(self, images: Tensor) -> dict[str, Tensor]:
            return {"tokens": images.mean(dim=(2, 3))}

    with pytest.raises(ConfigError, match=r"the last stage of the encoder, tokens, has shape \(2, 3\)"):
        last_map(Tokens(), torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (77, 8, 1, 1)), ({"step": 25.0}, (51, 8, 1, 1)), ({"head_dim": 5}, (77, 5, 1, 1))]
)
def test_one_score_per_bin(options, shape):
    assert colorization(**options).head.answer.weight.shape == shape


# The loss


def test_equal_logits_cost_the_log_of_the_number_of_bins():
    method = colorization(rebalance=1.0)
    answer(method, torch.zeros(77))
    output = method(method.make_views(random_images(), rng()))
    assert output.loss.item() == pytest.approx(math.log(77), abs=1e-5)
    assert method.trivial() == {"loss": pytest.approx(math.log(77)), "accuracy": pytest.approx(1 / 77)}


@pytest.mark.parametrize("options", [{}, {"rebalance": 1.0}, {"neighbors": 9}])
def test_loss_is_the_papers_written_with_loops(options):
    method = colorization(**options)
    images = random_images(3, 6)
    images[1] = images[1, :1]  # grey
    method.prepare(images)
    views = method.make_views(images, rng(3))
    ab = views.extras["ab"]
    soft, weights = method.bins.encode(ab), method.bins.weights
    log_probabilities = method.eval().logits(views.images[0], (3, 3)).log_softmax(dim=1)
    total, count = 0.0, 0
    for n in (0, 2):
        for y in range(3):
            for x in range(3):
                target = soft[n, :, y, x]
                weight = weights[target.argmax()].item()
                total -= weight * sum((target * log_probabilities[n, :, y, x]).tolist())
                count += 1
    assert method(views).loss.item() == pytest.approx(total / count, rel=1e-4)


def test_gradient_of_a_pixel_is_in_proportion_to_its_weight(monkeypatch):
    method = colorization(neighbors=1)
    first, second = (method.bins.centers.tolist().index(center) for center in ([20, 0], [-20, 0]))
    weights = torch.ones(77)
    weights[second] = 3
    monkeypatch.setattr(ColorBins, "weights", weights)
    logits = torch.zeros(1, 77, 1, 2, requires_grad=True)
    answering(method, monkeypatch, logits)
    method(pixels((20, 0), (-20, 0))).loss.backward()
    gradient = logits.grad[0, :, 0]
    assert (gradient[second, 1] / gradient[first, 0]).item() == pytest.approx(3)
    assert (gradient[first, 1] / gradient[second, 0]).item() == pytest.approx(3)


def test_grey_images_count_neither_in_the_loss_nor_in_the_metrics():
    method = colorization().eval()
    images = random_images()
    method.prepare(images)
    mixed = torch.cat([images, images[:, :1].expand(-1, 3, -1, -1)])
    some = method(method.make_views(images, rng()))
    views = method.make_views(mixed, rng(12))
    views.images[0].requires_grad_()
    all_of_them = method(views)
    assert all_of_them.loss.item() == pytest.approx(some.loss.item(), rel=1e-5)
    for name, value in some.metrics.items():
        assert all_of_them.metrics[name].item() == pytest.approx(value.item(), rel=1e-4), name
    all_of_them.loss.backward()
    assert views.images[0].grad[:6].abs().sum() > 0
    assert views.images[0].grad[6:].abs().sum() == 0


def test_a_batch_of_grey_images_teaches_nothing():
    method = colorization()
    output = method(method.make_views(random_images()[:, :1].expand(-1, 3, -1, -1), rng()))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(torch.isfinite(value) for value in output.metrics.values())
    assert all((parameter.grad == 0).all() for parameter in method.parameters())


# Figures


def test_soft_targets_as_answer_reach_the_floor_and_are_as_vivid_as_the_truth(monkeypatch):
    method = colorization()
    method.prepare(random_images())
    views = method.make_views(random_images(), rng())
    answering(method, monkeypatch, method.bins.encode(views.extras["ab"]).clamp(min=1e-12).log())
    output = method(views)
    assert output.loss.item() > 0.1
    assert output.metrics["excess"].item() == pytest.approx(0, abs=1e-5)
    assert output.metrics["accuracy"] == output.metrics["recall"] == 1
    assert output.metrics["chroma_ratio"].item() == pytest.approx(1, abs=0.05)


def test_recall_averages_over_bins_and_accuracy_over_pixels():
    method = colorization()
    red, green = (method.bins.centers.tolist().index(center) for center in ([40, 20], [-40, 40]))
    answer(method, 10 * torch.eye(77)[red])
    metrics = method(pixels((40, 20), (39, 21), (41, 20), (-40, 40))).metrics
    assert metrics["accuracy"].item() == pytest.approx(3 / 4)
    assert metrics["recall"].item() == pytest.approx(1 / 2)
    answer(method, 10 * torch.eye(77)[green])
    assert method(pixels((40, 20), (40, 20), (40, 20))).metrics["recall"] == 0


def test_chroma_ratio_compares_the_lengths_of_colours():
    method = colorization(temperature=0.01)
    answer(method, 10 * torch.eye(77)[method.bins.centers.tolist().index([-20, 0])])
    metrics = method(pixels((0, 30), (40, 30))).metrics
    assert metrics["chroma_ratio"].item() == pytest.approx(20 / 40, abs=1e-4)
    answer(method, 10 * torch.eye(77)[method.bins.centers.tolist().index([0, 0])])
    assert method(pixels((0, 30), (40, 30))).metrics["chroma_ratio"].item() == pytest.approx(0, abs=1e-4)


def test_temperature_sharpens_the_colours_and_leaves_the_loss():
    outputs = []
    for temperature in (1.0, 0.1):
        method = colorization(temperature=temperature)
        logits = torch.full((77,), -30.0)
        logits[method.bins.centers.tolist().index([40, 0])] = 0.7
        logits[method.bins.centers.tolist().index([0, 0])] = 0
        answer(method, logits)
        outputs.append(method(pixels((40, 0), (40, 0))))
    warm, cold = outputs
    assert warm.loss == cold.loss
    assert warm.metrics["chroma_ratio"].item() == pytest.approx(1 / (1 + math.exp(-0.7)), abs=1e-4)
    assert cold.metrics["chroma_ratio"].item() == pytest.approx(1 / (1 + math.exp(-7)), abs=1e-4)


@pytest.mark.parametrize("rebalance", [0.5, 1.0])
def test_the_best_constant_scores_the_trivial_loss(rebalance):
    method, images = colorization(rebalance=rebalance), random_images()
    method.prepare(images)
    views = method.make_views(images, rng())
    soft = method.bins.encode(views.extras["ab"])
    pull = (method.bins.worth(soft)[:, None] * soft).mean(dim=(0, 2, 3))
    answer(method, pull.log().clamp(min=-50))
    assert method(views).loss.item() == pytest.approx(method.trivial()["loss"], rel=1e-4)
    answer(method, soft.argmax(dim=1).flatten().bincount(minlength=77).float())
    assert method(views).metrics["accuracy"].item() == pytest.approx(method.trivial()["accuracy"], abs=1e-6)
    if rebalance == 1:
        assert method.trivial()["loss"] == pytest.approx(torch.special.entr(method.bins.prior).sum().item(), rel=1e-5)


# Data-dependent state


def test_prior_leaves_grey_images_out():
    method, other = colorization(), colorization()
    images = random_images()
    method.prepare(images)
    other.prepare(torch.cat([images, torch.full((5, 3, 16, 16), 0.3)]))
    assert torch.equal(method.bins.joint, other.bins.joint)
    assert method.bins.prior.max() > 2 / 77


def test_training_images_without_colour_are_refused():
    with pytest.raises(ConfigError, match="none of the 4 sampled training images has a colour"):
        colorization().prepare(torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8))


def test_state_dict_carries_prior_and_bins_and_reproduces_the_next_step():
    def step(method: Colorization, optimizer: torch.optim.Optimizer, epoch: int) -> Tensor:
        output = method(method.make_views(random_images(), rng(epoch=epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        return output.loss.detach()

    first, second = colorization(seed=0, augment=darker), colorization(seed=99, augment=darker)
    first.prepare(random_images())
    optimizer, resumed = (torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9) for method in (first, second))
    for epoch in range(2):
        step(first, optimizer, epoch)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(first, optimizer, 2), step(second, resumed, 2))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


# What is kept, and the rest


def test_representation_is_the_encoder_on_lightness():
    method = colorization().eval()
    images = random_images()
    representation = method.representation()
    assert representation.input_name == "lightness"
    lightness = method.make_views(images, rng()).images[0]
    torch.testing.assert_close(representation.pooled(images), method.encoder(lightness), atol=1e-6, rtol=1e-5)
    assert not any("head" in name or "bins" in name for name in representation.state_dict())
    assert method.fine_tune_model()(images).shape == (6, 16)


def test_gradient_reaches_every_parameter():
    method = colorization()
    output = method(method.make_views(random_images(), rng()))
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = colorization()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_panel_shows_grey_predicted_and_true_colours(monkeypatch):
    method = colorization(temperature=0.01, stride=1)
    images = lab_to_rgb(torch.tensor([60.0, 40.0, 0.0])[None, :, None, None].expand(2, 3, 48, 48))
    answer(method, 10 * torch.eye(77)[method.bins.centers.tolist().index([-20, 20])])
    (panel,) = method.panels(images, rng(2))
    assert panel.image.dtype == np.uint8
    assert panel.image.shape == (2 * 2 * 52, 3 * 2 * 52, 3)
    grey, predicted, true = (panel.image[50, 104 * column + 50].tolist() for column in range(3))
    assert grey[0] == grey[1] == grey[2]
    assert true == (images[0, :, 0, 0] * 255).round().tolist()
    shown = lab_to_rgb(torch.tensor([60.0, -20.0, 20.0])[None, :, None, None])
    assert predicted == (shown.flatten() * 255).round().tolist()
    assert f"{math.hypot(20, 20) / 40:.0%} of that of the images" in panel.caption


def test_panel_shows_a_few_images_and_leaves_mode_and_state_as_they_were():
    method = colorization()
    method.encoder.bn1.eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    (panel,) = method.panels(random_images(9, 96), rng(9))
    assert panel.image.shape == (6 * 100, 3 * 100, 3)
    assert method.training
    assert not method.encoder.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_colorization_learns_that_light_is_red_and_dark_is_blue():
    n, side = 24, 8
    light = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(0)) > 0.5
    light = light.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    lab = torch.where(light, torch.tensor([65.0, 40, 20])[:, None, None], torch.tensor([30.0, 20, -60])[:, None, None])
    method = colorization()
    method.prepare(lab_to_rgb(lab))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3, momentum=0.9)
    for epoch in range(40):
        output = method(method.make_views(lab_to_rgb(lab), rng(n, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert method.trivial()["accuracy"] < 0.7
    assert output.metrics["accuracy"] > 0.9
    assert output.loss < method.trivial()["loss"]
