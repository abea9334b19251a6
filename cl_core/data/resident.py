"""Whether a split's pixels lie on the GPU that trains: where they fit, a batch is gathered there and none is sent.

The batches are the same bits. An encoded store has no pixels to keep, and on a CPU they are where they should be.
"""

from __future__ import annotations

import torch

from cl_core.data.store import Split

SHARE = 0.25  # of the free memory that pixels may take: weights, activations and views need the rest


def near(split: Split, device: torch.device) -> Split:
    """The split itself, or, for a CUDA device that has room for it, the same with its pixels there."""
    if device.type != "cuda" or split.is_encoded:
        return split
    free, _ = torch.cuda.mem_get_info(device)
    return split.on(device) if fits(split, free) else split


def fits(split: Split, free: int) -> bool:
    """Whether the pixels leave enough of `free` bytes to training."""
    return len(split) * split.image_size**2 * split.channels <= SHARE * free
