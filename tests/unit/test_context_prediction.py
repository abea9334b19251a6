"""Context prediction: where patches lie and what the labels say of it, each guard, and the method's closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods.context_prediction import ContextPrediction, PatchGeometry, neighbours, placed, projected

UNGUARDED = {"colour": "none", "standardize": False, "min_crop": 1.0}
AXIS = torch.tensor([-1.0, 2.0, -1.0])  # green minus magenta
# Written out by hand from the picture 0 1 2 / 3 . 4 / 5 6 7: where the second patch lies, (y, x).
COMPASS = {0: (-1, -1), 1: (-1, 0), 2: (-1, 1), 3: (0, -1), 4: (0, 1), 5: (1, -1), 6: (1, 0), 7: (1, 1)}


def context(seed: int = 0, in_channels: int = 3, **options: object) -> ContextPrediction:
    torch.manual_seed(seed)
    return ContextPrediction(resnet8(width=4, in_channels=in_channels), **{"hidden_dim": 16, **options})


def random_images(n: int = 6, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def positions(method: ContextPrediction, n: int, height: int = 32, width: int = 32) -> tuple[Tensor, Views]:
    """Top-left pixel (y, x) of every patch, (N, T, 2), read from images in which pixel (y, x) has its own value."""
    index = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width).repeat(n, 3, 1, 1)
    views = method.make_views(index, rng(n))
    patches = views.images[0].long()
    first, size = patches[:, :, 0, 0, 0], patches.shape[-1]
    span = torch.arange(size)
    assert torch.equal(patches, (first[..., None, None, None] + span[:, None] * width + span).expand_as(patches))
    return torch.stack([first // width, first % width], dim=-1), views


def offsets(method: ContextPrediction, n: int, **shape: int) -> tuple[Tensor, Tensor]:
    """From the first to the second patch of every pair, (N * P, 2), and the labels, (N * P,)."""
    places, views = positions(method, n, **shape)
    pairs = method.pairs
    labels = views.targets[:, None] if method.mode == "pair" else method.sides.expand(n, -1)
    return (places[:, pairs[:, 1]] - places[:, pairs[:, 0]]).flatten(0, 1), labels.flatten()


# Where patches lie


@pytest.mark.parametrize(
    ("mode", "side", "patch", "gap", "jitter"),
    [("grid", 32, 8, 3, 1), ("grid", 64, 16, 6, 2), ("grid", 96, 24, 9, 3), ("pair", 32, 10, 4, 1)],
)
def test_default_geometry_is_that_of_the_paper_scaled_down(mode, side, patch, gap, jitter):
    shape = PatchGeometry.of(torch.zeros(1, 3, side, side), mode, None, None, None)
    assert (shape.patch, shape.gap, shape.jitter, shape.pitch) == (patch, gap, jitter, patch + gap)


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_default_geometry_fits_and_never_overlaps_at_any_size(mode):
    for side in range(8, 260):
        shape = PatchGeometry.of(torch.zeros(1, 1, side, side), mode, None, None, None)
        assert shape.span + 2 * shape.jitter <= side
        assert shape.gap >= 2 * shape.jitter
        assert 0.33 <= shape.gap / shape.patch <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 9}, "needs 33 px for a grid of patches of 9 px with gap 3 and jitter 0, but the images have 32x32"),
        ({"gap": 4, "jitter": 1}, "needs 34 px for a grid of patches of 8 px with gap 4 and jitter 1"),
        ({"mode": "pair", "patch": 14}, "needs 33 px for a pair of patches of 14 px with gap 5 and jitter 0"),
    ],
)
def test_patches_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        context(**options).make_views(random_images(), rng())


def test_images_too_small_for_a_grid_are_refused():
    with pytest.raises(ConfigError, match="but the images have 7x7"):
        context().make_views(random_images(side=7), rng())


@pytest.mark.parametrize("shape", [{}, {"height": 33, "width": 40}])
@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_second_patch_lies_on_the_side_that_the_label_names(mode, shape):
    pitch, jitter = (11, 1) if mode == "grid" else (14, 1)
    moved, labels = offsets(context(mode=mode, **UNGUARDED), 2000, **shape)
    assert set(labels.tolist()) == set(range(8))
    expected = torch.tensor([COMPASS[label] for label in labels.tolist()]) * pitch
    assert set((moved - expected).flatten().tolist()) == set(range(-2 * jitter, 2 * jitter + 1))


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_without_jitter_patches_lie_exactly_one_pitch_apart(mode):
    moved, labels = offsets(context(mode=mode, jitter=0, patch=8, gap=2, **UNGUARDED), 50)
    assert torch.equal(moved, torch.tensor([COMPASS[label] for label in labels.tolist()]) * 10)


def test_patches_of_a_grid_fill_the_image_and_use_all_their_freedom():
    places, _ = positions(context(**UNGUARDED), 400)
    expected = torch.tensor([(1 + 11 * y, 1 + 11 * x) for y in range(3) for x in range(3)])
    moves = places - expected
    for value in (-1, 0, 1):
        assert (moves == value).any(dim=0).all()
    assert moves.abs().max() == 1
    assert places.min() == 0
    assert places.max() + 8 == 32
    assert not torch.equal(moves[:, 0], moves[:, 1])


def test_grid_lies_anywhere_where_there_is_room():
    places, _ = positions(context(jitter=0, **UNGUARDED), 400, height=35, width=33)
    assert set(places[:, 0, 0].tolist()) == {0, 1, 2, 3, 4, 5}
    assert set(places[:, 0, 1].tolist()) == {0, 1, 2, 3}


def test_pair_lies_anywhere_where_both_patches_fit():
    places, views = positions(context(mode="pair", jitter=0, patch=8, gap=2, **UNGUARDED), 4000)
    for label, (down, right) in COMPASS.items():
        first = places[views.targets == label][:, 0]
        for axis, step in enumerate((down, right)):
            lowest, highest = max(0, -10 * step), 24 - max(0, 10 * step)
            assert set(first[:, axis].tolist()) == set(range(lowest, highest + 1))


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_patches_never_overlap(mode):
    moved, _ = offsets(context(mode=mode, **UNGUARDED), 500)
    assert (moved.abs().amax(dim=1) > context(mode=mode).make_views(random_images(), rng()).images[0].shape[-1]).all()


# Labels


def test_sides_of_a_pair_are_equally_likely():
    labels = context(mode="pair").make_views(torch.zeros(4000, 3, 32, 32), rng(4000)).targets
    assert labels.dtype == torch.int64
    assert ((labels.bincount(minlength=8) - 500.0) ** 2 / 500).sum() < 24.3  # chi-square of 7 degrees, p = 0.001


def test_grid_asks_about_all_neighbours_in_both_directions():
    pairs, sides = (tensor.tolist() for tensor in neighbours())
    asked = dict(zip(map(tuple, pairs), sides, strict=True))
    assert len(pairs) == len(asked) == 40
    for first in range(9):
        for second in range(9):
            step = (second // 3 - first // 3, second % 3 - first % 3)
            assert asked.get((first, second)) == next((side for side in COMPASS if COMPASS[side] == step), None)
    assert all(asked[second, first] == 7 - side for (first, second), side in asked.items())
    assert [sides.count(side) for side in range(8)] == [4, 6, 4, 6, 6, 4, 6, 4]


# Guards on what a patch shows


def test_projection_removes_the_green_magenta_axis_and_nothing_else():
    matrix = projected(torch.eye(3)[:, :, None, None])[:, :, 0, 0]
    expected = torch.tensor([[5, 2, -1], [2, 2, 2], [-1, 2, 5]]) / 6
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(matrix @ AXIS, torch.zeros(3))
    torch.testing.assert_close(matrix @ matrix, matrix)
    torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(("colour", "equal"), [("projection", True), ("none", False)])
def test_projected_patches_do_not_show_green_or_magenta(colour, equal):
    images = random_images()
    tinted = images + 0.1 * torch.rand(6, 1, 32, 32) * AXIS[:, None, None]
    method = context(colour=colour)
    patches, other = (method.make_views(batch, rng()).images[0] for batch in (images, tinted))
    assert torch.allclose(patches, other, atol=1e-4) == equal


@pytest.mark.parametrize("standardize", [True, False])
def test_dropping_keeps_one_channel_of_each_patch_among_weak_noise(standardize):
    images = random_images(200)
    plain = context(**UNGUARDED).make_views(images, rng(200)).images[0].flatten(0, 1)
    method = context(**{**UNGUARDED, "colour": "dropping", "standardize": standardize})
    patches = method.make_views(images, rng(200)).images[0].flatten(0, 1)  # (1800, 3, 8, 8)
    pixels, source = (batch.flatten(2) - batch.flatten(2).mean(dim=2, keepdim=True) for batch in (patches, plain))
    correlation = F.cosine_similarity(pixels, source, dim=2)
    kept = correlation > 0.999
    assert (kept.sum(dim=1) == 1).all()
    assert torch.allclose(kept.float().mean(dim=0), torch.full((3,), 1 / 3), atol=0.05)
    spread = pixels.std(dim=2)
    ratio = (spread[~kept].view(-1, 2) / spread[kept][:, None]).flatten()
    assert ratio.mean().item() == pytest.approx(0.01, rel=0.02)
    assert correlation[~kept].mean().abs() < 0.01
    assert not torch.equal(kept.view(200, 9, 3)[:, 0], kept.view(200, 9, 3)[:, 1])
    if standardize:
        torch.testing.assert_close(patches.square().mean(dim=(1, 2, 3)), torch.ones(1800))


@pytest.mark.parametrize("colour", ["projection", "dropping", "none"])
def test_patches_are_standardised_as_a_whole(colour):
    patches = context(colour=colour).make_views(random_images(), rng()).images[0]
    torch.testing.assert_close(patches.square().mean(dim=(2, 3, 4)), torch.ones(6, 9))
    assert patches.mean(dim=(-2, -1)).abs().max() < 1e-5


@pytest.mark.parametrize("colour", ["projection", "dropping", "none"])
def test_constant_patches_become_zeros_and_not_nan(colour):
    patches = context(colour=colour).make_views(torch.full((2, 3, 32, 32), 0.3), rng(2)).images[0]
    assert patches.abs().max() < 1e-5


def test_patches_are_cut_from_a_random_part_of_the_image():
    ramp = (torch.arange(32) / 32).expand(400, 3, 32, 32)
    patches = context(**{**UNGUARDED, "min_crop": 0.5}).make_views(ramp, rng(400)).images[0]
    slopes = 32 * patches.diff(dim=-1)[:, 4, 0, 3]  # in the middle, where no border is repeated: share of the sides
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), atol=1e-4, rtol=0)
    assert slopes.min().item() == pytest.approx(0.5, abs=0.01)
    assert slopes.max().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("colour", ["projection", "dropping"])
@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_one_channel_images_pass(mode, colour):
    method = context(in_channels=1, mode=mode, colour=colour)
    views = method.make_views(torch.rand(4, 1, 32, 32), rng(4))
    assert views.images[0].shape == ((4, 9, 1, 8, 8) if mode == "grid" else (4, 2, 1, 10, 10))
    assert torch.isfinite(method(views).loss)


@pytest.mark.parametrize("change", [{"jitter": 0}, {"colour": "dropping"}, {"standardize": False}, {"min_crop": 1.0}])
def test_switching_one_guard_off_leaves_the_questions_as_they_are(change):
    questions = (context(mode="pair", **options).make_views(random_images(), rng()) for options in (change, {}))
    assert torch.equal(*(views.targets for views in questions))


# Draws


@pytest.mark.parametrize("options", [{}, {"mode": "pair"}, {"colour": "dropping"}])
def test_views_of_a_sample_do_not_depend_on_its_batch(options):
    method, images = context(**options), random_images()
    whole = method.make_views(images, rng())
    alone = method.make_views(images[4:5], SampleRng(7, 0, torch.tensor([4])))
    torch.testing.assert_close(alone.images[0][0], whole.images[0][4], atol=1e-6, rtol=0)
    assert whole.targets is None or torch.equal(alone.targets, whole.targets[4:5])


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_views_change_with_the_epoch_and_not_with_the_encoder(mode):
    method, images = context(mode=mode), random_images()
    method.encoder.register_forward_hook(lambda *_: pytest.fail("make_views ran the encoder"))
    first, second = (method.make_views(images, rng(epoch=epoch)).images[0] for epoch in (0, 1))
    assert not torch.allclose(first, second, atol=0.1)


# The method


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_zero_logits_cost_log_8(mode):
    method = context(mode=mode)
    nn.init.zeros_(method.head[-1].weight)
    nn.init.zeros_(method.head[-1].bias)
    assert method(method.make_views(random_images(), rng())).loss.item() == pytest.approx(math.log(8), abs=1e-6)


def test_best_constant_answer_shows_the_trivial_figures_of_a_grid():
    method = context()
    nn.init.zeros_(method.head[-1].weight)
    shares = torch.tensor([4, 6, 4, 6, 6, 4, 6, 4]) / 40
    method.head[-1].bias.data = shares.log()
    output = method(method.make_views(random_images(), rng()))
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    for name, value in output.metrics.items():
        assert value.item() == pytest.approx(method.trivial()[name], abs=1e-6)
    assert {"loss", *output.metrics} == set(method.trivial())
    assert method.trivial()["loss"] == pytest.approx(2.0593, abs=1e-4)


def test_trivial_figures_of_a_pair_are_chance():
    chance = {"accuracy": 1 / 8, "single_patch_accuracy": 1 / 8}
    assert context(mode="pair").trivial() == {"loss": pytest.approx(math.log(8)), **chance}


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_loss_and_metrics_equal_those_of_a_loop_over_pairs(mode):
    method = context(mode=mode).eval()
    views = method.make_views(random_images(), rng())
    losses, right, blind = [], [], []
    for row, patches in enumerate(views.images[0]):
        features = method.norm(method.encoder(patches))
        pairs, sides = neighbours() if mode == "grid" else ([(0, 1)], views.targets[row : row + 1])
        for (first, second), side in zip(pairs, sides, strict=True):
            logits = method.head(torch.cat([features[first], features[second]]))
            alone = method.head(torch.cat([features[first], torch.zeros_like(features[second])]))
            losses.append(F.cross_entropy(logits, side).item())
            right.append(logits.argmax() == side)
            blind.append(alone.argmax() == side)
    output = method(views)
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert output.metrics["accuracy"].item() == pytest.approx(sum(right).item() / len(right))
    assert output.metrics["single_patch_accuracy"].item() == pytest.approx(sum(blind).item() / len(blind))


def test_a_patch_does_not_see_its_neighbours_before_the_head():
    method = context().eval()
    patches = method.make_views(random_images(), rng()).images[0]
    changed = patches.clone()
    changed[:, 4] = torch.randn_like(changed[:, 4])
    before, after = method.patch_features(patches), method.patch_features(changed)
    others = [k for k in range(9) if k != 4]
    torch.testing.assert_close(before[:, others], after[:, others], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_gradient_reaches_every_parameter(mode):
    method = context(mode=mode)
    output = method(method.make_views(random_images(), rng()))
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "projected-rms-standardized"),
        ({"colour": "dropping"}, "rms-standardized"),
        ({"standardize": False}, "projected"),
        ({"standardize": False, "colour": "none"}, "rgb"),
    ],
)
def test_representation_prepares_whole_images_as_the_patches_were(options, name):
    method = context(**options).eval()
    images = random_images()
    expected = projected(images) if "projected" in name else images
    if "standardized" in name:
        expected = expected - expected.mean(dim=(2, 3), keepdim=True)
        expected = expected / expected.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    representation = method.representation()
    assert representation.input_name == name
    torch.testing.assert_close(representation.pooled(images), method.encoder(expected), atol=1e-5, rtol=1e-4)


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = context()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_context_prediction_learns_where_patches_lie_from_both_of_them(mode):
    n, side = 32, 32
    ramp = torch.linspace(0, 1, side)
    images = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side), torch.zeros(side, side)])
    method = context(mode=mode, **UNGUARDED)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(20):
        output = method(method.make_views(images.expand(n, 3, side, side), rng(n, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.metrics["accuracy"] > 0.9
    assert output.metrics["single_patch_accuracy"] < 0.6


@pytest.mark.parametrize("mode", ["grid", "pair"])
def test_panel_puts_patches_where_the_network_says_and_counts_right_sides(mode):
    method = context(mode=mode)
    with torch.no_grad():
        method.head[2].weight.zero_()
        method.head[2].bias.copy_(torch.eye(8)[6])  # always "below"
    (panel,) = method.panels(random_images(), rng())
    answers = 6 if mode == "pair" else 48
    right = int((method.make_views(random_images(), rng()).targets == 6).sum()) if mode == "pair" else 6
    assert f"{right} of {answers} sides are right; chance is 1 in 8" in panel.caption
    assert panel.image.dtype == np.uint8


def test_patches_are_placed_on_their_sides_around_the_first():
    first, others = torch.zeros(1, 3, 2, 2), torch.stack([torch.full((3, 2, 2), 0.3), torch.full((3, 2, 2), 0.6)])[None]
    board = placed(first, others, torch.tensor([[1, 7]]))[0, :, 0, 0, 0]
    assert board.tolist() == pytest.approx([0.8, 0.3, 0.8, 0.8, 0.0, 0.8, 0.8, 0.8, 0.6])
