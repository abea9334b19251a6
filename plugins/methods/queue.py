"""A first-in, first-out memory of unit vectors: MoCo's negatives, NNCLR's neighbours, what balances SwAV's codes.

Holds vectors and counts what came in; knows no loss and no encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last `size` vectors that were pushed, in a ring.

    vectors: (size, dim) float32 of unit length. They start as random unit vectors, drawn from torch's global generator
        as weights are, and are replaced from row 0 on.
    pushed: () int64, how many vectors have come in. With `vectors` it is all the state there is, both are buffers.
    """

    vectors: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def pointer(self) -> int:
        """The row that is replaced next, which holds the oldest vector."""
        return int(self.pushed) % len(self.vectors)

    @property
    def is_full(self) -> bool:
        """Whether all vectors of the random start have been replaced."""
        return int(self.pushed) >= len(self.vectors)

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Replace the oldest by these, normalised; (N, dim) of any scale and N. Of more than `size` the last remain."""
        size = len(self.vectors)
        places = (self.pushed + torch.arange(len(vectors), device=self.pushed.device)) % size
        self.vectors.index_copy_(0, places[-size:], F.normalize(vectors[-size:].float(), dim=1))
        self.pushed += len(vectors)
