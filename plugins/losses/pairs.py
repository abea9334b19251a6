"""What losses on pairs of embeddings share: what they ask of the two, and the cosines between all of them.

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


def cosines(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Of all 2N embeddings with each other, the rows of z_a first: (2N, 2N) in [-1, 1]; zero vectors have cosine 0."""
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    return z @ z.T


def at_least_float32(z: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, everything else as it is."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
