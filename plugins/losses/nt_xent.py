"""The normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, arXiv:2002.05709, equation 1).

Takes projections as they leave the head; knows nothing of views, encoders or processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from cl_core.tiled import log_sum_exp_among
from plugins.losses.pairs import at_least_float32, same_image, scaled

EXACT = 40  # from here on softplus is its argument, in float64 too


class NTXent(nn.Module):
    """NT-Xent: each of the 2N embeddings must find its sibling among the other 2N - 1 (SimCLR, Algorithm 1).

    temperature: SimCLR uses 0.1 on ImageNet and 0.5 on CIFAR-10.

    loss(z_a, z_b) -> scalar: the mean over all 2N anchors of `-log softmax(cosine / temperature)` at the sibling.
    z_a, z_b: (N, D) of any scale and floating dtype; row i of one is the sibling of row i of the other. The result is
    at least float32, also under autocast, and lies in [0, log(2N - 1) + 2 / temperature]; equal embeddings give
    log(2N - 1), a single pair gives 0. The authors' released code returns twice this value. Memory is O(N D).
    Raises ValueError where the two shapes differ.

    >>> import torch
    >>> apart = torch.eye(4)  # siblings equal, everything else orthogonal: log(1 + 6 exp(-1 / 0.5))
    >>> round(NTXent(temperature=0.5)(apart, apart).item(), 4)
    0.5944
    """

    def __init__(self, temperature: PositiveFloat = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Mean loss over the 2N anchors; z_a, z_b: (N, D) -> scalar."""
        if z_a.shape != z_b.shape:
            raise ValueError(f"nt_xent needs two embeddings of one shape, got {tuple(z_a.shape)}, {tuple(z_b.shape)}")
        # Cosines in bfloat16 have two digits, and exp(cosine / temperature) magnifies what they lose.
        with torch.autocast(z_a.device.type, enabled=False):
            z = scaled(at_least_float32(z_a), at_least_float32(z_b), self.temperature)
            others = log_sum_exp_among(z, same_image(z))  # (2N,)
            sibling = (z * z.roll(len(z_a), dims=0)).sum(dim=1)
            # -log(exp(sibling) / (exp(sibling) + exp(others))): exact and not negative, however well siblings agree.
            return F.softplus(others - sibling, threshold=EXACT).mean()

    @staticmethod
    def candidates(pairs: int) -> int:
        """Among how many an anchor chooses: all embeddings but itself."""
        return 2 * pairs - 1

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"temperature={self.temperature}"
