"""Detectors on embeddings of two views: each fires on a rigged network and is quiet on a clean one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Method, Sample, StepOutput, Views
from plugins.methods.embedding_detectors import (
    assignments,
    channel_statistics,
    collapse,
    colours,
    opinions,
    projection,
    siblings_found,
)


class TwoViews(Method):
    """Nothing but views: a chain of our choice, twice."""

    def __init__(self, augment=lambda images, rng: images) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.augment = augment

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        return Views(images=(self.augment(images, rng.child(0)), self.augment(images, rng.child(1))))

    def forward(self, views: Views) -> StepOutput:
        raise NotImplementedError


def sample(n: int = 40, seed: int = 0, images: Tensor | None = None, labels: Tensor | None = None) -> Sample:
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) if images is None else images
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return Sample(images=images, labels=labels, rng=SampleRng(seed, 0, torch.arange(len(images))))


def test_equal_embeddings_are_a_collapse_and_spread_ones_are_not():
    constant = collapse(TwoViews(), lambda images: images.flatten(1) * 0 + 1, sample())
    assert constant.state == "warning"
    assert constant.figures["effective_rank"] == pytest.approx(1.0)
    assert constant.figures["uniformity"] == pytest.approx(0.0)
    spread = collapse(TwoViews(), lambda images: images.flatten(1) - 0.5, sample())
    assert spread.state == "fine"
    assert spread.figures["feature_std"] == pytest.approx(1.0, abs=0.1)
    assert spread.figures["alignment"] == pytest.approx(0.0, abs=1e-6)


def test_embeddings_on_a_line_are_a_collapse_although_they_vary():
    line = collapse(TwoViews(), lambda images: F.pad(images.flatten(1)[:, :1] - 0.5, (0, 1)), sample())
    assert line.state == "warning"
    assert line.figures["feature_std"] > 0.5


def tinted(n: int = 60, seed: int = 0) -> Tensor:
    """Noise around a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    return (colour * 0.6 + 0.4 * torch.rand(n, 3, 8, 8, generator=generator)).clamp(0, 1)


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return (images + rng.normal(std=0.02, shape=images.shape[1:])).clamp(0, 1)


def recoloured(images: Tensor, rng: SampleRng) -> Tensor:
    scale, shift = rng.uniform(0.3, 0.6, (3, 1, 1)), rng.uniform(0, 0.4, (3, 1, 1))
    return images * scale + shift


def pattern(images: Tensor) -> Tensor:
    """Indifferent to scale and shift of the channels."""
    deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    return ((images - mean) / deviation).flatten(1)


def test_views_with_their_colours_left_are_a_shortcut():
    found = colours(TwoViews(noisy), channel_statistics, sample(images=tinted()), sample(images=tinted(seed=1), seed=1))
    assert found.state == "warning"
    assert found.figures["colours"] > 0.9
    assert found.against["chance"] == pytest.approx(1 / 119)


def test_views_of_random_colours_have_to_be_found_by_what_they_show():
    found = colours(TwoViews(recoloured), pattern, sample(images=tinted()), sample(images=tinted(seed=1), seed=1))
    assert found.state == "fine"
    assert found.figures["network"] == 1.0
    assert found.figures["colours"] < 0.2


def test_a_network_that_finds_no_sibling_is_no_success_either():
    found = colours(TwoViews(recoloured), lambda x: x.flatten(1)[:, :1] * 0 + 1, sample(), sample(seed=1))
    assert found.state == "warning"
    assert found.text == "the network itself answers no better than by chance"


def test_siblings_are_found_exactly_where_no_other_row_is_as_near():
    a = torch.tensor([[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]])
    assert siblings_found(a, a + 0.1) == 1.0
    assert siblings_found(a, a.roll(1, dims=0)) == 0.0
    assert siblings_found(torch.zeros(3, 2), torch.zeros(3, 2)) == 0.0  # a tie is a miss
    b = a + 0.1
    b[1] = torch.tensor([0.05, 0.05])  # nearer to both views of the first image than these to each other
    assert siblings_found(a, b) == pytest.approx(2 / 6)


def quadrant_points(n: int, seed: int) -> Sample:
    """Images whose first two pixels are a point, labelled by whether its coordinates have equal signs."""
    images = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) - 0.5
    x, y = images[:, 0, 0, 0], images[:, 0, 0, 1]
    return sample(images=images, seed=seed, labels=(x * y > 0).long())


def point(images: Tensor) -> Tensor:
    return images[:, 0, 0]


def product(images: Tensor) -> Tensor:
    return point(images).prod(dim=1, keepdim=True).sign()


def test_a_head_that_does_the_encoder_s_work_is_noticed_and_one_that_throws_away_is_not():
    fit, held_out = quadrant_points(200, 0), quadrant_points(200, 1)
    hidden = projection(point, product, fit, held_out)
    assert hidden.state == "warning"
    assert hidden.figures["z"] == 1.0
    kept = projection(product, point, fit, held_out)
    assert (kept.state, kept.text) == ("fine", "h is better")
    assert projection(point, point, fit, held_out).text == "neither is clearly better"


def test_perplexity_is_the_number_of_clusters_in_even_use():
    images = torch.rand(40, 3, 8, 8)

    def even(batch: Tensor) -> Tensor:
        rows = torch.tensor([int((image == images).flatten(1).all(dim=1).nonzero()[0]) for image in batch])
        return F.one_hot(rows % 8, 8).float()

    spread = assignments(even, sample(images=images))
    assert (spread.state, spread.figures["perplexity"]) == ("fine", pytest.approx(8.0))
    alone = assignments(lambda batch: torch.tensor([0.0, 1.0] + 18 * [0.0]).expand(len(batch), -1), sample())
    assert (alone.state, alone.figures["perplexity"]) == ("warning", pytest.approx(1.0))


def test_both_collapses_of_a_teacher_tell_nothing():
    uniform = opinions(lambda batch: torch.full((len(batch), 16), 1 / 16), sample())
    assert uniform.state == "warning"
    assert uniform.text.endswith("it has no opinion")
    assert uniform.figures["teacher entropy"] == pytest.approx(math.log(16))
    one_hot = opinions(lambda batch: F.one_hot(torch.zeros(len(batch), dtype=torch.int64), 16).float(), sample())
    assert one_hot.state == "warning"
    assert one_hot.text.endswith("all go to one prototype")
    assert one_hot.figures["teacher entropy"] == pytest.approx(0.0)
    assert [found.figures["told"] for found in (uniform, one_hot)] == pytest.approx([0.0, 0.0])


def test_a_sharp_teacher_that_uses_all_prototypes_tells_log_k():
    batch = torch.arange(32).float().reshape(32, 1, 1, 1).expand(-1, 3, 8, 8)
    found = opinions(lambda images: F.one_hot(images[:, 0, 0, 0].long() % 16, 16).float(), sample(images=batch))
    assert found.state == "fine"
    assert found.figures["told"] == pytest.approx(math.log(16))
