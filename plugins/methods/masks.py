"""Holes for inpainting: centre and random regions (Pathak et al. 2016, arXiv:1604.07379, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError

CENTRE_OVERLAP = 0.11  # of the hole's side: the ring of known pixels that is painted too (7 of 64 px in the paper)
RING_WEIGHT = 10.0
NOISE_SIDE = 8  # cells of the noise field whose lowest quarter becomes the hole
SHARE = 0.25  # of the image that a random hole takes


def centre_mask(images: Tensor) -> Tensor:
    """Weight in the loss: 1 in the middle quarter of the area, 10 on its ring, 0 outside; (1, 1, H, W) float.

    Raises ConfigError where the side is no multiple of 4.
    """
    height, width = images.shape[-2:]
    if height % 4 or width % 4:
        raise ConfigError(
            f"method.holes: centre cuts out the middle half of each side, and {height}x{width} px has none; make "
            f"data.size a multiple of 4, or set holes: regions"
        )
    weight = images.new_zeros(1, 1, height, width)
    inside = (slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4))
    weight[..., inside[0], inside[1]] = RING_WEIGHT
    return torch.where(shrunk(images), torch.ones_like(weight), weight)


def shrunk(images: Tensor) -> Tensor:
    """Where the net sees the fill colour: the middle quarter without its ring; (1, 1, H, W) bool."""
    height, width = images.shape[-2:]
    ring_y, ring_x = (max(1, round(CENTRE_OVERLAP * side / 2)) for side in (height, width))
    hidden = torch.zeros(1, 1, height, width, dtype=torch.bool, device=images.device)
    hidden[..., height // 4 + ring_y : 3 * height // 4 - ring_y, width // 4 + ring_x : 3 * width // 4 - ring_x] = True
    return hidden


def random_regions(images: Tensor, rng: SampleRng) -> Tensor:
    """Random shapes, a quarter of each image: 1 inside, 0 outside, (N, 1, H, W) float.

    The lowest quarter of a coarse noise field, enlarged smoothly. The authors take a window of one large field for the
    whole batch, and only if its share lies between 20 and 30 %; here every image has its own.
    """
    field = rng.uniform(shape=(1, NOISE_SIDE, NOISE_SIDE)).to(images.device)
    smooth = F.interpolate(field, size=images.shape[-2:], mode="bilinear", align_corners=False)
    limit = smooth.flatten(1).quantile(SHARE, dim=1)
    return (smooth <= limit[:, None, None, None]).to(images.dtype)
