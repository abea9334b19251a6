"""What pictures of several methods share: a look at a network that leaves it as it was, frames, sheets of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

SHOWN = 6  # images per panel
_SIDE = 96  # pixels to which small images are enlarged, by a whole factor
_RIGHT, _WRONG = (0.1, 0.6, 0.2), (0.85, 0.15, 0.1)


@contextmanager
def judging(*modules: nn.Module) -> Iterator[None]:
    """No gradient and evaluation mode inside; every submodule has its own mode back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def contact_sheet(columns: Sequence[Tensor], gap: int = 2) -> np.ndarray:
    """One row per image, one column per tensor: [(N, 3, H, W) in [0, 1], ...] -> (rows, columns, 3) uint8.

    Values outside [0, 1] are clipped, white lines of `gap` pixels stand between the images, small images are enlarged.
    """
    padded = [nn.functional.pad(column.float().clamp(0, 1), (gap, gap, gap, gap), value=1.0) for column in columns]
    sheet = torch.cat(list(torch.cat(padded, dim=3)), dim=1)
    pixels: np.ndarray = sheet.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    enlarge = max(1, _SIDE // columns[0].shape[-1])
    return pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)


def framed(pictures: Tensor, right: Tensor | None = None, width: int = 2) -> Tensor:
    """Pictures in a green frame where `right` (N,) bool says so, else a red one; white where there is nothing to judge.

    (N, 3, h, w) -> (N, 3, h + 2 width, w + 2 width).
    """
    if right is None:
        colours = pictures.new_ones(len(pictures), 3)
    else:
        colours = torch.where(right[:, None], pictures.new_tensor(_RIGHT), pictures.new_tensor(_WRONG))
    height, breadth = (side + 2 * width for side in pictures.shape[-2:])
    ground = colours[:, :, None, None].repeat(1, 1, height, breadth)
    ground[:, :, width:-width, width:-width] = pictures
    return ground
