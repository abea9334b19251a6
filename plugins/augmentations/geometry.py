"""Augmentations that move pixels: crop, flip, rotation.

Boxes and angles mean what they mean in `torchvision.transforms.v2`, and the pixels agree with its functional
operations under the same parameters. Nothing here changes colours.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from cl_core.data.lazy import LazyImages
from cl_core.data.sampling import SampleRng
from cl_core.errors import DataError
from cl_core.types import UnitInterval
from plugins.augmentations import compiled
from plugins.augmentations.operation import Operation, check_increasing, on_rows, per_sample
from plugins.augmentations.resampling import Interpolation, resample, resize_matrix

Share = Annotated[float, Field(gt=0, le=1)]
Side = Annotated[int, Field(ge=4, le=1024)]
Degrees = Annotated[float, Field(ge=0, le=180)]

_TRIES = 10  # as torchvision: candidate boxes per sample before the centre crop


class RandomResizedCrop(Operation):
    """Crop a random box and resize it, antialiased (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    size: side of the square output in pixels; None keeps height and width. scale: area of the box as share of the
    image, drawn uniformly. ratio: width / height of the box, drawn log-uniformly. interpolation: of the resize; what
    bicubic overshoots is clipped.
    """

    def __init__(
        self,
        size: Side | None = None,
        scale: tuple[Share, Share] = (0.08, 1.0),
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_increasing("random_resized_crop.scale", scale)
        check_increasing("random_resized_crop.ratio", ratio)
        self.size, self.scale, self.ratio, self.interpolation = size, scale, ratio, interpolation

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:
        """Return the crops; of images that are not decoded yet, cut from them as they are stored."""
        if not isinstance(images, LazyImages):
            return super().__call__(images, rng)
        boxes = self.draw(rng, images.heights, images.widths)
        return images.resized_crops(**boxes, size=self._out_size(images), mode=self.interpolation)

    def draw(self, rng: SampleRng, height: int | Tensor, width: int | Tensor) -> dict[str, Tensor]:
        """Return the integer boxes top, left, height, width, each (N,) int64.

        height, width: of all images, or (N,) of each.
        """
        height, width = (torch.as_tensor(side, device=rng.device).expand(len(rng)) for side in (height, width))
        # Double precision: a box must not depend on how a device rounds a square root.
        area = rng.uniform(*self.scale, (_TRIES,)).double() * (height * width)[:, None]
        ratio = rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), (_TRIES,)).double().exp()
        tall, wide = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
        fits = (wide > 0) & (wide <= width[:, None]) & (tall > 0) & (tall <= height[:, None])
        first, found = fits.int().argmax(dim=1, keepdim=True), fits.any(dim=1)
        largest = self._largest_box(height, width)
        tall = torch.where(found, tall.gather(1, first)[:, 0], largest[0])
        wide = torch.where(found, wide.gather(1, first)[:, 0], largest[1])
        top = torch.where(found, _at_random(rng, height - tall), (height - tall) // 2)
        left = torch.where(found, _at_random(rng, width - wide), (width - wide) // 2)
        return {"top": top, "left": left, "height": tall, "width": wide}

    def apply(self, images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Return the boxes resized: (N, C, size, size)."""
        full_height, full_width = images.shape[-2:]
        out_height, out_width = self._out_size(images)
        rows = resize_matrix(top, height, full_height, out_height, self.interpolation)
        columns = resize_matrix(left, width, full_width, out_width, self.interpolation)
        # Weights that sum to one up to rounding may leave [0, 1] by an ulp; cubic ones overshoot at edges.
        return resample(images, rows.to(images.dtype), columns.to(images.dtype)).clamp_(0, 1)

    def compiled(self, images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """As `apply`."""
        boxes = torch.stack([top, left, height, width], dim=1)
        return compiled.crop(images, boxes, self._out_size(images), cubic=self.interpolation == "bicubic")

    def _out_size(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        return (self.size, self.size) if self.size else (height, width)

    def _largest_box(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width of the centre crops taken where no candidate fits, each (N,)."""
        tall = torch.minimum(height, (width.double() / self.ratio[0]).round().long())
        wide = torch.minimum(width, (height.double() * self.ratio[1]).round().long())
        return tall.clamp(min=1), wide.clamp(min=1)


class RandomCrop(Operation):
    """Pad the border, then crop the original size at random (He et al. 2016, arXiv:1512.03385, section 4.2).

    padding: pixels on each side, 4 for CIFAR. mode: what the border is made of.
    """

    def __init__(self, padding: NonNegativeInt = 4, mode: Literal["zero", "reflect"] = "zero") -> None:
        self.padding, self.mode = padding, mode

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return the corner of the box in the padded image, top and left, each (N,) int64."""
        return {name: rng.integers(0, 2 * self.padding + 1) for name in ("top", "left")}

    def apply(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Return the boxes: (N, C, H, W). Raises DataError where the border is too wide to be reflected."""
        n, _, height, width = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise DataError(f"random_crop.padding {self.padding} cannot reflect {height} x {width} images; lower it")
        mode = "constant" if self.mode == "zero" else "reflect"
        padded = F.pad(images, [self.padding] * 4, mode=mode)
        sample = torch.arange(n, device=images.device)[:, None, None]
        row = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
        column = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]
        return padded.permute(0, 2, 3, 1)[sample, row, column].permute(0, 3, 1, 2).contiguous()


class HorizontalFlip(Operation):
    """Mirror left and right with probability `prob`."""

    changes_input = True

    def __init__(self, prob: UnitInterval = 0.5) -> None:
        self.prob = prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return which samples are mirrored, hit (N,) bool."""
        return {"hit": rng.bernoulli(self.prob)}

    def apply(self, images: Tensor, hit: Tensor) -> Tensor:
        """Return the images, some of them mirrored."""
        return torch.where(per_sample(hit), images.flip(-1), images)

    def compiled(self, images: Tensor, hit: Tensor) -> Tensor:
        """As `apply`, in place."""
        return compiled.flip_(images, hit)


class Rotation(Operation):
    """Rotate about the centre by an angle from [-degrees, degrees].

    degrees: largest angle, counter-clockwise and drawn uniformly. interpolation: how pixels are read between pixels.
    prob: share of samples that are rotated. fill: value of what was outside, 0 black, 1 white as paper.
    """

    def __init__(
        self,
        degrees: Degrees = 30.0,
        interpolation: Literal["nearest", "bilinear"] = "bilinear",
        prob: UnitInterval = 1.0,
        fill: UnitInterval = 0.0,
    ) -> None:
        self.degrees, self.interpolation, self.prob, self.fill = degrees, interpolation, prob, fill

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return hit (N,) bool and angle (N,) in degrees."""
        return {"hit": rng.bernoulli(self.prob), "angle": rng.uniform(-self.degrees, self.degrees)}

    def apply(self, images: Tensor, hit: Tensor, angle: Tensor) -> Tensor:
        """Return the images, some of them rotated."""
        return on_rows(images, hit, self._rotate, angle)

    def _rotate(self, images: Tensor, angle: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
        x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)[None, :]
        cos, sin = angle.deg2rad().cos()[:, None, None], angle.deg2rad().sin()[:, None, None]
        # Output pixel (x, y) about the centre is read at the point turned back by the angle (y points down).
        source = torch.stack([(cos * x - sin * y) / (0.5 * width), (sin * x + cos * y) / (0.5 * height)], dim=-1)
        # Outside, grid_sample reads zeros, which stand for the fill while it is subtracted.
        images = images - self.fill if self.fill else images
        rotated = F.grid_sample(images, source.to(images.dtype), mode=self.interpolation, align_corners=False)
        return rotated.add_(self.fill).clamp_(0, 1)


class QuarterTurns(Operation):
    """Rotate by 0, 90, 180 or 270 degrees, equally likely, without interpolation; for images that have no "up"."""

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return the number of counter-clockwise quarter turns, turns (N,) int64. Raises DataError if not square."""
        if height != width:
            raise DataError(f"quarter_turns needs square images, got {height} x {width}; crop them first")
        return {"turns": rng.integers(0, 4)}

    def apply(self, images: Tensor, turns: Tensor) -> Tensor:
        """Return the images turned."""
        turned = images
        for k in (1, 2, 3):
            turned = torch.rot90(turned, 1, dims=(-2, -1))
            images = torch.where(per_sample(turns == k), turned, images)
        return images


def _at_random(rng: SampleRng, room: Tensor) -> Tensor:
    """(N,) int64 uniform in [0, room], where every sample has its own room."""
    return (rng.uniform().double() * (room + 1)).long()
