"""How much the assignment of images to prototypes says: what collapse leaves at nothing, whichever way it happens."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_core.distributed import average


@torch.no_grad()
def assignment_information(shares: Tensor) -> Tensor:
    """Nats that an image's assignment tells about the image: the entropy of the mean less the mean of the entropies.

    shares: (N, K), rows sum to 1. Between 0 and log(min(N, K)): 0 where all rows are alike, be it that all images fall
    to one prototype or that each is spread evenly over all; the most where every image is certain of one and all of
    them are used. A perplexity sees only the first of the two ways to collapse, an entropy of rows only the second.
    """
    mean_of_entropies = average(torch.special.entr(shares).sum(dim=1).mean())
    return (torch.special.entr(average(shares.mean(dim=0))).sum() - mean_of_entropies).clamp(min=0)
