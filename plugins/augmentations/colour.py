"""Augmentations that change colours and leave pixels where they are.

Each agrees with torchvision's functional operation under the same parameters. Grey images (1 channel) pass saturation,
hue and grayscale unchanged, as in torchvision; other channel counts than 1 and 3 are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import NonNegative, UnitInterval
from plugins.augmentations import compiled
from plugins.augmentations.operation import Operation, check_channels, on_rows, on_rows_, per_sample

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


class ColorJitter(Operation):
    """Change brightness, contrast, saturation and hue in random order (Chen et al. 2020, arXiv:2002.05709, appendix A).

    brightness, contrast, saturation: with s = option * strength, the factor is uniform in [max(0, 1 - s), 1 + s].
    hue: the shift is uniform in [-s, s] of a full turn, s <= 0.5. prob: share of samples that are changed at all.
    Every step is clipped to [0, 1].
    """

    changes_input = True

    def __init__(
        self,
        *,
        brightness: NonNegative = 0.8,
        contrast: NonNegative = 0.8,
        saturation: NonNegative = 0.8,
        hue: NonNegative = 0.2,
        strength: NonNegative = 1.0,
        prob: UnitInterval = 0.8,
    ) -> None:
        if hue * strength > 0.5:
            raise ConfigError(
                f"color_jitter.hue {hue:g} times strength {strength:g} is more than half a turn; "
                f"use a strength of at most {0.5 / hue:g}"
            )
        self.spreads = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self.spreads = {name: spread * strength for name, spread in self.spreads.items()}
        self.hue, self.prob = hue * strength, prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return hit (N,) bool, order (N, 4) of 0 brightness .. 3 hue, three factors and the hue shift, each (N,)."""
        hit, order = rng.bernoulli(self.prob), rng.permutation(4)
        factors = {name: rng.uniform(max(0.0, 1 - spread), 1 + spread) for name, spread in self.spreads.items()}
        return {"hit": hit, "order": order, **factors, "hue": rng.uniform(-self.hue, self.hue)}

    def apply(
        self,
        images: Tensor,
        *,
        hit: Tensor,
        order: Tensor,
        brightness: Tensor,
        contrast: Tensor,
        saturation: Tensor,
        hue: Tensor,
    ) -> Tensor:
        """Return the images, those of `hit` changed."""
        check_channels("color_jitter", images)
        # Hue has no blend factor: 1 leaves the sample as it is until its turn below.
        factors = torch.stack([brightness, contrast, saturation, torch.ones_like(hue)], dim=1)
        factors = torch.where(hit[:, None], factors, 1.0)
        # One copy, then in place: fresh memory for every step costs more than the arithmetic.
        jittered = images.clone(memory_format=torch.contiguous_format)
        for step in order.unbind(dim=1):
            _blend_(jittered, step, factors.gather(1, step[:, None])[:, 0])
            if self.hue and images.shape[1] == 3:
                on_rows_(jittered, hit & (step == _HUE), _shift_hue, hue)
        return jittered

    def compiled(self, images: Tensor, hit: Tensor, order: Tensor, **factors: Tensor) -> Tensor:
        """As `apply`, in place; the factors come in the order of their steps."""
        check_channels("color_jitter", images)
        return compiled.jitter_(images, hit, order, torch.stack(list(factors.values()), dim=1))


class Grayscale(Operation):
    """Replace colours by their luma (ITU-R 601) with probability `prob`; the number of channels stays."""

    changes_input = True

    def __init__(self, prob: UnitInterval = 0.2) -> None:
        self.prob = prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return which samples lose their colour, hit (N,) bool."""
        return {"hit": rng.bernoulli(self.prob)}

    def apply(self, images: Tensor, hit: Tensor) -> Tensor:
        """Return the images, some of them grey."""
        check_channels("grayscale", images)
        return on_rows(images, hit, lambda rows: _luma(rows).expand_as(rows))

    def compiled(self, images: Tensor, hit: Tensor) -> Tensor:
        """As `apply`, in place."""
        check_channels("grayscale", images)
        return compiled.gray_(images, hit) if images.shape[1] == 3 else images


class Solarize(Operation):
    """Invert bright pixels with probability `prob` (Grill et al. 2020, arXiv:2006.07733, appendix B).

    threshold: the darkest value that is inverted.
    """

    def __init__(self, threshold: UnitInterval = 0.5, prob: UnitInterval = 0.2) -> None:
        self.threshold, self.prob = threshold, prob

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return which samples are solarised, hit (N,) bool."""
        return {"hit": rng.bernoulli(self.prob)}

    def apply(self, images: Tensor, hit: Tensor) -> Tensor:
        """Return the images, some of them solarised."""
        return on_rows(images, hit, self._invert_bright)

    def _invert_bright(self, images: Tensor) -> Tensor:
        # bright + (1 - 2 bright) x is exactly 1 - x or x; torch.where on mixed masks is 10 times slower on a CPU.
        bright = torch.ge(images, self.threshold, out=torch.empty_like(images))
        return (1 - 2 * bright).mul_(images).add_(bright)


def _luma(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, 1, H, W), with torchvision's weights."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _blend_(images: Tensor, step: Tensor, factor: Tensor) -> None:
    """In place, factor * image + (1 - factor) * target: black (brightness), mean luma (contrast), luma (saturation).

    step: (N,) which of the three it is for each sample; with factor 1 it does not matter. A grey image's own luma is
    itself, so saturation leaves it alone.
    """
    luma, share = _luma(images), per_sample(1 - factor)
    mean = luma.mean(dim=(1, 2, 3), keepdim=True)
    target = luma * (share * per_sample(step == _SATURATION)) + mean * (share * per_sample(step == _CONTRAST))
    images.mul_(per_sample(factor)).add_(target).clamp_(0, 1)


def _shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB images by `shift` (N,) of a full turn; value and saturation of HSV stay.

    Hue runs round a hexagon in six unit steps. Written with masks as numbers instead of torch.where or aminmax, which
    are 10 times slower on a CPU.
    """
    red, green, blue = images.unbind(dim=1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    is_red = torch.eq(red, high, out=torch.empty_like(high))
    is_green = torch.eq(green, high, out=torch.empty_like(high)).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    slope = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hexagon = slope.div_(chroma.clamp(min=1e-12)).add_(is_green, alpha=2).add_(is_blue, alpha=4)  # -1 .. 5
    turned = hexagon.div_(6).add_(1 + shift[:, None, None])
    turned = turned.sub_(turned.floor()).mul_(6)  # 0 .. 6
    shares = ((turned - 3).abs_().sub_(1), 2 - (turned - 2).abs_(), 2 - (turned - 4).abs_())
    return torch.stack([torch.addcmul(low, chroma, share.clamp_(0, 1)) for share in shares], dim=1).clamp_(0, 1)
