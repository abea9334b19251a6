"""Lab and its quantised colours, against the definitions written with loops and against counted values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_core.errors import ConfigError
from plugins.methods import color
from plugins.methods.color import (
    ColorBins,
    colored,
    gamut_bins,
    lab_to_rgb,
    normalized,
    rebalancing_weights,
    require_color,
    rgb_to_lab,
    soft_targets,
    strided,
)


def pixels(*colours: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """One image of a single row: (1, channels, 1, pixels)."""
    return torch.tensor(colours, dtype=dtype).T[None, :, None, :]


def random_rgb(n: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.02, 1.0], dtype=dtype)] * 3)
    return pixels(*corners.tolist(), *torch.rand(n, 3, generator=generator, dtype=dtype).tolist(), dtype=dtype)


def random_ab(n: int = 60) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 120 - 60


def lab_by_the_book(rgb: list[float]) -> list[float]:
    """CIE 15 with the D65 white point and IEC 61966-2-1's curve and matrix, one number at a time."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    white = [0.95047, 1.0, 1.08883]
    roots = []
    for row, reference in zip(matrix, white, strict=True):
        t = sum(weight * value for weight, value in zip(row, linear, strict=True)) / reference
        roots.append(t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116)
    return [116 * roots[1] - 16, 500 * (roots[0] - roots[1]), 200 * (roots[1] - roots[2])]


def soft_by_the_book(ab: list[float], centers: list[list[float]], neighbors: int, sigma: float) -> list[float]:
    distances = [math.dist(ab, center) for center in centers]
    nearest = sorted(range(len(centers)), key=distances.__getitem__)[:neighbors]
    weights = {q: math.exp(-(distances[q] ** 2) / (2 * sigma**2)) for q in nearest}
    return [weights.get(q, 0.0) / sum(weights.values()) for q in range(len(centers))]


# Lab


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-5)])
def test_rgb_comes_back_from_lab(dtype, tolerance):
    rgb = random_rgb(dtype=dtype)
    lab = rgb_to_lab(rgb)
    assert lab.dtype == dtype
    assert (lab_to_rgb(lab) - rgb).abs().max() < tolerance


def test_lab_is_that_of_the_standard():
    rgb = random_rgb(dtype=torch.float64)
    expected = pixels(*map(lab_by_the_book, rgb[0, :, 0].T.tolist()), dtype=torch.float64)
    torch.testing.assert_close(rgb_to_lab(rgb), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_known_colours(rgb, lab):
    torch.testing.assert_close(rgb_to_lab(pixels(rgb)), pixels(lab), atol=0.01, rtol=0)


def test_greys_have_no_colour():
    grey = torch.linspace(0, 1, 256).expand(1, 3, 1, 256)
    assert rgb_to_lab(grey)[:, 1:].abs().max() < 1e-2


def test_colours_outside_srgb_are_clipped():
    rgb = lab_to_rgb(pixels((50, 300, 0), (120, 0, 0), (-5, 0, 0)))[0, :, 0].T
    torch.testing.assert_close(rgb[:, :2], torch.tensor([[1.0, 0], [1, 1], [0, 0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_than_rgb_images_are_refused(channels):
    with pytest.raises(ConfigError, match=rf"images with {channels} channel\(s\) have no colour to predict, RGB has 3"):
        rgb_to_lab(torch.rand(2, channels, 4, 4))


def test_networks_get_lab_around_zero():
    lab = pixels((0, 0, 110), (100, -110, 0), (50, 55, -55))
    assert torch.equal(normalized(lab), pixels((-0.5, 0, 1), (0.5, -1, 0), (0, 0.5, -0.5)))


def test_subsampling_takes_pixels_and_no_means():
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert strided(image, 2).flatten().tolist() == [0, 2, 4, 10, 12, 14]


def test_an_image_has_colour_where_any_a_or_b_exceeds_five():
    ab = torch.zeros(4, 2, 2, 2)
    ab[1, 0, 1, 1], ab[2, 1, 0, 1], ab[3, 1, 0, 0] = 5.1, -5.1, 5.0
    assert colored(ab).tolist() == [False, True, True, False]
    require_color(ab)
    with pytest.raises(ConfigError, match="none of the 2 sampled training images has a colour"):
        require_color(ab[[0, 3]])


# Bins


@pytest.mark.parametrize(("step", "count"), [(20, 77), (25, 51), (10, 261)])
def test_bins_are_those_that_some_colour_of_srgb_is_nearest_to(step, count):
    bins = gamut_bins(step)
    assert bins.shape == (count, 2)
    assert torch.equal(bins / step, (bins / step).round())
    assert bins.tolist() == sorted(bins.tolist())
    rgb = torch.randint(0, 256, (20000, 3), generator=torch.Generator().manual_seed(0)) / 255
    surface = rgb.clone()
    surface[torch.arange(20000), torch.arange(20000) % 3] = (torch.arange(20000) % 2).float()
    ab = rgb_to_lab(pixels(*torch.cat([rgb, surface]).tolist()))[0, 1:, 0].T
    assert {tuple(cell) for cell in ((ab / step).round() * step + 0.0).tolist()} <= set(map(tuple, bins.tolist()))


def test_bins_cannot_be_spoilt_for_the_next_one_who_asks():
    gamut_bins(20).zero_()
    assert gamut_bins(20.0).abs().max() > 0


# Soft targets


@pytest.mark.parametrize("neighbors", [1, 5, 10])
def test_soft_targets_equal_the_definition(neighbors):
    ab, centers = random_ab(), gamut_bins(20)
    soft = soft_targets(ab, centers, neighbors, 10.0)
    expected = [soft_by_the_book(colour, centers.tolist(), neighbors, 10.0) for colour in ab.tolist()]
    torch.testing.assert_close(soft, torch.tensor(expected), atol=1e-5, rtol=0)
    assert (soft.sum(dim=1) - 1).abs().max() < 1e-6
    assert (soft > 0).sum(dim=1).max() <= neighbors
    assert torch.equal(soft.argmax(dim=1), torch.cdist(ab, centers).argmin(dim=1))


@pytest.mark.parametrize(("neighbors", "kept"), [(1, 1), (4, 1), (5, 5), (8, 5), (9, 9), (10, 9)])
@pytest.mark.parametrize("rounding", [0.0, 1e-4])
def test_on_a_bin_all_or_none_of_its_equally_near_neighbours_have_weight(neighbors, kept, rounding):
    soft = soft_targets(torch.tensor([[rounding, -rounding]]), gamut_bins(20), neighbors, 10.0)[0]
    weights = soft[soft > 0].sort(descending=True).values
    assert len(weights) == kept
    torch.testing.assert_close(weights[1:5], weights[1:2].expand(len(weights[1:5])), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[5:], weights[5:6].expand(len(weights[5:])), atol=1e-5, rtol=0)


def test_between_four_bins_one_neighbour_is_one_bin():
    soft = soft_targets(torch.tensor([[10.0, 10.0]]), gamut_bins(20), 1, 10.0)[0]
    assert soft.max() == soft.sum() == 1


def test_far_from_every_bin_targets_stay_finite():
    soft = soft_targets(torch.tensor([[500.0, 500.0]]), gamut_bins(5), 5, 2.5)
    assert soft.sum().item() == pytest.approx(1)


def test_targets_of_images_lie_where_their_pixels_do():
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    ab = random_ab(24).reshape(2, 3, 4, 2).permute(0, 3, 1, 2)
    soft = bins.encode(ab)
    assert soft.shape == (2, 77, 3, 4)
    alone = soft_targets(ab[1, :, 2, 3][None], bins.centers, 5, 10.0)
    torch.testing.assert_close(soft[1, :, 2, 3], alone[0], atol=1e-6, rtol=0)


# Back to colours


def test_mean_of_the_targets_is_within_a_step_of_the_colour():
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    ab = rgb_to_lab(random_rgb())[:, 1:]
    soft = bins.encode(ab)
    decoded = bins.decode(soft.log(), 1.0)
    assert (decoded - ab).norm(dim=1).max() < 20
    torch.testing.assert_close(decoded[0, :, 0].T, soft[0, :, 0].T @ bins.centers, atol=1e-4, rtol=0)


def test_a_cold_mean_is_the_mode_and_the_papers_lies_between():
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    logits = torch.randn(1, 77, 1, 9, generator=torch.Generator().manual_seed(0))
    mode = bins.centers[logits.argmax(dim=1)].movedim(-1, 1)
    torch.testing.assert_close(bins.decode(logits, 1e-3), mode, atol=1e-3, rtol=0)
    distance = [(bins.decode(logits, temperature) - mode).norm(dim=1).mean() for temperature in (1.0, 0.38, 0.1)]
    assert distance[0] > distance[1] > distance[2]
    by_hand = (logits[0, :, 0] / 0.38).exp()
    expected = (by_hand / by_hand.sum(0)).T @ bins.centers
    torch.testing.assert_close(bins.decode(logits, 0.38)[0, :, 0].T, expected, atol=1e-4, rtol=0)


# Weights


def test_weights_have_their_closed_form():
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0])
    weights = rebalancing_weights(prior, 0.5)
    assert (prior * weights).sum().item() == pytest.approx(1)
    assert (weights[0] / weights[2]).item() == pytest.approx((0.5 * 0.1 + 0.5 / 4) / (0.5 * 0.7 + 0.5 / 4))
    assert (weights[3] / weights[1]).item() == pytest.approx((0.5 * 0.2 + 0.5 / 4) / (0.5 / 4))
    torch.testing.assert_close(rebalancing_weights(prior, 1.0), torch.ones(4))


def test_a_pixel_is_worth_the_weight_of_its_nearest_bin():
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    bins.observe(pixels((20, 0), (20, 0), (20, 0), (-40, 20)))
    soft = bins.encode(pixels((19, 1), (-41, 18)))
    nearest = [bins.centers.tolist().index(center) for center in ([20, 0], [-40, 20])]
    assert torch.equal(bins.worth(soft)[0, 0], bins.weights[nearest])
    assert bins.worth(soft)[0, 0, 0] < bins.worth(soft)[0, 0, 1]


def test_prior_is_the_mean_target_of_all_pixels(monkeypatch):
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    ab = random_ab(50).reshape(2, 5, 5, 2).permute(0, 3, 1, 2)
    bins.observe(ab)
    whole = bins.joint.clone()
    torch.testing.assert_close(bins.prior, bins.encode(ab).mean(dim=(0, 2, 3)), atol=1e-6, rtol=0)
    assert bins.prior.sum().item() == pytest.approx(1)
    monkeypatch.setattr(color, "_PIXELS_AT_ONCE", 7)
    bins.observe(ab)
    torch.testing.assert_close(bins.joint, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rebalance", [0.25, 1.0])
def test_no_constant_beats_the_best_constant(rebalance):
    bins = ColorBins(step=20, neighbors=5, rebalance=rebalance)
    ab = random_ab(50).reshape(2, 5, 5, 2).permute(0, 3, 1, 2)
    bins.observe(ab)
    soft = bins.encode(ab)
    pull = (bins.worth(soft)[:, None] * soft).mean(dim=(0, 2, 3))

    def loss(probabilities: Tensor) -> float:
        return -torch.xlogy(pull, probabilities / probabilities.sum()).sum().item()

    best = bins.constant()["loss"]
    assert best == pytest.approx(loss(pull), abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    assert all(best < loss(pull * (1 + 0.5 * torch.rand(77, generator=generator))) for _ in range(5))
    assert bins.constant()["accuracy"] == pytest.approx(soft.argmax(dim=1).flatten().bincount().max().item() / 50)
    if rebalance == 1:
        assert best == pytest.approx(torch.special.entr(bins.prior).sum().item(), abs=1e-5)


def test_before_any_image_was_seen_all_bins_are_alike():
    bins = ColorBins(step=20, neighbors=5, rebalance=0.5)
    torch.testing.assert_close(bins.weights, torch.ones(77))
    assert bins.constant() == {"loss": pytest.approx(math.log(77)), "accuracy": pytest.approx(1 / 77)}
