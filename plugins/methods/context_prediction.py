"""Context prediction: tell on which side of one patch another lies (Doersch et al. 2015, arXiv:1505.05192).

Each patch passes through the encoder alone, so where two of them lie can only be put together after it. As in jigsaw,
most of this file is guards against answering from the wrong evidence, each an option: gap and jitter against lines that
cross from patch to patch, a colour guard against chromatic aberration, standardised patches against brightness,
resampling against the blocks of JPEG.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Diagnosis, Method, Panel, Representation, StepOutput, Views
from plugins.methods.context_detectors import gap_cliff, patch_place, single_patch
from plugins.methods.panels import SHOWN, contact_sheet, judging
from plugins.methods.tiles import CONSTANT, cut_tiles, mosaic, zoomed

Mode = Literal["grid", "pair"]
Colour = Literal["projection", "dropping", "none"]

# Steps (y, x) from the first patch to the second, by label: 0 1 2 above, 3 and 4 beside, 5 6 7 below.
STEPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
GRID = 3
NOISE = 0.01  # standard deviation of what fills a dropped channel, over that of the kept one

# Streams of a view, so that switching one guard off leaves the draws of the others.
_LABEL, _ORIGIN, _JITTER, _KEPT, _NOISE, _ZOOM = range(6)


class ContextPrediction(Method):
    """Context prediction (Doersch et al. 2015, arXiv:1505.05192): classify on which of 8 sides a second patch lies.

    encoder: patches (M, C, p, p) -> (M, out_dim).
    mode: "grid" cuts 3x3 patches of each image and asks about all 40 ordered pairs of neighbours, "pair" cuts two
        larger patches per image and draws all 8 sides equally often.
    patch: side in pixels; null takes a quarter of the image's in grid mode, 5/16 in pair mode. 96 in the paper.
    gap: pixels between patches, against lines that cross it; null takes 3/8 of a patch. Half a patch in the paper, for
        which small images have no room.
    jitter: each patch moves by up to this many pixels along both axes, both ends included; null takes an eighth of a
        patch, or less where that would not fit or patches could overlap. 7 in the paper.
    colour: guard against chromatic aberration, which betrays where a lens saw the patch. "projection" removes the
        green-magenta axis, "dropping" keeps one random channel of each patch and fills the others with weak noise,
        "none" keeps colours. Only RGB images have a guard.
    standardize: each channel of each patch to mean 0, and the patch to a root mean square of 1, against brightness.
    min_crop: patches are cut from a random part of the image, of at least this share of its sides, enlarged to the
        whole: against the blocks of images that were JPEG files, as in jigsaw. 1 takes the image as it is.
    hidden_dim: width of the layer over both patches; 4096 in the paper, which has two of them.

    The representation takes whole images, projected and standardised as the patches were. Logs the accuracy over all
    pairs, and single_patch_accuracy: that of the same classifier where the mean features of the batch stand in for the
    second patch. It should stay near `trivial`: what it gains comes from patches that betray their own place. In grid
    mode it is at most 9/40, one guess for each patch. Raises ConfigError where the patches do not fit into the image.
    """

    year = 2015
    family = "pretext"

    pairs: Tensor
    sides: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mode: Mode = "grid",
        patch: Annotated[int, Field(ge=2)] | None = None,
        gap: NonNegativeInt | None = None,
        jitter: NonNegativeInt | None = None,
        colour: Colour = "projection",
        standardize: bool = True,
        min_crop: Annotated[float, Field(gt=0, le=1)] = 0.75,
        hidden_dim: PositiveInt = 256,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mode, self.patch, self.gap, self.jitter = mode, patch, gap, jitter
        self.colour, self.standardize, self.min_crop = colour, standardize, min_crop
        pairs, sides = neighbours() if mode == "grid" else (torch.tensor([[0, 1]]), None)
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("sides", sides, persistent=False)
        # Without scale and shift, as in the paper, so that the layer cannot silence itself.
        self.norm = nn.BatchNorm1d(encoder.out_dim, affine=False)
        self.head = nn.Sequential(
            nn.Linear(2 * encoder.out_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, len(STEPS))
        )

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> patches (N, T, C, p, p), T 9 in row-major order, or 2 with targets the label (N,)."""
        patches, labels = self._cut(images, rng.child(0))
        return Views(images=(self._prepare(patches),), targets=labels)

    def _cut(self, images: Tensor, stream: SampleRng) -> tuple[Tensor, Tensor | None]:
        """Patches (N, T, C, p, p) as they come from the images, and the labels of pairs."""
        shape = PatchGeometry.of(images, self.mode, self.patch, self.gap, self.jitter)
        corners, labels = (shape.grid(stream), None) if self.mode == "grid" else shape.pair(stream)
        corners = corners.to(images.device)[:, :, None, :].expand(-1, -1, images.shape[1], -1)
        patches = cut_tiles(self._source(images, stream), corners, shape.patch).contiguous()
        if self.colour == "dropping":
            patches = dropped(patches, stream)
        return patches, None if labels is None else labels.to(images.device)

    def forward(self, views: Views) -> StepOutput:
        """Cross-entropy of the side. Nothing to collapse: a constant encoder stays at the entropy of the labels."""
        features = self.patch_features(views.images[0])
        labels = self._labels(views)
        logits = self.logits(features[:, self.pairs[:, 0]], features[:, self.pairs[:, 1]]).flatten(0, 1)
        metrics = {
            "accuracy": (logits.argmax(dim=1) == labels.flatten()).float().mean(),
            "single_patch_accuracy": self._single_patch_accuracy(features, labels),
        }
        return StepOutput(loss=F.cross_entropy(logits, labels.flatten()), metrics=metrics)

    def patch_features(self, patches: Tensor) -> Tensor:
        """What is known of each patch from itself alone; (N, T, C, p, p) -> (N, T, out_dim)."""
        return self.norm(self.encoder(patches.flatten(0, 1)).float()).unflatten(0, patches.shape[:2])

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """One score per side of the first on which the second may lie; both (..., out_dim) -> (..., 8)."""
        return self.head(torch.cat([first, second], dim=-1)).float()

    def representation(self) -> Representation:
        """The encoder, whole images prepared as the patches were; where channels were dropped it gets all of them."""
        names = ["projected"] * (self.colour == "projection") + ["rms-standardized"] * self.standardize
        return Representation(self.encoder, self._prepare, "-".join(names)) if names else Representation(self.encoder)

    def trivial(self) -> dict[str, float]:
        """Of the best constant answer: all sides are equally likely in pair mode, a grid has fewer diagonals."""
        counts = torch.ones(len(STEPS)) if self.sides is None else self.sides.bincount().cpu()
        shares = counts.double() / counts.sum()
        best = float(shares.max())
        return {
            "loss": float(torch.special.entr(shares).sum()),
            "accuracy": best,
            "single_patch_accuracy": best,
        }

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """A few images: patches around one of them where they lie, and where the network puts them."""
        patches, labels = self._cut(images, rng.child(0))
        patches = patches[:SHOWN]
        grid = labels is None
        centre = GRID**2 // 2 if grid else 0
        others = [index for index in range(patches.shape[1]) if index != centre]
        with judging(self):
            features = self.patch_features(self._prepare(patches))
            guesses = self.logits(features[:, [centre] * len(others)], features[:, others]).argmax(dim=-1)
        true = torch.arange(len(STEPS), device=guesses.device).expand_as(guesses) if grid else labels[:SHOWN, None]
        boards = [placed(patches[:, centre], patches[:, others], sides) for sides in (true, guesses)]
        caption = (
            f"Each row: {'the patches around the middle one' if grid else 'a patch and a second one'} where they lie, "
            f"and where the network puts them; of several in one place the last is seen. "
            f"{int((guesses == true).sum())} of {guesses.numel()} sides are right; chance is 1 in {len(STEPS)}."
        )
        return [Panel(title="Sides of a patch", caption=caption, image=contact_sheet([mosaic(b) for b in boards]))]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether sides are told by a patch's own place, or by lines that cross from patch to patch."""
        questions = {
            "single": Diagnosis(
                question="Does the answer take both patches?",
                find=lambda fit, held_out: single_patch(self, held_out),
            ),
            "gap": Diagnosis(
                question="Does the accuracy survive a gap between the patches?",
                find=lambda fit, held_out: gap_cliff(self, held_out),
            ),
        }
        if self.mode == "grid":
            questions["place"] = Diagnosis(
                question="Does a single patch keep its place to itself?",
                find=lambda fit, held_out: patch_place(self, fit, held_out),
            )
        return questions

    @property
    def _prepare(self) -> Callable[[Tensor], Tensor]:
        # No bound method: a representation would carry the whole of this object along.
        return partial(prepared, project=self.colour == "projection", standardize=self.standardize)

    def _source(self, images: Tensor, rng: SampleRng) -> Tensor:
        """What the patches are cut from: a part of each image at full size, (N, C, H, W)."""
        if self.min_crop == 1:
            return images
        draw = rng.child(_ZOOM)
        share, place = draw.uniform(self.min_crop, 1.0), draw.uniform(shape=(2,))
        return zoomed(images, share.to(images.device), place.to(images.device))

    def _labels(self, views: Views) -> Tensor:
        """The side of every pair of every image, (N, P)."""
        if self.sides is None:
            return views.targets[:, None]
        return self.sides.expand(len(views.images[0]), -1)

    @torch.no_grad()
    def _single_patch_accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Accuracy where the second patch is unknown: after the batch norm the mean features are zeros."""
        guesses = self.logits(features, torch.zeros_like(features)).argmax(dim=-1)  # (N, T), the same for all sides
        return (guesses[:, self.pairs[:, 0]] == labels).float().mean()


def placed(first: Tensor, others: Tensor, sides: Tensor) -> Tensor:
    """3x3 cells, row-major, with one patch in the middle and others on its sides, the rest grey: (N, 9, C, p, p).

    first: (N, C, p, p). others: (N, K, C, p, p). sides: (N, K) int64 in 0..7; of two on one side the later is seen.
    """
    middle = GRID**2 // 2
    board = torch.full_like(first, 0.8)[:, None].repeat(1, GRID**2, 1, 1, 1)
    board[:, middle] = first
    rows = torch.arange(len(first), device=first.device)
    for index in range(others.shape[1]):
        side = sides[:, index]
        board[rows, side + (side >= middle)] = others[:, index]
    return board


@dataclass(frozen=True, kw_only=True)
class PatchGeometry:
    """Where patches lie in images of height x width; all in pixels.

    patch: side of a patch. gap: between two of them, before they move by up to `jitter`. span: side of the square that
    all patches of a grid (or of a diagonal pair) take, before they move.
    """

    height: int
    width: int
    patch: int
    gap: int
    jitter: int
    span: int

    @classmethod
    def of(cls, images: Tensor, mode: Mode, patch: int | None, gap: int | None, jitter: int | None) -> PatchGeometry:
        """For images (N, C, H, W), None standing for the default. Raises ConfigError where the patches do not fit."""
        height, width = images.shape[-2:]
        side, count = min(height, width), GRID if mode == "grid" else 2
        patch = patch or max(2, side // 4 if mode == "grid" else 5 * side // 16)
        gap = (3 * patch + 4) // 8 if gap is None else gap
        span = count * patch + (count - 1) * gap
        if jitter is None:
            jitter = min(max(1, patch // 8), gap // 2, max(0, side - span) // 2)
        if span + 2 * jitter > side:
            raise ConfigError(
                f"method context_prediction needs {span + 2 * jitter} px for a {mode} of patches of {patch} px with "
                f"gap {gap} and jitter {jitter}, but the images have {height}x{width}: lower method.patch, gap or "
                f"jitter, or raise data.size"
            )
        return cls(height=height, width=width, patch=patch, gap=gap, jitter=jitter, span=span)

    @property
    def pitch(self) -> int:
        """From one patch to its neighbour, before they move."""
        return self.patch + self.gap

    def grid(self, rng: SampleRng) -> Tensor:
        """Top-left pixels (y, x) of 3x3 patches, row-major, the grid anywhere in the image: (N, 9, 2)."""
        draw, reach = rng.child(_ORIGIN), self.span + self.jitter
        sides = (self.height, self.width)
        origin = torch.stack([draw.integers(self.jitter, side - reach + 1) for side in sides], dim=-1)
        steps = torch.arange(GRID, device=rng.device) * self.pitch
        return origin[:, None, :] + torch.cartesian_prod(steps, steps) + self._moves(rng, GRID**2)

    def pair(self, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Top-left pixels (y, x) of two patches, (N, 2, 2), and the side of the first on which the second lies, (N,).

        The side comes first and then the place, uniformly among those where both fit, so that all sides are equally
        likely.
        """
        labels = rng.child(_LABEL).integers(0, len(STEPS))
        step = torch.tensor(STEPS, device=rng.device)[labels] * self.pitch
        room = torch.tensor([self.height, self.width], device=rng.device) - self.patch - 2 * self.jitter - step.abs()
        # Double precision: a product in float32 could round up to the end that is left out.
        place = (rng.child(_ORIGIN).uniform(shape=(2,)).double() * (room + 1)).long()
        first = self.jitter - step.clamp(max=0) + place
        return torch.stack([first, first + step], dim=1) + self._moves(rng, 2), labels

    def _moves(self, rng: SampleRng, count: int) -> Tensor:
        return rng.child(_JITTER).integers(-self.jitter, self.jitter + 1, (count, 2))


def neighbours() -> tuple[Tensor, Tensor]:
    """All ordered pairs of neighbouring cells of the grid, (40, 2), and the side on which the second lies, (40,)."""
    pairs, sides = [], []
    for y, x in itertools.product(range(GRID), repeat=2):
        for side, (down, right) in enumerate(STEPS):
            if 0 <= y + down < GRID and 0 <= x + right < GRID:
                pairs.append((y * GRID + x, (y + down) * GRID + x + right))
                sides.append(side)
    return torch.tensor(pairs), torch.tensor(sides)


def prepared(images: Tensor, *, project: bool, standardize: bool) -> Tensor:
    """What the encoder gets to see of patches or whole images (..., C, H, W) in [0, 1]."""
    images = projected(images) if project else images
    return rms_standardized(images) if standardize else images


def projected(images: Tensor) -> Tensor:
    """Without the green-magenta axis a = (-1, 2, -1): x - a (a x) / (a a); (..., 3, H, W), others stay as they are."""
    if images.shape[-3] != 3:
        return images
    red, green, blue = images.unbind(dim=-3)
    # Plain sums round alike for every batch size, as in tiles.grayed.
    excess = (2 * green - red - blue) / 6
    return torch.stack([red + excess, green - 2 * excess, blue + excess], dim=-3)


def dropped(patches: Tensor, rng: SampleRng) -> Tensor:
    """One random channel of each patch, its mean subtracted; the others are noise of 1/100 of its deviation.

    patches: (N, T, 3, p, p); those with other channels stay as they are.
    """
    if patches.shape[2] != 3:
        return patches
    kept = rng.child(_KEPT).integers(0, 3, (patches.shape[1],)).to(patches.device)
    is_kept = F.one_hot(kept, 3)[..., None, None].bool()  # (N, T, 3, 1, 1)
    signal = (patches * is_kept).sum(dim=2, keepdim=True)
    deviation, mean = torch.std_mean(signal, dim=(-2, -1), correction=0, keepdim=True)
    noise = rng.child(_NOISE).normal(std=NOISE, shape=patches.shape[1:]).to(patches)
    return torch.where(is_kept, signal - mean, noise * deviation)


def rms_standardized(images: Tensor) -> Tensor:
    """Each channel to mean 0, then the image (or patch) to a root mean square of 1; a constant one to zeros.

    images: (..., C, H, W) of any leading shape. One scale for all channels keeps the noise of dropped ones weak.
    """
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    rms = centred.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
    return centred / rms.where(rms > CONSTANT, torch.ones_like(rms))
