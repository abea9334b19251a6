"""Jigsaw: each guard against a shortcut, and the method's closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods import Jigsaw
from plugins.methods.permutations import permutation_set
from plugins.methods.tiles import standardize

UNGUARDED = {"standardize": False, "gray_prob": 0.0, "channel_shift": 0, "min_crop": 1.0}


def jigsaw(seed: int = 0, **options: object) -> Jigsaw:
    torch.manual_seed(seed)
    return Jigsaw(resnet8(width=4), **{"tile_dim": 8, "hidden_dim": 16, **options})


def random_images(n: int = 6, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


# Which permutations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 2, "classes": 25}, "method.classes 25 is impossible: 4 tiles have 24 orders; choose 2 to 24"),
        ({"classes": 1513}, "method.classes 1513 exceeds the largest algebraic set for 9 tiles, 1512"),
    ],
)
def test_impossible_tables_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        jigsaw(**options)


@pytest.mark.parametrize(("grid", "classes"), [(2, 24), (3, 72)])
def test_default_table_is_the_largest_unambiguous_one(grid, classes):
    assert jigsaw(grid=grid).permutations.shape == (classes, grid**2)


# Guards on what a tile shows


def test_tiles_are_standardised_per_channel():
    tiles = jigsaw().make_views(random_images(), rng()).images[0]
    assert tiles.mean(dim=(-2, -1)).abs().max() < 1e-5
    assert (tiles.std(dim=(-2, -1), correction=0) - 1).abs().max() < 1e-3


def test_constant_tiles_become_zeros_and_not_nan():
    tiles = jigsaw().make_views(torch.full((2, 3, 32, 32), 0.3), rng(2)).images[0]
    assert tiles.abs().max() < 1e-5


def test_gray_images_are_gray_in_all_tiles_at_the_asked_rate():
    method = jigsaw(standardize=False, channel_shift=0, gray_prob=0.3)
    tiles = method.make_views(random_images(600), rng(600)).images[0]
    gray = (tiles[:, :, :1] == tiles).flatten(2).all(dim=2)
    assert torch.equal(gray.all(dim=1), gray.any(dim=1))
    assert gray.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_gray_is_that_of_torchvision():
    method = jigsaw(**{**UNGUARDED, "gray_prob": 1.0}, jitter=False, tile_share=1.0)
    images = random_images(4, 12)
    views = method.make_views(images, rng(4))
    expected = jigsaw(**UNGUARDED, jitter=False, tile_share=1.0).make_views(
        rgb_to_grayscale(images, num_output_channels=3), rng(4)
    )
    torch.testing.assert_close(views.images[0], expected.images[0], atol=1e-6, rtol=0)


def test_one_channel_images_pass():
    method = Jigsaw(resnet8(width=4, in_channels=1), tile_dim=8, hidden_dim=16)
    views = method.make_views(torch.rand(4, 1, 32, 32), rng(4))
    assert views.images[0].shape == (4, 9, 1, 8, 8)
    assert torch.isfinite(method(views).loss)


GUARDS_CHANGED = [
    {"jitter": False},
    {"channel_shift": 0},
    {"gray_prob": 0.0},
    {"gray_prob": 1.0},
    {"standardize": False},
    {"min_crop": 1.0},
]


@pytest.mark.parametrize("change", GUARDS_CHANGED)
def test_switching_one_guard_off_leaves_the_puzzles_as_they_are(change):
    assert torch.equal(
        jigsaw(**change).make_views(random_images(), rng()).targets, jigsaw().make_views(random_images(), rng()).targets
    )


# Draws


def test_labels_are_uniform_over_the_table():
    n = 7200
    labels = jigsaw(tile_share=0.25).make_views(torch.zeros(n, 3, 24, 24), rng(n)).targets
    counts = labels.bincount(minlength=72)
    assert ((counts - 100.0) ** 2 / 100).sum() < 114  # chi-square of 71 degrees of freedom, p = 0.001


def test_an_image_gets_another_puzzle_in_another_epoch():
    method, images = jigsaw(), random_images()
    first, second = (method.make_views(images, rng(epoch=epoch)) for epoch in (0, 1))
    assert not torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("rows", [slice(4, 5), slice(0, 3)])
def test_views_of_a_sample_do_not_depend_on_its_batch(rows):
    method, images = jigsaw(), random_images()
    whole = method.make_views(images, rng())
    part = method.make_views(images[rows], SampleRng(7, 0, torch.arange(6)[rows]))
    assert torch.equal(part.targets, whole.targets[rows])
    torch.testing.assert_close(part.images[0], whole.images[0][rows], atol=1e-6, rtol=0)


def test_views_leave_the_images_and_the_encoder_alone():
    method, images = jigsaw(), random_images()
    kept = images.clone()
    method.encoder.register_forward_hook(lambda *_: pytest.fail("make_views ran the encoder"))
    views = method.make_views(images, rng())
    assert torch.equal(images, kept)
    assert views.targets.dtype == torch.int64
    assert views.labels is None


def test_views_do_not_depend_on_the_memory_layout_of_the_images():
    method, images = jigsaw(), random_images()
    other = method.make_views(images.to(memory_format=torch.channels_last), rng())
    assert torch.equal(other.images[0], method.make_views(images, rng()).images[0])


# The method


def test_zero_logits_show_the_trivial_figures():
    method = jigsaw()
    nn.init.zeros_(method.order_head[-1].weight)
    nn.init.zeros_(method.order_head[-1].bias)
    output = method(method.make_views(random_images(), rng()))
    assert method.trivial() == {"loss": pytest.approx(math.log(72)), "accuracy": pytest.approx(1 / 72)}
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    assert {"loss", *output.metrics} == set(method.trivial())


@pytest.mark.parametrize(("options", "value"), [({"grid": 2}, 3.178), ({"classes": 64}, 4.159), ({}, 4.277)])
def test_trivial_loss_is_the_log_of_the_number_of_permutations(options, value):
    assert jigsaw(**options).trivial()["loss"] == pytest.approx(value, abs=1e-3)


def test_accuracy_counts_right_rows():
    method = jigsaw().eval()
    views = method.make_views(random_images(), rng())
    logits = method.logits(views.images[0])
    wrong = Views(images=views.images, targets=logits.argmax(1).index_fill(0, torch.tensor([0, 1]), 71))
    assert method(wrong).metrics["accuracy"].item() == pytest.approx((logits.argmax(1) == wrong.targets).float().mean())
    right = Views(images=views.images, targets=logits.argmax(1))
    assert method(right).metrics["accuracy"].item() == 1
    assert method(right).loss.item() == pytest.approx(F.cross_entropy(logits, logits.argmax(1)).item())


def test_a_tile_does_not_see_its_neighbours_before_the_head():
    method = jigsaw().eval()
    tiles = method.make_views(random_images(), rng()).images[0]
    changed = tiles.clone()
    changed[:, 4] = torch.randn_like(changed[:, 4])
    before, after = method.tile_features(tiles), method.tile_features(changed)
    others = [k for k in range(9) if k != 4]
    torch.testing.assert_close(before[:, others], after[:, others], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_gradient_reaches_every_parameter():
    method = jigsaw()
    output = method(method.make_views(random_images(), rng()))
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_representation_standardises_whole_images():
    method = jigsaw().eval()
    images = random_images()
    representation = method.representation()
    assert representation.input_name == "standardized"
    normal = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(representation.pooled(images), method.encoder(normal), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(standardize(images), normal, atol=1e-5, rtol=1e-5)


def test_representation_without_standardised_tiles_takes_the_image_as_it_is():
    representation = jigsaw(standardize=False).representation()
    assert representation.input_name == "rgb"
    assert representation.preprocess is None


def test_table_travels_with_the_weights():
    state = jigsaw(classes=30, rule="maxmin").state_dict()
    other = jigsaw(classes=30, rule="paper")
    assert not torch.equal(other.permutations, state["permutations"])
    other.load_state_dict(state)
    assert torch.equal(other.permutations, permutation_set(9, 30, "maxmin"))


def test_state_dict_reproduces_the_next_step_bit_for_bit():
    def step(method: Jigsaw, optimizer: torch.optim.Optimizer, epoch: int) -> Tensor:
        torch.manual_seed(epoch)  # of the dropout
        output = method(method.make_views(random_images(), rng(epoch=epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        return output.loss.detach()

    first, second = jigsaw(seed=0), jigsaw(seed=99)
    optimizer, resumed = (torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9) for method in (first, second))
    for epoch in range(2):
        step(first, optimizer, epoch)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(first, optimizer, 2), step(second, resumed, 2))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = jigsaw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_panel_shows_the_puzzle_solved_where_the_network_is_right(monkeypatch):
    method = jigsaw(**UNGUARDED, jitter=False, tile_share=1.0)
    images = random_images(3, 24)
    labels = method.make_views(images, rng(3)).targets
    monkeypatch.setattr(method, "logits", lambda _: F.one_hot(labels.index_fill(0, torch.tensor([2]), 71), 72).float())
    (panel,) = method.panels(images, rng(3))
    assert "2 of 3 are right" in panel.caption
    assert panel.image.dtype == np.uint8
    rows = np.stack(np.split(panel.image, 3, axis=0))
    puzzle, true, predicted = np.split(rows, 3, axis=2)
    inner = (slice(None), slice(8, -8), slice(8, -8))  # 2 px frames, enlarged four times
    assert np.array_equal(true[inner][:2], predicted[inner][:2])
    assert not np.array_equal(true[inner][2], predicted[inner][2])
    assert not np.array_equal(puzzle[inner][0], true[inner][0])
    pixel = (images[0, :, 0, 0] * 255).round().to(torch.uint8).tolist()
    assert true[0, 8, 8].tolist() == pixel
    assert predicted[0, 0, 0].tolist() != predicted[2, 0, 0].tolist()


def test_panel_leaves_mode_and_state_as_they_were():
    method = jigsaw()
    method.encoder.bn1.eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.panels(random_images(), rng())
    assert method.training
    assert not method.encoder.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_jigsaw_learns_where_tiles_belong():
    n, side = 48, 12
    ramp = torch.linspace(0.1, 0.9, side)
    images = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side), torch.zeros(side, side)])
    images = images.expand(n, 3, side, side)
    method = jigsaw(grid=2, classes=4, standardize=False, dropout=0.0)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(25):
        output = method(method.make_views(images, rng(n, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.metrics["accuracy"] > 0.9
