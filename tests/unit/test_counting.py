"""Counting: how inputs are made, the loss against its closed forms, and a function that really counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods.counting import Counting, counting_terms, halved, quadrants, resampler_number
from plugins.methods.tiles import standardize

PLAIN = {"standardize": False, "gray_prob": 0.0}


def unchanged(images: Tensor, rng: SampleRng) -> Tensor:
    return images.clone()


def dark(images: Tensor, rng: SampleRng) -> Tensor:
    return images * rng.uniform(0.2, 0.9)[:, None, None, None]


def counting(seed: int = 0, augment=unchanged, in_channels: int = 3, **options: object) -> Counting:
    torch.manual_seed(seed)
    return Counting(resnet8(width=4, in_channels=in_channels), augment, **{"counts": 7, "hidden_dim": 9, **options})


def random_images(n: int = 6, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def dotted(n: int, side: int) -> tuple[Tensor, Tensor]:
    """Black images (n, 3, side, side) with isolated white dots of 2x2 px that cross no middle line, and their number.

    Dots lie on every second place of a grid of 2x2 px, so that they touch neither each other nor another quadrant's.
    """
    places = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(1)) < 0.4
    small = torch.zeros(n, 1, side // 2, side // 2)
    small[:, :, ::2, ::2] = places.float()
    images = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return images.expand(-1, 3, -1, -1).contiguous(), places.sum(dim=(1, 2, 3)).float()


def top_left_corners(images: Tensor) -> Tensor:
    """A function that counts: sum of ReLU(x[i, j] - x[i-1, j] - x[i, j-1]), zeros around; (M, C, h, w) -> (M, 1)."""
    pixels = nn.functional.pad(images[:, :1], (1, 0, 1, 0))
    return (pixels[..., 1:, 1:] - pixels[..., :-1, 1:] - pixels[..., 1:, :-1]).relu().sum(dim=(1, 2, 3))[:, None]


def terms_by_the_book(whole: Tensor, parts: Tensor, margin: float) -> tuple[list[float], list[float]]:
    errors, hinges = [], []
    for row in range(len(whole)):
        errors.append(sum((a - b) ** 2 for a, b in zip(whole[row].tolist(), parts[row].tolist(), strict=True)))
        far = sum((a - b) ** 2 for a, b in zip(whole[row - 1].tolist(), parts[row].tolist(), strict=True))
        hinges.append(max(0.0, margin - far))
    return errors, hinges


# Inputs


def test_tiles_put_together_give_the_image_and_have_the_size_of_the_halved_one():
    images = random_images()
    halves, tiles = counting(**PLAIN).make_views(images, rng()).images
    top, bottom = torch.cat([tiles[:, 0], tiles[:, 1]], dim=3), torch.cat([tiles[:, 2], tiles[:, 3]], dim=3)
    assert torch.equal(torch.cat([top, bottom], dim=2), images)
    assert tiles.shape == (6, 4, 3, 8, 8)
    assert halves.shape == (6, 3, 8, 8)


PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@pytest.mark.parametrize("name", PILLOW)
def test_each_resampler_is_that_of_pillow(name):
    image = random_images(1, 20)[:, :, :, :14]
    expected = [
        np.asarray(Image.fromarray(plane.numpy()).resize((7, 10), PILLOW[name])).clip(0, 1) for plane in image[0]
    ]
    ours = halved(image, torch.tensor([resampler_number(name)]))[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(expected)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PILLOW)
def test_fixed_resampler_is_used_for_every_image(name):
    halves = counting(resampler=name, **PLAIN).make_views(random_images(), rng()).images[0]
    assert torch.equal(halves, halved(random_images(), torch.full((6,), resampler_number(name))))


def test_random_resampler_draws_each_of_the_four_equally_often():
    images = random_images(1, 8).expand(400, 3, 8, 8)
    halves = counting(**PLAIN).make_views(images, rng(400)).images[0]
    styles = halved(images[:4], torch.arange(4))
    matches = torch.isclose(halves[:, None], styles, atol=1e-5).flatten(2).all(dim=2)  # (400, 4)
    assert (matches.sum(dim=1) == 1).all()
    assert ((matches.sum(dim=0) - 100.0) ** 2 / 100).sum() < 16.3  # chi-square of 3 degrees of freedom, p = 0.001


def test_chain_comes_first_and_gray_images_are_gray_in_all_inputs_at_the_asked_rate():
    images = random_images(400, 8)
    method = counting(augment=dark, standardize=False, gray_prob=0.3)
    halves, tiles = method.make_views(images, rng(400)).images
    inputs = torch.cat([halves[:, None], tiles], dim=1)
    gray = (inputs - inputs[:, :, :1]).abs().amax(dim=(2, 3, 4)) < 1e-6
    assert torch.equal(gray.all(dim=1), gray.any(dim=1))
    assert gray.all(dim=1).float().mean().item() == pytest.approx(0.3, abs=0.06)
    augmented = dark(images, rng(400).child(0))
    expected = torch.where(gray[:, :1, None, None], rgb_to_grayscale(augmented, num_output_channels=3), augmented)
    torch.testing.assert_close(tiles, quadrants(expected), atol=1e-6, rtol=0)


def test_each_input_is_standardised_on_its_own():
    for view in counting().make_views(random_images(), rng()).images:
        assert view.mean(dim=(-2, -1)).abs().max() < 1e-5
        assert (view.std(dim=(-2, -1), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15)])
def test_odd_sides_are_refused(height, width):
    with pytest.raises(ConfigError, match=f"odd sides, {height}x{width} px; set data.size to an even number"):
        counting(augment=lambda images, _: images[..., :height, :width]).make_views(random_images(), rng())


def test_one_channel_images_pass():
    method = counting(in_channels=1)
    assert torch.isfinite(method(method.make_views(torch.rand(4, 1, 16, 16), rng(4))).loss)


def test_views_of_a_sample_do_not_depend_on_its_batch():
    method, images = counting(), random_images()
    whole = method.make_views(images, rng()).images
    alone = method.make_views(images[4:5], SampleRng(7, 0, torch.tensor([4]))).images
    for view, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(single[0], view[4], atol=1e-5, rtol=0)


# The loss


def test_terms_equal_a_loop_with_one_hinge_per_pair_of_different_images():
    whole, parts = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    error, hinge = counting_terms(whole, parts, margin=1.0)
    errors, hinges = terms_by_the_book(whole, parts, margin=1.0)
    assert error.tolist() == pytest.approx(errors, abs=1e-5)
    assert hinge.tolist() == pytest.approx(hinges, abs=1e-5)
    assert 0 < sum(value > 0 for value in hinges) < 5


def test_another_image_with_equal_counts_costs_the_margin_less_the_error():
    whole = torch.tensor([[1.0, 2.0]]).repeat(2, 1)
    error, hinge = counting_terms(whole, whole + torch.tensor([1.0, 2.0]), margin=10.0)
    assert error.tolist() == [5, 5]
    assert hinge.tolist() == [5, 5]


def test_far_images_cost_nothing_and_pull_nothing():
    whole = torch.tensor([[0.0, 0.0], [4.0, 0.0]], requires_grad=True)
    parts = torch.tensor([[0.0, 0.0], [4.0, 0.0]], requires_grad=True)
    hinge = counting_terms(whole, parts, margin=10.0)[1]
    assert hinge.tolist() == [0, 0]
    hinge.sum().backward()
    assert not whole.grad.any()
    assert not parts.grad.any()


def test_a_function_that_counts_has_no_error(monkeypatch):
    method = counting(resampler="area", **PLAIN)
    monkeypatch.setattr(method, "count", top_left_corners)
    images, dots = dotted(200, 16)
    views = method.make_views(images, rng(200))
    assert torch.equal(top_left_corners(views.images[0])[:, 0], dots)
    output = method(views)
    assert output.metrics["relative_error"].item() == 0
    differences = (dots.roll(1) - dots).square()
    assert output.loss.item() == pytest.approx((10 - differences).clamp(min=0).mean().item(), abs=1e-5)
    assert output.metrics["hinge_active"].item() == pytest.approx((differences < 10).float().mean().item())
    assert output.metrics["mean_count"].item() == pytest.approx(dots.mean().item())


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_functions_that_do_not_count_are_off_by_a_factor_of_four(monkeypatch, reduce):
    method = counting(resampler="area", **PLAIN)
    monkeypatch.setattr(method, "count", lambda images: reduce(images, dim=(1, 2, 3))[:, None])
    output = method(method.make_views(dotted(20, 16)[0], rng(20)))
    assert output.metrics["relative_error"].item() == pytest.approx((1 - 4) ** 2)


def test_dead_counts_show_the_trivial_figures_and_no_gradient():
    method = counting(margin=8.0)
    nn.init.constant_(method.head[2].bias, -100)
    output = method(method.make_views(random_images(), rng()))
    assert {"loss", *output.metrics} == set(method.trivial())
    assert method.trivial()["loss"] == 8
    for name, value in {"loss": output.loss, **output.metrics}.items():
        assert value.item() == pytest.approx(method.trivial()[name])
    output.loss.backward()
    assert not any(parameter.grad.any() for parameter in method.parameters())


def test_loss_is_the_mean_of_both_terms_over_the_images():
    method = counting().eval()
    views = method.make_views(random_images(), rng())
    whole = method.count(views.images[0])
    parts = sum(method.count(views.images[1][:, tile]) for tile in range(4))
    errors, hinges = terms_by_the_book(whole, parts, 10.0)
    output = method(views)
    assert output.loss.item() == pytest.approx((sum(errors) + sum(hinges)) / 6, abs=1e-5)
    assert output.metrics["relative_error"].item() == pytest.approx(sum(errors) / whole.square().sum().item(), rel=1e-4)
    assert output.metrics["active_share"].item() == pytest.approx((whole > 0).float().mean().item())
    assert 0 < output.metrics["active_share"] < 1


def test_order_of_the_tiles_does_not_matter():
    method = counting().eval()
    halves, tiles = method.make_views(random_images(), rng()).images
    shuffled = method(Views(images=(halves, tiles[:, [2, 0, 3, 1]])))
    assert shuffled.loss.item() == pytest.approx(method(Views(images=(halves, tiles))).loss.item(), abs=1e-5)


def test_both_resolutions_pass_the_encoder_together():
    method, batches = counting(), []
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(tuple(arguments[0].shape)))
    output = method(method.make_views(random_images(), rng()))
    assert batches == [(30, 3, 8, 8)]
    assert output.loss >= 0


def test_gradient_reaches_every_parameter():
    method = counting()
    method(method.make_views(random_images(), rng())).loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = counting()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


# What is kept and shown


def centres(sheet: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Red in the middle of each picture of a sheet, in [0, 1]: (rows, columns)."""
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    return sheet[height // 2 :: height, width // 2 :: width, 0] / 255


@pytest.mark.parametrize("standardized", [True, False])
def test_representation_takes_whole_images_prepared_as_the_inputs_were(standardized):
    method = counting(standardize=standardized).eval()
    representation = method.representation()
    expected = standardize(random_images()) if standardized else random_images()
    assert representation.input_name == ("standardized" if standardized else "rgb")
    torch.testing.assert_close(representation.pooled(random_images()), method.encoder(expected))


def test_panel_lists_images_by_how_much_is_counted_beside_those_with_the_nearest_counts(monkeypatch):
    method = counting(**PLAIN)
    images = torch.tensor([0.12, 0.9, 0.5, 0.82, 0.34])[:, None, None, None].expand(5, 3, 32, 32)
    monkeypatch.setattr(method, "count", lambda halves: halves.mean(dim=(1, 2, 3))[:, None])
    (panel,) = method.panels(images, rng(5))
    assert "those of the other 4" in panel.caption
    assert panel.image.dtype == np.uint8
    expected = [
        [0.9, 0.82, 0.5, 0.34],
        [0.82, 0.9, 0.5, 0.34],
        [0.5, 0.34, 0.82, 0.12],
        [0.34, 0.5, 0.12, 0.82],
        [0.12, 0.34, 0.5, 0.82],
    ]
    assert np.allclose(centres(panel.image, 5, 4), expected, atol=0.01)


def test_panel_leaves_mode_and_state_as_they_were_and_needs_two_images():
    method = counting()
    method.encoder.bn1.eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.panels(random_images(), rng())
    assert method.training
    assert not method.encoder.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert method.panels(random_images(1), rng(1)) == []


def test_panel_of_two_images_shows_each_beside_the_other():
    images = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 64, 64)
    (panel,) = counting(**PLAIN).panels(images, rng(2))
    first, second = centres(panel.image, 2, 2)
    assert np.allclose(sorted(first), [0.2, 0.8], atol=0.01)
    assert np.array_equal(first, second[::-1])


def test_counting_learns_to_add_up():
    images, _ = dotted(32, 16)
    method = counting(counts=16, hidden_dim=32)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for epoch in range(40):
        output = method(method.make_views(images, rng(32, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[0] > 9
    assert losses[-1] < 3
    assert output.metrics["relative_error"] < 0.1
