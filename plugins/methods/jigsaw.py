"""Jigsaw: tell by which permutation the tiles of an image were shuffled (Noroozi & Favaro 2016, arXiv:1603.09246).

Each tile passes through the encoder alone, so what lies where can only be put together after it. Most of this file is
guards against answering from the wrong evidence: gaps against lines that cross a border, standardised tiles against
brightness, shifted and grey colours against chromatic aberration, resampling against the blocks of JPEG. Each guard is
an option, so that its worth can be measured. Where the tiles are cut and which permutations there are is in `tiles.py`
and `permutations.py`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Diagnosis, Method, Panel, Representation, StepOutput, UnitInterval, Views
from plugins.methods.jigsaw_detectors import jigsaw_guards, jigsaw_statistics, tile_place
from plugins.methods.panels import framed, judging
from plugins.methods.permutations import Rule, permutation_set
from plugins.methods.tiles import TileGeometry, cut_tiles, grayed, mosaic, standardize, zoomed

# All orders of 2x2 tiles; of 3x3 the largest set with distance 8, in which every cell is equally often in every slot.
CLASSES = {2: 24, 3: 72}

# Streams of a view, so that switching one guard off leaves the draws of the others.
_LABEL, _CROP, _JITTER, _SHIFT, _GRAY, _ZOOM = range(6)

PUZZLES_SHOWN = 6
TILE_SHOWN = 32  # pixels; smaller tiles are enlarged by a whole factor


class Jigsaw(Method):
    """Jigsaw puzzles (Noroozi & Favaro 2016, arXiv:1603.09246): classify the permutation of an image's tiles.

    encoder: tiles (M, C, t, t) -> (M, out_dim).
    grid: 3 cuts 3x3 tiles, 2 the milder 2x2.
    classes: permutations to tell apart; null takes 72 for 3x3 and all 24 for 2x2. The paper uses up to 1,000 at 225 px.
    rule: how they are chosen, see `permutation_set`. The default has the largest possible smallest distance.
    tile_share: side of a tile as a share of its cell's; the rest is the gap against edge continuity, 1 closes it. With
        the default 32 px images give 8 px tiles in 10 px cells (grid 3) or 12 px tiles in 16 px cells (grid 2).
    jitter: place each tile anywhere in its cell, both ends included; false centres it.
    standardize: each channel of each tile to mean 0 and deviation 1, against brightness; the representation then
        standardises whole images likewise.
    channel_shift: each colour channel moves by up to this many pixels within the cell, against chromatic aberration;
        the paper shifts by 0 to 2 at 64 px tiles.
    gray_prob: share of puzzles made of a grey image (0.3 in the paper).
    min_crop: the puzzle is made of a random part of the image, of at least this share of its sides, enlarged to the
        whole. JPEG files (also as CIFAR-10 copies) carry a grid of 8 or 16 px whose place in a tile betrays the cell;
        the paper resizes every image, which blurs that grid too. 1 takes the image as it is.
    tile_dim, hidden_dim: widths of the layer that each tile gets and of the one over all tiles; 1024 and 4096 in the
        paper.
    dropout: of both layers.

    Permutations are in gather form, slot k shows cell `permutations[label, k]`, and the table is part of the state:
    labels mean nothing without it. Every puzzle is redrawn each epoch. Raises ConfigError where the images are too
    small for the grid.
    """

    year = 2016
    family = "pretext"

    permutations: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        grid: Literal[2, 3] = 3,
        classes: Annotated[int, Field(ge=2)] | None = None,
        rule: Rule = "algebraic",
        tile_share: Annotated[float, Field(gt=0, le=1)] = 0.75,
        jitter: bool = True,
        standardize: bool = True,
        channel_shift: NonNegativeInt = 1,
        gray_prob: UnitInterval = 0.3,
        min_crop: Annotated[float, Field(gt=0, le=1)] = 0.75,
        tile_dim: PositiveInt = 128,
        hidden_dim: PositiveInt = 512,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid, self.tile_share = grid, tile_share
        self.jitter, self.standardize = jitter, standardize
        self.channel_shift, self.gray_prob, self.min_crop = channel_shift, gray_prob, min_crop
        table = permutation_set(grid**2, classes or CLASSES[grid], rule)
        self.register_buffer("permutations", table)
        self.tile_head = nn.Sequential(*_layer(encoder.out_dim, tile_dim, dropout))
        self.order_head = nn.Sequential(
            *_layer(grid**2 * tile_dim, hidden_dim, dropout), nn.Linear(hidden_dim, len(table))
        )

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> shuffled tiles (N, grid * grid, C, t, t), targets the rows of the table (N,)."""
        tiles, labels = self._shuffled(images, rng.child(0))
        return Views(images=(standardize(tiles) if self.standardize else tiles,), targets=labels)

    def forward(self, views: Views) -> StepOutput:
        """Cross-entropy of the permutation. Nothing to collapse: a constant encoder stays at log(classes)."""
        logits = self.logits(views.images[0]).float()
        accuracy = (logits.argmax(dim=1) == views.targets).float().mean()
        return StepOutput(loss=F.cross_entropy(logits, views.targets), metrics={"accuracy": accuracy})

    def logits(self, tiles: Tensor) -> Tensor:
        """One score per row of the table; tiles: (N, T, C, t, t) -> (N, P)."""
        return self.order_head(self.tile_features(tiles).flatten(1))

    def tile_features(self, tiles: Tensor) -> Tensor:
        """What is known of each tile from itself alone; (N, T, C, t, t) -> (N, T, tile_dim)."""
        features = self.tile_head(self.encoder(tiles.flatten(0, 1)))
        return features.unflatten(0, tiles.shape[:2])

    def representation(self) -> Representation:
        """The encoder, its input standardised per image as the tiles were per tile."""
        if not self.standardize:
            return Representation(self.encoder)
        return Representation(self.encoder, standardize, "standardized")

    def trivial(self) -> dict[str, float]:
        """Of equal scores for all permutations: log(classes), and chance."""
        return {"loss": math.log(len(self.permutations)), "accuracy": 1 / len(self.permutations)}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """A few puzzles beside their true and their predicted order."""
        some = torch.arange(min(PUZZLES_SHOWN, len(images)), device=images.device)
        tiles, labels = self._shuffled(images[some], rng.rows(some).child(0))
        guesses = self._guesses(tiles)
        solved = int((guesses == labels).sum())
        caption = (
            f"Each row: a puzzle, its tiles in true order, and in the order that the network predicts. "
            f"{solved} of {len(some)} are right (green frame); chance is 1 in {len(self.permutations)}."
        )
        image = _picture(tiles, self._restored(tiles, labels), self._restored(tiles, guesses), guesses == labels)
        return [Panel(title="Jigsaw puzzles", caption=caption, image=image)]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether puzzles can be solved by other evidence than what the tiles show."""
        return {
            "statistics": Diagnosis(
                question="Do the guards keep the order from trivial statistics of the tiles?",
                find=lambda fit, held_out: jigsaw_statistics(self, fit, held_out),
            ),
            "guards": Diagnosis(
                question="Does the network do without the evidence that the guards withhold?",
                find=lambda fit, held_out: jigsaw_guards(self, held_out),
            ),
            "place": Diagnosis(
                question="Does a single tile keep its place to itself?",
                find=lambda fit, held_out: tile_place(self, fit, held_out),
            ),
        }

    def tile_side(self, images: Tensor) -> int:
        """Side of the tiles of images (N, C, H, W), in pixels."""
        return TileGeometry.of(images, grid=self.grid, share=self.tile_share).tile

    def _shuffled(self, images: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Tiles (N, T, C, t, t) in [0, 1] in shuffled order, and the rows of the table that say how (N,)."""
        shape = TileGeometry.of(images, grid=self.grid, share=self.tile_share)
        table = self.permutations.to(images.device)
        labels = rng.child(_LABEL).integers(0, len(table)).to(images.device)
        corners = self._corners(shape, images.shape[1], rng).to(images.device)  # (N, T, C, 2) by cell
        order = table[labels][:, :, None, None].expand_as(corners)
        return cut_tiles(self._source(images, rng), corners.gather(1, order), shape.tile).contiguous(), labels

    def _source(self, images: Tensor, rng: SampleRng) -> Tensor:
        """What the tiles are cut from: a part of each image at full size, some of them grey; (N, C, H, W)."""
        if self.min_crop < 1:
            draw = rng.child(_ZOOM)
            share, place = draw.uniform(self.min_crop, 1.0), draw.uniform(shape=(2,))
            images = zoomed(images, share.to(images.device), place.to(images.device))
        return grayed(images, rng.child(_GRAY).bernoulli(self.gray_prob).to(images.device))

    def _corners(self, shape: TileGeometry, channels: int, rng: SampleRng) -> Tensor:
        """Top-left pixel of every tile in every channel, by cell: (N, T, C, 2)."""
        crop = rng.child(_CROP)
        origin = torch.stack([crop.integers(0, shape.room_y + 1), crop.integers(0, shape.room_x + 1)], dim=-1)
        shift, spread = rng.child(_SHIFT), self.channel_shift
        moved = shift.integers(-spread, spread + 1, (self.grid**2, channels, 2))
        if self.jitter:
            moved = moved + rng.child(_JITTER).integers(0, shape.slack + 1, (self.grid**2, 1, 2))
        else:
            moved = moved + shape.slack // 2
        cells = shape.corners(rng.device)[:, None, :]
        # Kept inside the cell, or neighbouring tiles could share pixels and the shift would open the way it closes.
        return origin[:, None, None, :] + cells + moved.clamp(0, shape.slack)

    def _restored(self, tiles: Tensor, labels: Tensor) -> Tensor:
        """The tiles put back as if shuffled by these rows of the table; (N, T, C, t, t)."""
        back = self.permutations.to(tiles.device)[labels].argsort(dim=1)
        return tiles.gather(1, back[:, :, None, None, None].expand_as(tiles))

    def _guesses(self, tiles: Tensor) -> Tensor:
        """The most likely rows of the table under evaluation statistics."""
        with judging(self):
            logits = self.logits((standardize(tiles) if self.standardize else tiles).to(self.permutations.device))
        return logits.argmax(dim=1).to(tiles.device)


def _layer(wide: int, narrow: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(inplace=True), nn.Dropout(dropout)]


def _picture(shuffled: Tensor, true: Tensor, predicted: Tensor, right: Tensor) -> np.ndarray:
    """One row per puzzle with its three orders side by side: (H, W, 3) uint8, enlarged so that tiles can be seen."""
    columns = [framed(mosaic(shuffled)), framed(mosaic(true)), framed(mosaic(predicted), right)]
    sheet = torch.cat(list(torch.cat(columns, dim=3)), dim=1)  # (3, rows of puzzles, columns of orders)
    pixels = sheet.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    enlarge = max(1, TILE_SHOWN // shuffled.shape[-1])
    return pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
