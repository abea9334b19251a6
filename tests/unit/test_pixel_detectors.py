"""Detectors for methods that paint pixels: each fires on a rigged network and is quiet on a clean one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.types import Sample, Views
from plugins.encoders import ViT, resnet8
from plugins.methods import MAE, Colorization, ContextEncoder, DenoisingAutoencoder, SplitBrain
from plugins.methods.color_detectors import chroma, colour_in_input
from plugins.methods.denoising_autoencoder import denoising
from plugins.methods.hole_detectors import filled_from_border, inpainting, interior
from plugins.methods.mae import masked_patches, patchify, standardised, taken


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def as_it_is(images: Tensor, rng: SampleRng) -> Tensor:
    return images


def sample(n: int = 12, side: int = 16, seed: int = 0, images: Tensor | None = None) -> Sample:
    images = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) if images is None else images
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Sample(images=images, labels=labels, rng=SampleRng(seed, 0, torch.arange(len(images))))


def smooth(n: int = 12, side: int = 16) -> Tensor:
    coarse = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(n))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)


# Colour


@pytest.mark.parametrize(("scale", "state"), [(0.1, "warning"), (0.29, "warning"), (0.31, "fine"), (1.0, "fine")])
def test_the_chroma_ratio_is_that_of_the_predictions(scale, state):
    def colours(part: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ab = part.images[:, :2] * 50
        return ab * scale, ab, torch.zeros(len(ab), 16, 16).long(), torch.zeros(len(ab), 16, 16).long()

    found = chroma(colours, sample())
    assert (found.state, found.figures["chroma ratio"]) == (state, pytest.approx(scale, rel=1e-4))


def test_recall_is_averaged_over_the_colours_that_occur():
    answer = torch.tensor([0, 0, 0, 0, 0, 0, 3, 3, 7, 7]).reshape(1, 1, 10).expand(12, -1, -1)
    guess = torch.tensor([0, 0, 0, 0, 0, 0, 3, 0, 0, 0]).reshape(1, 1, 10).expand(12, -1, -1)
    ab = torch.ones(12, 2, 1, 10)
    found = chroma(lambda part: (ab, ab, guess, answer), sample())
    assert found.figures["mean recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.figures["colours found"] == pytest.approx(2 / 3)
    assert found.against["one answer"] == pytest.approx(1 / 3)


class SeesRed(Colorization):
    """Takes the red channel for lightness."""

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        views = super().make_views(images, rng)
        return Views(images=(images[:, :1] - 0.5,), extras=views.extras)


def colour_method(kind: type) -> object:
    torch.manual_seed(0)
    return kind(lambda **overrides: resnet8(width=4, **overrides), as_it_is, head_dim=8).eval()


@pytest.mark.parametrize(("kind", "state"), [(SeesRed, "warning"), (Colorization, "fine"), (SplitBrain, "fine")])
def test_colour_in_the_input_is_noticed(kind, state):
    found = colour_in_input(colour_method(kind), sample())
    assert found.state == state
    assert (found.figures["change of input"] < 1e-3) == (state == "fine")


@pytest.mark.parametrize("kind", [Colorization, SplitBrain])
def test_predicted_colours_are_compared_with_those_of_the_views(kind):
    predicted, true, guess, answer = colour_method(kind)._compared(sample())
    assert predicted.shape == true.shape == (12, 2, 8, 8)
    assert guess.shape == answer.shape == (12, 8, 8)


# Holes


def test_holes_fill_from_their_border_ring_by_ring():
    hidden = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    hidden[..., 1:6, 1:6] = True
    filled, depth = filled_from_border(torch.full((1, 3, 7, 7), 0.3), hidden)
    torch.testing.assert_close(filled, torch.full((1, 3, 7, 7), 0.3))
    ring = torch.tensor([0, 1, 1, 1, 1, 1, 0])
    assert depth[0, 0, 1].tolist() == ring.tolist()
    assert depth[0, 0, 3].tolist() == [0, 1, 2, 3, 2, 1, 0]


def test_a_pixel_of_the_fill_is_the_mean_of_its_known_neighbours():
    images, hidden = torch.arange(9.0).reshape(1, 1, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    hidden[..., 0, 0] = True
    filled, _ = filled_from_border(images, hidden)
    assert float(filled[0, 0, 0, 0]) == pytest.approx((1 + 3 + 4) / 3)


class Seer(ContextEncoder):
    """Paints what is there."""

    def filled(self, views: Views) -> Tensor:
        return views.images[1]


class Continuer(ContextEncoder):
    """Right along the border, black deeper inside."""

    def filled(self, views: Views) -> Tensor:
        _, depth = filled_from_border(views.images[1], self.hidden(views))
        return torch.where(depth > 1, 0.0, views.images[1])


class Filler(ContextEncoder):
    """Paints by rule."""

    def filled(self, views: Views) -> Tensor:
        return filled_from_border(views.images[0], self.hidden(views))[0]


@pytest.mark.parametrize("holes", ["regions", "centre"])
def test_painting_is_judged_against_the_rules_and_by_depth(holes):
    torch.manual_seed(0)
    build = {kind: kind(resnet8(width=4), as_it_is, 32, holes=holes).eval() for kind in (Seer, Continuer, Filler)}
    held_out = sample(images=torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    assert inpainting(build[Seer], held_out).state == "fine"
    assert inpainting(build[Seer], held_out).figures == {"network": 0.0}
    assert inpainting(build[Filler], held_out).state == "warning"
    assert interior(build[Seer], held_out).state == "fine"
    followed = interior(build[Continuer], held_out)
    assert followed.state == "warning"
    assert followed.figures["1 px inside"] == 0.0


def test_the_mean_fill_of_noise_costs_its_variance():
    torch.manual_seed(0)
    method = Seer(resnet8(width=4), as_it_is, 32).eval()
    found = inpainting(method, sample(n=40, side=32))
    assert found.against["mean fill"] == pytest.approx(1 / 12, rel=0.05)  # of uniform noise


# Damage


class Copies(DenoisingAutoencoder):
    """Returns what it is given."""

    def at_stage(self, views: Views, stage: int) -> object:
        damaged, clean = views.images
        return self._judged(damaged, damaged, clean, views.extras["hit"])


class Restores(DenoisingAutoencoder):
    def at_stage(self, views: Views, stage: int) -> object:
        return SimpleNamespace(loss=torch.tensor(0.2 + stage / 10), metrics={"copy_loss": torch.tensor(0.6)})


def test_returning_the_damaged_input_is_not_denoising():
    torch.manual_seed(0)
    standard = {"mode": "joint", "rate": 0.1}
    method = Copies(resnet8(width=4), as_it_is, 16, **standard).eval()
    mean, deviation = 0.5, math.sqrt(1 / 12)
    found = denoising(method, sample(n=40))
    assert found.state == "warning"
    # A masked pixel is off by itself: rate * E[x^2] of the pixels, in units of the variance.
    expected = 0.1 * (mean**2 + deviation**2) / deviation**2
    assert found.against["copy 1"] == pytest.approx(expected, rel=0.15)


def test_every_stage_has_to_beat_copy_and_mean():
    torch.manual_seed(0)
    method = Restores(resnet8(width=4), as_it_is, 16).eval()
    found = denoising(method, sample())
    assert found.state == "fine"
    assert found.figures == pytest.approx({"stage 1": 0.2, "stage 2": 0.3, "stage 3": 0.4})


class Knows(MAE):
    def paint(self, whole: Tensor, order: Tensor) -> Tensor:
        return standardised(patchify(whole, self.patch))[0]


class Blank(MAE):
    def paint(self, whole: Tensor, order: Tensor) -> Tensor:
        return 1e-3 + 0 * patchify(whole, self.patch)


@pytest.mark.parametrize(("kind", "state", "loss"), [(Knows, "fine", 0.0), (Blank, "warning", 47 / 48)])
def test_hidden_patches_have_to_be_painted_better_than_their_mean(kind, state, loss):
    torch.manual_seed(0)
    method = kind(ViT(width=24, depth=4), as_it_is).eval()
    found = masked_patches(method, sample())
    assert (found.state, found.figures["loss"]) == (state, pytest.approx(loss, abs=1e-4))


def test_the_nearest_visible_patch_is_copied():
    torch.manual_seed(0)
    method = MAE(ViT(width=24, depth=4), as_it_is).eval()
    part = sample(n=4, images=smooth(4))
    views = method.make_views(part.images, part.rng)
    whole, order = views.images[0], views.extras["order"]
    target = standardised(patchify(whole, 4))[0]
    for n in range(4):
        visible, masked = order[n, :4].tolist(), order[n, 4:].tolist()
        costs = []
        for hidden in masked:
            near = min(visible, key=lambda v, h=hidden: math.dist(divmod(v, 4), divmod(h, 4)))
            costs.append((target[n, near] - target[n, hidden]).square().mean())
        assert float(method.copy_loss(views)[n]) == pytest.approx(float(torch.stack(costs).mean()), rel=0.3)
    assert taken(target, order).shape == target.shape
