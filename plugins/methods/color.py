"""CIE Lab and its quantised colours, for methods that predict colour (Zhang et al. 2016, arXiv:1603.08511).

Which colours there are is counted, not copied: the paper's 313 bins are a table that ships with its code and holds
colours outside sRGB. Knows nothing of encoders or views.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.errors import ConfigError

COLORED = 5.0  # an image whose |a| and |b| never exceed this is grey, as in the authors' code

# sRGB primaries in XYZ under D65 (IEC 61966-2-1), each row divided by the white point so that greys have a = b = 0.
_PRIMARIES = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_TO_XYZ = [[weight / sum(row) for weight in row] for row in _PRIMARIES]
_FROM_XYZ: list[list[float]] = torch.tensor(_TO_XYZ, dtype=torch.float64).inverse().tolist()
_KNEE = 6 / 29  # below it, Lab's cube root is replaced by its tangent
_REACH = 110.0  # beyond the largest |a| and |b| of sRGB
_PIXELS_AT_ONCE = 1 << 16
_TIE = 2e-4  # in squared steps: colours that differ by rounding must not get other neighbours


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB (N, 3, H, W) in [0, 1] -> Lab: L in [0, 100], a in [-86.2, 98.3], b in [-107.9, 94.5], dtype and shape kept.

    Raises ConfigError for other than three channels.
    """
    if images.shape[1] != 3:
        raise ConfigError(
            f"images with {images.shape[1]} channel(s) have no colour to predict, RGB has 3; choose a source of colour "
            f"images, or a method that takes others"
        )
    return torch.stack(_lab_of_linear(*_linear(images).unbind(1)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab (N, 3, H, W) -> sRGB (N, 3, H, W) in [0, 1]; what lies outside sRGB is clipped in linear light."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    xyz = [_cube(value) for value in (y + a / 500, y, y - b / 200)]
    linear = torch.stack([_mixed(row, xyz) for row in _FROM_XYZ], dim=1).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.pow(1 / 2.4) - 0.055)


def normalized(lab: Tensor) -> Tensor:
    """Lab as networks take it: (N, 3, H, W) -> (L - 50) / 100 in [-0.5, 0.5], a / 110 and b / 110 in [-1, 1]."""
    lightness, ab = lab.split([1, 2], dim=1)
    return torch.cat([(lightness - 50) / 100, ab / _REACH], dim=1)


def denormalized(channels: Tensor) -> Tensor:
    """The inverse of `normalized`."""
    lightness, ab = channels.split([1, 2], dim=1)
    return torch.cat([lightness * 100 + 50, ab * _REACH], dim=1)


def strided(channels: Tensor, stride: int) -> Tensor:
    """Every stride-th pixel of (N, C, H, W), as in the authors' code: the mean of pixels would be greyer than they."""
    return channels[:, :, ::stride, ::stride]


def colored(ab: Tensor) -> Tensor:
    """Which images have a colour, |a| or |b| above 5 anywhere: (N, 2, h, w) -> (N,) bool."""
    return ab.abs().amax(dim=(1, 2, 3)) > COLORED


def require_color(ab: Tensor) -> None:
    """Raise ConfigError where none of the images (N, 2, h, w) has a colour."""
    if not colored(ab).any():
        raise ConfigError(
            f"none of the {len(ab)} sampled training images has a colour, |a| and |b| of Lab are at most {COLORED:g}; "
            f"choose a source of colour images, or a method that does not predict colour"
        )


def gamut_bins(step: float) -> Tensor:
    """Centres (a, b) on a grid that are the nearest one of some 8-bit sRGB colour: (Q, 2) float32, sorted by a, then b.

    step: distance of neighbours, in units of Lab. 10 gives Q = 261, 20 gives 77, 25 gives 51.
    """
    return _gamut_bins(float(step)).clone()


class ColorBins(nn.Module):
    """The quantised colours, how often the training images show each, and what that makes a pixel worth.

    step: distance of neighbouring bins in units of Lab; 10 in the paper. neighbors: bins that share a pixel's target;
    5 in the paper, 10 in its code. rebalance: the share lambda of the uniform distribution in the weights; 1/2 in the
    paper, 1 weighs all alike.

    The width sigma of soft targets is step / 2, as in the paper.

    centers: (Q, 2). joint: (Q, Q), the share of pixels by nearest bin (row) and by what their soft target puts on a bin
    (column); every bin alike until `observe`. Both are state.
    """

    centers: Tensor
    joint: Tensor

    def __init__(self, *, step: float, neighbors: int, rebalance: float) -> None:
        super().__init__()
        self.step, self.neighbors, self.rebalance = step, neighbors, rebalance
        centers = gamut_bins(step)
        self.register_buffer("centers", centers)
        self.register_buffer("joint", torch.eye(len(centers)) / len(centers))

    def __len__(self) -> int:
        return len(self.centers)

    @property
    def prior(self) -> Tensor:
        """The mean soft target, which is the distribution of colours smoothed like the targets: (Q,), sums to 1."""
        return self.joint.sum(dim=0)

    @property
    def weights(self) -> Tensor:
        """What a pixel of each bin is worth: (Q,), see `rebalancing_weights`."""
        return rebalancing_weights(self.prior, self.rebalance)

    @torch.no_grad()
    def observe(self, ab: Tensor) -> None:
        """Take the frequencies of colours (N, 2, h, w)."""
        total = torch.zeros_like(self.joint)
        pixels = ab.movedim(1, -1).reshape(-1, 2)
        for part in pixels.split(_PIXELS_AT_ONCE):
            soft = soft_targets(part, self.centers, self.neighbors, self.step / 2)
            nearest = F.one_hot(soft.argmax(dim=1), len(self)).to(soft)
            total += nearest.T @ soft
        self.joint.copy_(total / len(pixels))

    def encode(self, ab: Tensor) -> Tensor:
        """Soft targets: (N, 2, h, w) -> (N, Q, h, w), each pixel's sum to 1 and peak at the nearest bin."""
        soft = soft_targets(ab.movedim(1, -1).reshape(-1, 2), self.centers, self.neighbors, self.step / 2)
        return soft.reshape(len(ab), *ab.shape[2:], len(self)).movedim(-1, 1)

    def decode(self, logits: Tensor, temperature: float) -> Tensor:
        """Annealed mean: the mean bin under softmax(logits / temperature); (N, Q, h, w) -> ab (N, 2, h, w).

        Temperature 1 is the mean of the predicted distribution, towards 0 its mode; the paper takes 0.38.
        """
        return torch.einsum("nqhw,qc->nchw", (logits / temperature).softmax(dim=1), self.centers)

    def worth(self, soft: Tensor) -> Tensor:
        """The weight of each pixel, that of its nearest bin: (N, Q, h, w) -> (N, h, w)."""
        return self.weights[soft.argmax(dim=1)]

    def constant(self) -> dict[str, float]:
        """Weighted cross-entropy and accuracy, each of the constant that does best at it, on the colours observed."""
        pull = self.weights @ self.joint  # (Q,), the mean of weight times target
        loss = -torch.xlogy(pull, pull / pull.sum()).sum()
        return {"loss": float(loss), "accuracy": float(self.joint.sum(dim=1).max())}


def soft_targets(ab: Tensor, centers: Tensor, neighbors: int, sigma: float) -> Tensor:
    """Gaussian weights of the nearest bins, normalised: (P, 2), (Q, 2) -> (P, Q), at most `neighbors` above 0.

    Bins at equal distance get equal weight: where only some of them would be among the nearest, none is. Only the
    nearest bin itself is always in, the first of several.
    """
    distance = (ab[:, :1] - centers[:, 0]).square() + (ab[:, 1:] - centers[:, 1]).square()  # (P, Q)
    left_out = distance.topk(neighbors + 1, dim=1, largest=False).values[:, -1:]
    tolerance = _TIE * (2 * sigma) ** 2
    nearest = distance.argmin(dim=1, keepdim=True)
    kept = (distance < left_out - tolerance).scatter(1, nearest, True)
    # Relative to the nearest, or a narrow Gaussian far from every bin would be 0 / 0.
    relative = distance - distance.gather(1, nearest)
    weight = torch.where(kept, torch.exp(-relative / (2 * sigma**2)), 0.0)
    return weight / weight.sum(dim=1, keepdim=True)


def rebalancing_weights(prior: Tensor, uniform: float) -> Tensor:
    """1 / ((1 - uniform) prior + uniform / Q), scaled to a mean of 1 under the prior: (Q,) -> (Q,)."""
    weights = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weights / (prior * weights).sum()


@functools.cache
def _gamut_bins(step: float) -> Tensor:
    with torch.device("cpu"):  # whatever the default is where the first one asks
        return _nearest_hits(step)


def _nearest_hits(step: float) -> Tensor:
    # The six faces of the colour cube are enough: leaving the gamut at the (a, b) of any colour, towards the light or
    # the dark, one comes out through a face.
    reach = math.ceil(_REACH / step)
    hit = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.bool)
    levels = _linear(torch.arange(256, dtype=torch.float64) / 255)
    face = [levels[:, None].expand(256, 256), levels.expand(256, 256)]
    for channel, end in itertools.product(range(3), (0, -1)):
        _, a, b = _lab_of_linear(*face[:channel], levels[end], *face[channel:])
        hit[(a / step).round().long() + reach, (b / step).round().long() + reach] = True
    return (hit.nonzero() - reach).float() * step


def _linear(rgb: Tensor) -> Tensor:
    """sRGB's curve undone."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).pow(2.4))


def _lab_of_linear(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (_cube_root(_mixed(row, [red, green, blue])) for row in _TO_XYZ)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _mixed(weights: list[float], channels: list[Tensor]) -> Tensor:
    # A plain sum: a matrix product may round to 10 bits on a GPU and differ between batch sizes.
    return weights[0] * channels[0] + weights[1] * channels[1] + weights[2] * channels[2]


def _cube_root(t: Tensor) -> Tensor:
    return torch.where(t > _KNEE**3, t.clamp(min=_KNEE**3).pow(1 / 3), t / (3 * _KNEE**2) + 4 / 29)


def _cube(t: Tensor) -> Tensor:
    return torch.where(t > _KNEE, t.pow(3), 3 * _KNEE**2 * (t - 4 / 29))
