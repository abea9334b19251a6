"""A complete third-party plugin: the augmentation `solarize_range`."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_core import SampleRng, hookimpl
from cl_core.types import UnitInterval


class SolarizeRange:
    """Invert pixels above a threshold drawn per image (after Grill et al. 2020, arXiv:2006.07733, appendix B)."""

    def __init__(self, lowest: UnitInterval = 0.3, prob: UnitInterval = 0.2) -> None:
        self.lowest, self.prob = lowest, prob

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:  # (N, C, H, W) floats in [0, 1]
        threshold = rng.uniform(self.lowest, 1.0)[:, None, None, None]
        hit = rng.bernoulli(self.prob)[:, None, None, None]
        return torch.where(hit & (images >= threshold), 1 - images, images)


@hookimpl
def register_augmentations() -> dict[str, type]:
    return {"solarize_range": SolarizeRange}
