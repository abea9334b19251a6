"""preview.png: a few images, each with all its views beside it, to see at a glance what a method looks at.

Draws with Pillow alone, so that the views stage needs no plotting library. Standardised views are stretched to [0, 1]
for the eye; the numbers are in statistics.json.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cl_core.types import Views

_CELL = 128  # pixels on screen per image
_GAP = 8
_TITLE = 20
_PAPER, _INK, _GRID = (255, 255, 255), (60, 60, 60), 1.0


def draw_preview(originals: Tensor, views: Views) -> bytes:
    """PNG with one row per image: the original (P, C, H, W) in [0, 1], then its views. Tiles lie in a small grid."""
    titles = ["original"] + [f"view {k} ({_shape(view)})" for k, view in enumerate(views.images, start=1)]
    columns = [originals, *views.images]
    page = _Page(titles, len(originals))
    for column, batch in enumerate(columns):
        for row, picture in enumerate(_pictures(batch)):
            page.paste(picture, row, column)
    return page.png()


class _Page:
    """A table of pictures with a title above each column."""

    def __init__(self, titles: list[str], rows: int) -> None:
        self.step = _CELL + _GAP
        self.sheet = Image.new("RGB", (len(titles) * self.step + _GAP, rows * self.step + _TITLE + _GAP), _PAPER)
        pen = ImageDraw.Draw(self.sheet)
        for column, title in enumerate(titles):
            pen.text((_GAP + column * self.step, _GAP), title, fill=_INK)

    def paste(self, picture: np.ndarray, row: int, column: int) -> None:
        """picture: (h, w, 3) uint8, enlarged by a whole factor, or shrunk where it is larger than the cell."""
        image = Image.fromarray(picture)
        factor = _CELL // max(image.size)
        if factor >= 1:
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        else:
            image.thumbnail((_CELL, _CELL), Image.Resampling.BOX)
        margin = ((_CELL - image.width) // 2, (_CELL - image.height) // 2)
        self.sheet.paste(image, (_GAP + column * self.step + margin[0], _TITLE + _GAP + row * self.step + margin[1]))

    def png(self) -> bytes:
        """The page as a file."""
        buffer = io.BytesIO()
        self.sheet.save(buffer, format="PNG")
        return buffer.getvalue()


def _shape(view: Tensor) -> str:
    tiles = f"{view.shape[1]} tiles " if view.ndim == 5 else ""
    return f"{tiles}{view.shape[-2]}x{view.shape[-1]}"


def _pictures(batch: Tensor) -> list[np.ndarray]:
    """(P, C, H, W) or (P, T, C, h, w) of any range -> one (h, w, 3) uint8 picture per image."""
    batch = batch.detach().cpu().float()
    if batch.min() < 0 or batch.max() > 1:
        batch = torch.stack([_stretched(image) for image in batch])
    if batch.ndim == 5:
        batch = torch.stack([_tiled(tiles) for tiles in batch])
    return [_bytes(image) for image in batch]


def _stretched(image: Tensor) -> Tensor:
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-6)


def _tiled(tiles: Tensor) -> Tensor:
    """(T, C, h, w) -> (C, rows * (h + 1) - 1, columns * (w + 1) - 1), in reading order with white lines between."""
    count, channels, height, width = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), _GRID)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        grid[:, top : top + height, left : left + width] = tile
    return grid


def _bytes(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8; other than three channels are shown as their mean grey."""
    rgb = image if len(image) == 3 else image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    pixels: np.ndarray = rgb.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels
