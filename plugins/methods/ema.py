"""Moving averages of networks: the targets, teachers and key encoders of several methods."""

from __future__ import annotations

import math

import torch
from torch import nn


def momentum_at(progress: float, base: float) -> float:
    """tau = 1 - (1 - base) (cos(pi progress) + 1) / 2: base at 0, (1 + base) / 2 halfway, 1 at the end."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def move_average(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * online, parameters only; exact at momentum 0 and 1."""
    for average, source in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(source, 1 - momentum)
