"""Counting: what is counted in an image equals the sum over its four tiles (Noroozi et al. 2017, arXiv:1708.06734).

Counts of visual primitives do not change when an image is halved in size, and add up over tiles. Another image, whose
counts must differ, keeps them from being zero everywhere. Most of the guards are against telling a halved image from a
tile: a random resampler, and inputs of equal mean and deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.errors import ConfigError
from cl_core.measures.logistic import linear_accuracy
from cl_core.types import (
    Augmentation,
    Diagnosis,
    Finding,
    Method,
    Panel,
    Representation,
    Sample,
    StepOutput,
    UnitInterval,
    Views,
)
from plugins.methods.detectors import found, gathered
from plugins.methods.panels import contact_sheet, judging
from plugins.methods.tiles import grayed, standardize

TILES = 4
NEIGHBOURS_SHOWN = 3
RESAMPLED = 0.95  # accuracy at which halved images and tiles count as told apart by how they were made
GOOD_COUNTS, NO_COUNTS = 0.1, 0.01  # relative error; share of counts that are ever above 0


class Counting(Method):
    """Learning to count (Noroozi et al. 2017, arXiv:1708.06734): counts of an image equal the sum over its tiles.

    encoder: images (5N, C, H/2, W/2) -> (5N, out_dim). augment: the chain that crops the image, to even sides.
    counts: how many primitives are counted; 1000 in the paper, which loses little with 20.
    hidden_dim: width of the layer before the counts; the paper has two of 4096.
    margin: M, squared distance that the counts of another image must keep; 10 in the paper.
    resampler: how the image is halved. "random" draws one of the others for each image; a fixed one leaves a trace by
        which halved images and tiles can be told apart, and counted apart.
    gray_prob: share of images made grey, against chromatic aberration; the paper mixes grey and colour images.
    standardize: each channel of each input to mean 0 and deviation 1, as halving lowers the deviation; the
        representation then standardises whole images likewise.

    The other image is the next one in the batch, so that the loss depends on who is together in it. Logs
    relative_error, the squared error of the sums over the squared norm of the counts (1 where nothing is counted),
    hinge_active, the share of images whose counts are closer to those of the other image than the margin,
    active_share, the share of counts that is not 0, and mean_count, which explodes where scale alone keeps the margin.
    A loss that rests at the margin with active_share near 0 means that all counts have died; the learning rate has to
    be low (1e-4 in the paper). Raises ConfigError for images of odd sides.
    """

    year = 2017
    family = "pretext"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        counts: PositiveInt = 64,
        hidden_dim: PositiveInt = 256,
        margin: PositiveFloat = 10.0,
        resampler: Literal["random", "bilinear", "bicubic", "area", "lanczos"] = "random",
        gray_prob: UnitInterval = 0.5,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.margin, self.resampler = margin, resampler
        self.gray_prob, self.standardize = gray_prob, standardize
        # No batch norm: halved images and tiles differ in statistics, and it would couple their counts.
        self.head = nn.Sequential(
            nn.Linear(encoder.out_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, counts), nn.ReLU()
        )

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> halved (N, C, H/2, W/2), and their quadrants, row-major (N, 4, C, H/2, W/2)."""
        augmented = self.augment(images, rng.child(0))
        height, width = augmented.shape[-2:]
        if height % 2 or width % 2:
            raise ConfigError(
                f"method counting halves its images, but those of its chain have odd sides, {height}x{width} px; set "
                f"data.size to an even number, or end the chain with a crop to an even `size`"
            )
        augmented = grayed(augmented, rng.child(1).bernoulli(self.gray_prob).to(images.device))
        inputs = halved(augmented, self._resamplers(rng.child(2)).to(images.device)), quadrants(augmented)
        return Views(images=tuple(standardize(view) if self.standardize else view for view in inputs))

    def forward(self, views: Views) -> StepOutput:
        """Mean over the batch of the squared counting error and the hinge; see `counting_terms`."""
        halves, tiles = views.images
        # One pass over all inputs, so that batch norm sees both resolutions together.
        counted = self.count(torch.cat([halves[:, None], tiles], dim=1).flatten(0, 1)).unflatten(0, (-1, 1 + TILES))
        own = counted[:, 0]
        whole, parts = gather(own), gather(counted[:, 1:].sum(dim=1))
        error, hinge = counting_terms(whole, parts, self.margin)
        return StepOutput(
            loss=(error + hinge).mean(), metrics=counting_metrics(whole, error, hinge), embedding=own.detach()
        )

    def count(self, images: Tensor) -> Tensor:
        """phi: what is counted in inputs (M, C, h, w), not negative, float32 (M, K)."""
        return self.head(self.encoder(images)).float()

    def representation(self) -> Representation:
        """The encoder, its input standardised per image as in training."""
        if not self.standardize:
            return Representation(self.encoder)
        return Representation(self.encoder, standardize, "standardized")

    def trivial(self) -> dict[str, float]:
        """Of a network that counts nothing: the loss is exactly the margin, and has no gradient."""
        nothing = {"active_share": 0.0, "mean_count": 0.0}
        return {"loss": self.margin, "relative_error": 1.0, "hinge_active": 1.0, **nothing}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """Images in the order of how much is counted in them, each beside those with the most similar counts."""
        if len(images) < 2:
            return []
        counts = self._counts(images)
        nearest = (
            torch.cdist(counts, counts)
            .fill_diagonal_(torch.inf)
            .argsort(dim=1)[:, : min(NEIGHBOURS_SHOWN, len(images) - 1)]
        )
        order = counts.norm(dim=1).argsort(descending=True)
        columns = [images[order], *images[nearest[order]].unbind(dim=1)]
        caption = (
            f"Each row: an image, and those of the other {len(images) - 1} whose counts are nearest to its own, "
            "nearest first. Rows go from most to least counted: cluttered images should come first."
        )
        return [Panel(title="Nearest by counts", caption=caption, image=contact_sheet(columns))]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether anything is counted, and not by telling how an input was made."""
        return {
            "counts": Diagnosis(
                question="Is anything counted, and do the tiles add up to the image?",
                find=lambda fit, held_out: counts(self, held_out),
            ),
            "resampling": Diagnosis(
                question="Can halved images not be told from tiles by how they were made?",
                find=lambda fit, held_out: resampling(self, fit, held_out),
            ),
        }

    def _resamplers(self, rng: SampleRng) -> Tensor:
        """The number of the resampler that halves each image, (N,) int64."""
        if self.resampler == "random":
            return rng.integers(0, len(KERNELS))
        return torch.full((len(rng),), resampler_number(self.resampler), device=rng.device)

    def _counts(self, images: Tensor) -> Tensor:
        """Counts of whole images under evaluation statistics, (N, K)."""
        halves = halved(images, torch.full((len(images),), resampler_number("area"), device=images.device))
        with judging(self):
            return self.count(standardize(halves) if self.standardize else halves)


def counts(method: Counting, held_out: Sample) -> Finding:
    """Whether anything is counted, and whether the tiles' counts add up to the image's."""

    def look(part: Sample) -> Tensor:
        halves, tiles = method.make_views(part.images, part.rng).images
        parts = method.count(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2]).sum(dim=1)
        return torch.stack([method.count(halves), parts], dim=1)

    whole, parts = gathered(held_out, look).unbind(dim=1)
    alive = (whole > 0).any(dim=0).float().mean()
    size = whole.square().sum()
    error = (whole - parts).square().sum() / size if size > 0 else torch.ones(())
    return found(
        bool(alive < NO_COUNTS) or bool(error >= 0.5),
        warning="nothing is counted any more; lower optimizer.lr"
        if alive < NO_COUNTS
        else "the counts of tiles do not add up to those of the image",
        fine="tiles add up to the image" if error < GOOD_COUNTS else "tiles add up to the image roughly",
        figures={"relative error": error, "active": (whole > 0).float().mean(), "dead counts": 1 - alive},
        against={"good below": GOOD_COUNTS, "nothing counted": 1.0},
    )


def resampling(method: Counting, fit: Sample, held_out: Sample) -> Finding:
    """How well a linear classifier on the encoder's features tells halved images from tiles.

    The two show different things, so accuracy lies above chance; near 1 it is the resampler that is recognised.
    """

    def seen(sample: Sample) -> tuple[Tensor, Tensor]:
        def look(part: Sample) -> Tensor:
            halves, tiles = method.make_views(part.images, part.rng).images
            one = tiles[torch.arange(len(tiles)), part.rng.child(99).integers(0, tiles.shape[1]).to(tiles.device)]
            return torch.stack([method.encoder(view).float() for view in (halves, one)], dim=1)

        return gathered(sample, look).flatten(0, 1), torch.arange(2).repeat(len(sample))

    accuracy = linear_accuracy(*seen(fit), *seen(held_out))
    return found(
        accuracy > RESAMPLED,
        warning="halved images and tiles are told apart all but always; set method.resampler: random",
        fine="halved images are not told from tiles by how they were made",
        figures={"accuracy": accuracy},
        against={"chance": 0.5, "leak above": RESAMPLED},
    )


def counting_terms(whole: Tensor, parts: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Squared counting error, and how far the counts of another image fall short of the margin: two of (N,).

    whole: counts of the halved images (N, K). parts: sums of the counts of their tiles (N, K). The norms are over all
    counts, so there is one hinge for each pair of images, max(0, margin - || whole of another - parts ||^2).
    """
    error = (whole - parts).square().sum(dim=1)
    other = (whole.roll(1, dims=0) - parts).square().sum(dim=1)
    return error, F.relu(margin - other)


@torch.no_grad()
def counting_metrics(whole: Tensor, error: Tensor, hinge: Tensor) -> dict[str, Tensor]:
    """The figures that Counting logs; whole: (N, K), error and hinge: (N,)."""
    size = whole.square().sum(dim=1).mean()
    return {
        "relative_error": torch.where(size > 0, error.mean() / size, torch.ones_like(size)),
        "hinge_active": (hinge > 0).float().mean(),
        "active_share": (whole > 0).float().mean(),
        "mean_count": whole.mean(),
    }


def quadrants(images: Tensor) -> Tensor:
    """(N, C, H, W) of even sides -> the four quarters, row-major, (N, 4, C, H/2, W/2)."""
    height, width = (side // 2 for side in images.shape[-2:])
    split = images.unflatten(3, (2, width)).unflatten(2, (2, height))  # (N, C, row, y, column, x)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def halved(images: Tensor, which: Tensor) -> Tensor:
    """Images at half their size, antialiased, each by its own resampler, clipped where that overshoots.

    images: (N, C, H, W) in [0, 1]. which: (N,) int64, `resampler_number`s. Returns (N, C, H // 2, W // 2).
    """
    rows, columns = (_halving(side, images)[which] for side in images.shape[-2:])
    return torch.einsum("nyh,nchw,nxw->ncyx", rows, images, columns).clamp(0, 1)


def resampler_number(name: str) -> int:
    """How `halved` calls a resampler."""
    return list(KERNELS).index(name)


def _halving(side: int, like: Tensor) -> Tensor:
    """Weights of every resampler for pixels of twice the resolution, (4, side // 2, side); rows sum to 1."""
    pixels = torch.arange(side, device=like.device) + 0.5
    centres = 2 * (torch.arange(side // 2, device=like.device) + 0.5)
    distance = (pixels - centres[:, None]).abs() / 2  # filters are widened by the scale, which is antialiasing
    weights = torch.stack([kernel(distance) for kernel in KERNELS.values()])
    return (weights / weights.sum(dim=2, keepdim=True)).to(like.dtype)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys 1981, with a = -0.5."""
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


def _box(x: Tensor) -> Tensor:
    return (x < 0.5).to(x.dtype)


def _lanczos(x: Tensor) -> Tensor:
    """With three lobes."""
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "area": _box,
    "lanczos": _lanczos,
}
