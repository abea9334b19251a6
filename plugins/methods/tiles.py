"""Cutting batches of images into grids of tiles, by one gather and without a loop over samples.

Cells are numbered row-major. Knows nothing of permutations, encoders or randomness: offsets come in as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.errors import ConfigError

CONSTANT = 1e-6  # below this, a standard deviation of values in [0, 1] is rounding
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as in torchvision's rgb_to_grayscale


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """How an image falls into grid x grid cells, each holding one tile; all in pixels.

    cell: side of a cell. tile: side of a tile. room_y, room_x: what the image leaves around the grid.
    """

    grid: int
    cell: int
    tile: int
    room_y: int
    room_x: int

    @classmethod
    def of(cls, images: Tensor, *, grid: int, share: float) -> TileGeometry:
        """For images (N, C, H, W) and tiles that take `share` of their cell's side.

        Raises ConfigError where a tile would have fewer than 2 pixels a side.
        """
        height, width = images.shape[-2:]
        cell = min(height, width) // grid
        tile = int(share * cell + 0.5)
        if tile < 2:
            raise ConfigError(
                f"method.grid {grid} with tile_share {share:g} cuts {height}x{width} px images into tiles of {tile} "
                f"px; a tile needs 2 px: raise data.size or tile_share, or lower grid"
            )
        return cls(grid=grid, cell=cell, tile=tile, room_y=height - grid * cell, room_x=width - grid * cell)

    @property
    def slack(self) -> int:
        """How far a tile can move inside its cell."""
        return self.cell - self.tile

    def corners(self, device: torch.device) -> Tensor:
        """Top-left pixel (y, x) of each cell, relative to the grid: (grid * grid, 2) int64."""
        steps = torch.arange(self.grid, device=device) * self.cell
        return torch.cartesian_prod(steps, steps)


def cut_tiles(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """The squares of side `size` at the given places: (N, T, C, size, size).

    images: (N, C, H, W). corners: (N, T, C, 2) int64, top-left pixel (y, x) per tile and colour channel, inside.
    """
    span = torch.arange(size, device=images.device)
    rows = (corners[..., 0, None] + span) * images.shape[-1]
    columns = corners[..., 1, None] + span
    index = rows[..., :, None] + columns[..., None, :]  # (N, T, C, size, size) into the pixels of a channel
    index = index.transpose(1, 2)
    return images.flatten(2).gather(2, index.flatten(2)).reshape(index.shape).transpose(1, 2)


def zoomed(images: Tensor, share: Tensor, place: Tensor) -> Tensor:
    """A part of each image enlarged to the whole, by bilinear interpolation: (N, C, H, W).

    images: (N, C, H, W). share: (N,) in (0, 1], sides of the part over those of the image. place: (N, 2) in [0, 1],
    (y, x): 0 puts the part at the top or left end, 1 at the other.
    """
    y, x = (_sampled(side, share, place[:, axis]) for axis, side in enumerate(images.shape[-2:]))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="border", align_corners=False)


def _sampled(side: int, share: Tensor, place: Tensor) -> Tensor:
    """Where each of `side` pixels of the enlarged part lies, from -1 to 1 over the image: (N, side)."""
    centres = (torch.arange(side, device=share.device) + 0.5) / side
    start = place * (1 - share)
    return (start[:, None] + centres * share[:, None]) * 2 - 1


def standardize(images: Tensor) -> Tensor:
    """Every channel of every image (or tile) to mean 0 and standard deviation 1; a constant one to zeros.

    images: (..., H, W) of any leading shape.
    """
    deviation, mean = torch.std_mean(images, dim=(-2, -1), correction=0, keepdim=True)
    return (images - mean) / deviation.where(deviation > CONSTANT, torch.ones_like(deviation))


def grayed(images: Tensor, which: Tensor) -> Tensor:
    """The images with the marked ones turned grey; images: (N, C, H, W), which: (N,) bool. Only RGB has a grey."""
    if images.shape[1] != len(LUMA):
        return images
    # Plain sums round alike for every batch size; a matrix product does not, and tiles of little contrast magnify it.
    luma = sum(weight * images[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
    return torch.where(which[:, None, None, None], luma, images)


def mosaic(tiles: Tensor, gap: int = 1) -> Tensor:
    """Tiles laid out in a square with white lines between them: (N, T, C, t, t) -> (N, C, G (t+gap), G (t+gap))."""
    side = round(tiles.shape[1] ** 0.5)
    framed = F.pad(tiles, (0, gap, 0, gap), value=1.0)
    rows = framed.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)  # (N, C, row, y, column, x)
    return rows.flatten(4, 5).flatten(2, 3)
