"""Small convolutional decoders, and the shapes of the maps that they start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cl_core.errors import ConfigError


@torch.no_grad()
def stage_shapes(encoder: nn.Module, image_size: int, in_channels: int = 3) -> dict[str, tuple[int, int]]:
    """{stage: (channels, side)} of an encoder's maps for square images; leaves the encoder as it was.

    Raises ConfigError where a stage is no map: nothing could be decoded from it.
    """
    training = encoder.training
    maps: dict[str, Tensor] = encoder.eval().stages(torch.zeros(1, in_channels, image_size, image_size))
    encoder.train(training)
    flat = [stage for stage, features in maps.items() if features.ndim != 4]
    if flat:
        raise ConfigError(
            f"the encoder's {', '.join(flat)} has no map to decode an image from; choose a convolutional one"
        )
    return {stage: (features.shape[1], features.shape[-1]) for stage, features in maps.items()}


def decoder(wide: int, side: int, out: int, out_side: int) -> nn.Sequential:
    """Convolutions that double a map's side up to `out_side`: (N, wide, h, h) -> (N, out, H, H), linear at the end.

    Enlarging by nearest neighbours before a convolution leaves no checkerboard, which transposed convolutions do.
    """
    doublings = max(0, math.ceil(math.log2(out_side / side)))
    layers: list[nn.Module] = []
    for k in range(doublings):
        layers += [nn.Upsample(size=min(side * 2 ** (k + 1), out_side)), *_block(wide, max(wide // 2, 16))]
        wide = max(wide // 2, 16)
    if not doublings:
        layers += [*_block(wide, wide), *([] if side == out_side else [nn.AdaptiveAvgPool2d(out_side)])]
    return nn.Sequential(*layers, nn.Conv2d(wide, out, 3, padding=1))


def _block(wide: int, narrow: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
