"""Augmentations that take detail away: blur and cutout.

Sizes are shares of the image's shorter side, so one recipe serves every resolution.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.types import UnitInterval
from plugins.augmentations import compiled
from plugins.augmentations.operation import Operation, check_increasing, on_rows
from plugins.augmentations.resampling import blur_matrix, resample


class GaussianBlur(Operation):
    """Blur with a Gaussian of random width with probability `prob` (Chen et al. 2020, arXiv:2002.05709, appendix A).

    kernel: side of the filter as share of the shorter side, made odd (0.1: 3 pixels at 32, 23 at 224; below 20 pixels
    there is nothing to blur). sigma: interval of the standard deviation in pixels, drawn uniformly. Borders reflect.
    """

    changes_input = True

    def __init__(
        self,
        kernel: UnitInterval = 0.1,
        sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
        prob: UnitInterval = 0.5,
    ) -> None:
        check_increasing("gaussian_blur.sigma", sigma)
        self.kernel, self.sigma, self.prob = kernel, sigma, prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return hit (N,) bool and sigma (N,) in pixels."""
        return {"hit": rng.bernoulli(self.prob), "sigma": rng.uniform(*self.sigma)}

    def apply(self, images: Tensor, hit: Tensor, sigma: Tensor) -> Tensor:
        """Return the images, some of them blurred."""
        if self.radius(*images.shape[-2:]) == 0:
            return images
        return on_rows(images, hit, self._blur, sigma)

    def radius(self, height: int, width: int) -> int:
        """Pixels on each side of the centre that the filter reaches."""
        # The tiny offset keeps 0.29 * 100 from becoming 28.
        return int(self.kernel * min(height, width) + 1e-6) // 2

    def compiled(self, images: Tensor, hit: Tensor, sigma: Tensor) -> Tensor:
        """As `apply`, in place."""
        radius = self.radius(*images.shape[-2:])
        return images if radius == 0 else compiled.blur_(images, hit, _gaussian(radius, sigma))

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        weights = _gaussian(self.radius(height, width), sigma.to(images.dtype))
        return resample(images, blur_matrix(weights, height), blur_matrix(weights, width)).clamp_(0, 1)


def _gaussian(radius: int, sigma: Tensor) -> Tensor:
    """Weights (N, 2 * radius + 1) that sum to 1, of standard deviations (N,) in pixels."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    return torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)


class Cutout(Operation):
    """Fill a square at a random place with probability `prob` (DeVries & Taylor 2017, arXiv:1708.04552, section 3.2).

    size: side of the square as share of the shorter side; the paper used 0.5 for CIFAR-10. Its centre may be any pixel,
    so the square may stick out. fill: its value; the paper's 0 after standardisation is about 0.5 here.
    """

    def __init__(self, size: UnitInterval = 0.5, fill: UnitInterval = 0.0, prob: UnitInterval = 1.0) -> None:
        self.size, self.fill, self.prob = size, fill, prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return hit (N,) bool and the centre's row and column, each (N,) int64."""
        return {"hit": rng.bernoulli(self.prob), "row": rng.integers(0, height), "column": rng.integers(0, width)}

    def apply(self, images: Tensor, hit: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the images, some with a square filled."""
        height, width = images.shape[-2:]
        half = int(self.size * min(height, width) + 1e-6) // 2
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        rows = (y >= row[:, None] - half) & (y < row[:, None] + half) & hit[:, None]
        columns = (x >= column[:, None] - half) & (x < column[:, None] + half)
        return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], self.fill)
