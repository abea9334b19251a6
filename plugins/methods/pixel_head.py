"""A small decoder that answers a question about every pixel from an encoder's last map."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.errors import ConfigError
from cl_core.types import Encoder


class PixelHead(nn.Module):
    """Enlarge, 3x3 convolution, batch norm, ReLU, 1x1 convolution: (N, in_dim, h, w) -> (N, out_dim, *size).

    Enlarging by nearest pixels and then convolving leaves no checkerboard, as transposed convolutions do (Odena et al.
    2016, "Deconvolution and checkerboard artifacts"), and has a gradient that is the same bits every time on a GPU.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(in_dim, hidden_dim, 3, padding=1, bias=False), nn.BatchNorm2d(hidden_dim), nn.ReLU(inplace=True)
        )
        self.answer = nn.Conv2d(hidden_dim, out_dim, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """features: (N, in_dim, h, w) of any resolution -> (N, out_dim, size[0], size[1])."""
        return self.answer(self.convolve(F.interpolate(features, size=tuple(size), mode="nearest")))


def last_map(encoder: Encoder, images: Tensor) -> Tensor:
    """The encoder's last stage: (N, C, H, W) -> (N, out_dim, h, w). Raises ConfigError where it is not a map."""
    name, features = list(encoder.stages(images).items())[-1]
    if features.ndim != 4:
        raise ConfigError(
            f"the last stage of the encoder, {name}, has shape {tuple(features.shape)}, and every pixel needs an "
            f"answer from a map (N, C, H, W); choose an encoder that gives maps, such as resnet8 or resnet20"
        )
    return features
