"""Split-brain: that neither half sees what it predicts, and the method's closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.assembly import PixelEncoder
from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Encoder
from plugins.encoders import resnet8
from plugins.methods.color import lab_to_rgb, normalized, rgb_to_lab
from plugins.methods.split_brain import LightnessClasses, SplitBrain

BOTH = pytest.mark.parametrize("targets", ["classification", "regression"])


def darker(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.5, 1.0)[:, None, None, None]


def as_it_is(images: Tensor, rng: SampleRng) -> Tensor:
    return images


def encoder(**overrides: float) -> Encoder:
    return resnet8(width=8, **overrides)


def split_brain(seed: int = 0, augment=as_it_is, factory=encoder, **options: object) -> SplitBrain:
    torch.manual_seed(seed)
    return SplitBrain(factory, augment, **{"head_dim": 8, **options})


def random_images(n: int = 6, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def silence(method: SplitBrain) -> None:
    """Make both heads answer zero everywhere."""
    for head in (method.color_head, method.lightness_head):
        nn.init.zeros_(head.answer.weight)
        nn.init.zeros_(head.answer.bias)


def same_but(images: Tensor, channel: slice) -> Tensor:
    """Normalised Lab with other values in some of the channels."""
    lab = normalized(rgb_to_lab(images))
    lab[:, channel] = torch.rand(lab[:, channel].shape, generator=torch.Generator().manual_seed(1))
    return lab


# Two halves


def test_halves_are_made_with_half_the_width_for_one_and_two_channels():
    asked = []
    method = split_brain(factory=lambda **overrides: asked.append(overrides) or encoder(**overrides))
    assert asked == [{"in_channels": 1, "width_mult": 0.5}, {"in_channels": 2, "width_mult": 0.5}]
    assert method.encoder.out_dim == method.encoder.lightness.out_dim + method.encoder.color.out_dim == 32


def test_views_are_disjoint_and_together_all_of_the_augmented_image():
    views = split_brain(augment=darker).make_views(random_images(), rng())
    lab = rgb_to_lab(darker(random_images(), rng().child(0)))
    assert [view.shape[1] for view in views.images] == [1, 2]
    torch.testing.assert_close(torch.cat(views.images, dim=1), normalized(lab))
    assert torch.equal(views.extras["lab"], lab[:, :, ::2, ::2])


def test_views_of_a_sample_do_not_depend_on_its_batch_nor_on_the_encoder():
    whole = split_brain(augment=darker).make_views(random_images(), rng())
    alone = split_brain(augment=darker, factory=lambda **_: PixelEncoder()).make_views(
        random_images()[4:5], SampleRng(7, 0, torch.tensor([4]))
    )
    for single, view in zip(alone.images, whole.images, strict=True):
        torch.testing.assert_close(single[0], view[4], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.extras["lab"][0], whole.extras["lab"][4], atol=1e-4, rtol=0)


def test_no_half_of_the_features_depends_on_the_others_channels():
    split = split_brain().encoder.eval()
    lab = normalized(rgb_to_lab(random_images())).requires_grad_()
    for part, seen in ((slice(0, 16), slice(0, 1)), (slice(16, 32), slice(1, 3))):
        (gradient,) = torch.autograd.grad(split(lab)[:, part].square().sum(), lab)
        hidden = [channel for channel in range(3) if channel not in range(3)[seen]]
        assert gradient[:, seen].abs().sum() > 0
        assert gradient[:, hidden].abs().max() == 0


def test_other_colours_change_only_the_colour_half_and_the_target_of_the_other():
    split = split_brain().encoder.eval()
    before, after = (
        split.stages(lab) for lab in (normalized(rgb_to_lab(random_images())), same_but(random_images(), slice(1, 3)))
    )
    for name in before:
        half = before[name].shape[1] // 2
        assert torch.equal(before[name][:, :half], after[name][:, :half])
        assert not torch.allclose(before[name][:, half:], after[name][:, half:])


@BOTH
def test_each_loss_trains_one_half_alone(targets):
    method = split_brain(targets=targets)
    views = method.make_views(random_images(), rng())
    for head, silent in (("color", "lightness"), ("lightness", "color")):
        method.zero_grad(set_to_none=True)
        parts = {name: getattr(method, f"{name}_target") for name in ("color", "lightness")}
        try:
            setattr(method, f"{silent}_target", Nothing())
            method(views).loss.backward()
        finally:
            setattr(method, f"{silent}_target", parts[silent])
        trained, other = (
            (method.encoder.lightness, method.encoder.color)
            if head == "color"
            else (method.encoder.color, method.encoder.lightness)
        )
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained.parameters() if parameter.ndim > 1)
        assert all(parameter.grad is None for parameter in other.parameters())


class Nothing(nn.Module):
    """A target that costs nothing."""

    def forward(self, output: Tensor, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {}


# Targets


@pytest.mark.parametrize("count", [25, 50, 100])
def test_lightness_bins_run_from_black_to_white_and_err_by_half_a_bin(count):
    target = LightnessClasses(count)
    lightness = torch.linspace(0, 100, 1001)
    bins = target.bins(lightness[None, None, None].expand(1, 3, 1, 1001))[0, 0]
    assert (bins[0], bins[-1]) == (0, count - 1)
    centres = (bins + 0.5) * 100 / count
    assert (centres - lightness).abs().max() <= 50 / count + 1e-3
    assert len(bins.unique()) == count


def test_equal_scores_cost_the_logs_of_the_numbers_of_bins():
    method = split_brain(lightness_bins=25)
    silence(method)
    output = method(method.make_views(random_images(), rng()))
    assert output.metrics["color_loss"].item() == pytest.approx(math.log(77), abs=1e-5)
    assert output.metrics["lightness_loss"].item() == pytest.approx(math.log(25), abs=1e-5)
    assert output.loss.item() == pytest.approx(math.log(77) + math.log(25), abs=1e-5)
    assert method.trivial() == {
        "loss": pytest.approx(math.log(77) + math.log(25)),
        "color_loss": pytest.approx(math.log(77)),
        "color_accuracy": pytest.approx(1 / 77),
        "lightness_loss": pytest.approx(math.log(25)),
        "lightness_accuracy": pytest.approx(1 / 25),
    }
    assert {"loss", *output.metrics} == set(method.trivial())


def test_classification_is_cross_entropy_with_soft_colours_and_hard_lightness():
    method = split_brain(step=25.0, neighbors=9).eval()
    views = method.make_views(random_images(), rng())
    (lightness, color), lab = views.images, views.extras["lab"]
    of_color = method.color_head(method.encoder.lightness.stages(lightness)["stage3"], (8, 8))
    of_lightness = method.lightness_head(method.encoder.color.stages(color)["stage3"], (8, 8))
    assert of_color.shape[1] == 51
    soft = method.color_target.bins.encode(lab[:, 1:])
    bins = (lab[:, 0] / 2).floor().long()
    color_loss = -(soft * of_color.log_softmax(1)).sum(1).mean().item()
    lightness_loss = F.cross_entropy(of_lightness, bins).item()
    output = method(views)
    assert (soft > 0).sum(dim=1).max() > 5
    assert output.metrics["color_loss"].item() == pytest.approx(color_loss, rel=1e-5)
    assert output.metrics["lightness_loss"].item() == pytest.approx(lightness_loss, rel=1e-5)
    assert output.loss.item() == pytest.approx(color_loss + lightness_loss, rel=1e-5)
    right = (of_color.argmax(1) == soft.argmax(1)).float().mean().item()
    assert output.metrics["color_accuracy"].item() == pytest.approx(right)
    right = (of_lightness.argmax(1) == bins).float().mean().item()
    assert output.metrics["lightness_accuracy"].item() == pytest.approx(right)


def test_regression_is_half_the_squared_distance_in_normalised_lab():
    method = split_brain(targets="regression", stride=4).eval()
    views = method.make_views(random_images(), rng())
    (lightness, color), lab = views.images, normalized(views.extras["lab"])
    of_color = method.color_head(method.encoder.lightness.stages(lightness)["stage3"], (4, 4))
    of_lightness = method.lightness_head(method.encoder.color.stages(color)["stage3"], (4, 4))
    output = method(views)
    assert output.metrics["color_loss"].item() == pytest.approx(
        ((of_color - lab[:, 1:]) ** 2).sum().item() / 2 / (6 * 16), rel=1e-4
    )
    assert output.metrics["lightness_loss"].item() == pytest.approx(
        ((of_lightness - lab[:, :1]) ** 2).sum().item() / 2 / (6 * 16), rel=1e-4
    )
    assert set(output.metrics) == {"color_loss", "lightness_loss"}
    assert output.loss.item() == pytest.approx(sum(value.item() for value in output.metrics.values()), rel=1e-5)


@BOTH
def test_heads_have_the_width_asked_for(targets):
    method = split_brain(targets=targets, head_dim=5)
    assert method.color_head.answer.in_channels == method.lightness_head.answer.in_channels == 5


def test_rebalancing_weighs_colours_and_is_off_by_default():
    images = random_images()
    plain, weighted = split_brain().eval(), split_brain(rebalance=0.1).eval()
    losses = []
    for method in (plain, weighted):
        method.prepare(images)
        losses.append(method(method.make_views(images, rng())).metrics)
    torch.testing.assert_close(plain.color_target.bins.weights, torch.ones(77))
    assert losses[0]["lightness_loss"] == losses[1]["lightness_loss"]
    views = weighted.make_views(images, rng())
    soft = weighted.color_target.bins.encode(views.extras["lab"][:, 1:])
    logits = weighted.color_head(weighted.encoder.lightness.stages(views.images[0])["stage3"], (8, 8))
    cost = -(soft * logits.log_softmax(1)).sum(1) * weighted.color_target.bins.weights[soft.argmax(1)]
    assert losses[1]["color_loss"].item() == pytest.approx(cost.mean().item(), rel=1e-5)
    assert losses[0]["color_loss"].item() != pytest.approx(cost.mean().item(), rel=1e-3)


def test_the_best_constants_score_the_trivial_figures():
    method, images = split_brain(), random_images()
    method.prepare(images)
    views = method.make_views(images, rng())
    silence(method)
    bins = method.lightness_target.bins(views.extras["lab"]).flatten().bincount(minlength=50) / (6 * 64)
    with torch.no_grad():
        method.color_head.answer.bias.copy_(method.color_target.bins.prior.log().clamp(min=-50))
        method.lightness_head.answer.bias.copy_(bins.log().clamp(min=-50))
    output, trivial = method(views), method.trivial()
    for name in ("color_loss", "lightness_loss", "lightness_accuracy"):
        assert output.metrics[name].item() == pytest.approx(trivial[name], rel=1e-4), name
    assert output.loss.item() == pytest.approx(trivial["loss"], rel=1e-4)
    assert trivial["loss"] < math.log(77) + math.log(50)


def test_the_mean_colour_scores_the_trivial_regression_loss():
    method, images = split_brain(targets="regression"), random_images()
    assert method.trivial() == {}
    method.prepare(images)
    views = method.make_views(images, rng())
    silence(method)
    mean = normalized(views.extras["lab"]).mean(dim=(0, 2, 3))
    with torch.no_grad():
        method.lightness_head.answer.bias.copy_(mean[:1])
        method.color_head.answer.bias.copy_(mean[1:])
    output = method(views)
    assert {"loss": output.loss.item(), **{name: value.item() for name, value in output.metrics.items()}} == {
        name: pytest.approx(value, rel=1e-4) for name, value in method.trivial().items()
    }


@BOTH
def test_training_images_without_colour_are_refused(targets):
    with pytest.raises(ConfigError, match="none of the 4 sampled training images has a colour"):
        split_brain(targets=targets).prepare(torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8))


# What is kept, and the rest


def test_representation_is_both_halves_on_lab():
    method = split_brain().eval()
    images = random_images()
    representation = method.representation()
    assert representation.input_name == "lab-split"
    lightness, color = method.make_views(images, rng()).images
    expected = torch.cat([method.encoder.lightness(lightness), method.encoder.color(color)], dim=1)
    torch.testing.assert_close(representation.pooled(images), expected, atol=1e-5, rtol=1e-4)
    stages = representation(images)
    assert {name: tuple(stage.shape) for name, stage in stages.items()} == {
        "stage1": (6, 8, 16, 16),
        "stage2": (6, 16, 8, 8),
        "stage3": (6, 32, 4, 4),
    }
    assert not any("head" in name or "target" in name for name in representation.state_dict())
    assert method.fine_tune_model()(images).shape == (6, 32)


@BOTH
def test_gradient_reaches_every_parameter(targets):
    method = split_brain(targets=targets)
    output = method(method.make_views(random_images(), rng()))
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


@BOTH
def test_bf16_autocast_gives_a_finite_float32_loss(targets):
    method = split_brain(targets=targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())


@BOTH
def test_state_dict_reproduces_the_next_step_bit_for_bit(targets):
    def step(method: SplitBrain, optimizer: torch.optim.Optimizer, epoch: int) -> Tensor:
        output = method(method.make_views(random_images(), rng(epoch=epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        return output.loss.detach()

    first, second = (split_brain(seed=seed, augment=darker, targets=targets, rebalance=0.5) for seed in (0, 99))
    first.prepare(random_images())
    optimizer, resumed = (torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9) for method in (first, second))
    step(first, optimizer, 0)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(first, optimizer, 1), step(second, resumed, 1))
    assert first.trivial() == second.trivial()


def test_both_halves_learn_that_light_is_red_and_dark_is_blue():
    n, side = 24, 8
    light = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(0)) > 0.5
    light = light.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    lab = torch.where(light, torch.tensor([65.0, 40, 20])[:, None, None], torch.tensor([30.0, 20, -60])[:, None, None])
    images = lab_to_rgb(lab)
    method = split_brain()
    method.prepare(images)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3, momentum=0.9)
    for epoch in range(40):
        output = method(method.make_views(images, rng(n, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    for direction in ("color", "lightness"):
        assert method.trivial()[f"{direction}_accuracy"] < 0.7
        assert output.metrics[f"{direction}_accuracy"] > 0.9


@pytest.mark.parametrize("targets", ["classification", "regression"])
def test_targets_decode_to_the_channels_they_were_made_from(targets):
    method = split_brain(targets=targets)
    lab = torch.tensor([51.0, 20.0, -20.0])[None, :, None, None].expand(2, 3, 4, 4)  # in the middle of their bins
    if targets == "classification":
        color = 100 * method.color_target.bins.encode(lab[:, 1:])
        lightness = 100 * F.one_hot(method.lightness_target.bins(lab), 50).movedim(-1, 1).float()
    else:
        lightness, color = normalized(lab).split([1, 2], dim=1)
    torch.testing.assert_close(method.color_target.decode(color), lab[:, 1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(method.lightness_target.decode(lightness), lab[:, :1], atol=1e-3, rtol=0)


def test_panel_shows_both_predictions_beside_the_image():
    method = split_brain()
    images = random_images()
    (panel,) = method.panels(images, rng())
    grey, _, _, true = np.split(panel.image, 4, axis=1)
    middle = panel.image.shape[0] // len(images) // 2
    assert len(set(grey[middle, middle].tolist())) == 1
    enlarge = grey.shape[1] // (images.shape[-1] + 4)
    pixels = true[::enlarge, ::enlarge][2 : 2 + images.shape[-1], 2:-2] / 255
    assert np.abs(pixels - images[0].permute(1, 2, 0).numpy()).max() < 0.01
