"""What losses on pairs of embeddings share: what they ask of the two, and the vectors they compare.

Row i of one embedding is the sibling of row i of the other. Computes no loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.errors import ConfigError


def as_pairs(loss: str, z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
    """The two embeddings (N, D), N >= 2, in float32 or better: half precision loses what a loss magnifies.

    loss: its name, for the messages. Raises ValueError where the shapes differ, ConfigError for a single pair.
    """
    if z_a.shape != z_b.shape:
        raise ValueError(f"{loss} needs two embeddings of one shape, got {tuple(z_a.shape)}, {tuple(z_b.shape)}")
    if len(z_a) < 2:
        raise ConfigError(f"{loss} needs more than one image and got a batch of {len(z_a)}; raise train.batch_size")
    return at_least_float32(z_a), at_least_float32(z_b)


def scaled(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """All 2N embeddings, those of z_a first, of one length: dot products are cosines over the temperature, (2N, D).

    Zero vectors stay zero.
    """
    return F.normalize(torch.cat([z_a, z_b]), dim=1) / temperature**0.5


def itself(z: Tensor) -> Tensor:
    """Its own row, for each of the 2N embeddings that `scaled` gives: (2N, 1) int64."""
    return torch.arange(len(z), device=z.device)[:, None]


def same_image(z: Tensor) -> Tensor:
    """Its own row and that of its sibling, for each of the 2N embeddings that `scaled` gives: (2N, 2) int64."""
    return torch.cat([itself(z), itself(z).roll(len(z) // 2, dims=0)], dim=1)


def at_least_float32(z: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, everything else as it is."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
