"""Barlow Twins: the cross-correlation of two views should be the identity (Zbontar et al. 2021, arXiv:2103.03230).

No negatives: dimensions are compared, not images. Takes projections as they leave the expander, and standardises them
itself; knows nothing of views, encoders or processes.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from plugins.losses.pairs import as_pairs

EPSILON = 1e-5  # added to variances, as batch norm does, so that a constant dimension becomes 0


class BarlowTwins(nn.Module):
    """Barlow Twins: views agree in each dimension, and dimensions share nothing (Zbontar et al. 2021, equation 1).

    redundancy: weight of the terms off the diagonal, lambda; 0.005 in the paper for 8192 dimensions, any value from
        1 / D to that will do for 1024 and more.
    scale: factor on the whole, 1 in the paper; the loss is a sum over dimensions, far larger than others.

    loss(z_a, z_b) -> scalar: with C the (D, D) correlations over the batch of z_a's with z_b's dimensions,
    scale * (sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2). z_a, z_b: (N, D), N >= 2, of any floating dtype;
    row i of one is the sibling of row i of the other. Shift and scale of a dimension do not matter while its variance
    is well above 1e-5. The result is at least float32, also under autocast, and lies in
    [0, scale * D * (4 + redundancy * (D - 1))]; constant embeddings give scale * D. It needs batches of some size
    (128 and more): in small ones dimensions correlate by chance. Memory is O(N D + D^2). Raises ValueError where the
    two shapes differ, ConfigError for a single pair.

    >>> import torch
    >>> signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # two dimensions that are not correlated
    >>> round(BarlowTwins(redundancy=0.5, scale=1.0)(signs, signs).item(), 4)
    0.0
    >>> round(BarlowTwins(redundancy=0.5, scale=1.0)(signs, signs.flip(1)).item(), 3)  # C is 0, 1; 1, 0
    3.0
    """

    def __init__(self, redundancy: NonNegativeFloat = 0.005, scale: PositiveFloat = 0.1) -> None:
        super().__init__()
        self.redundancy = redundancy
        self.scale = scale

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Distance of the cross-correlation from the identity; z_a, z_b: (N, D) -> scalar."""
        with torch.autocast(z_a.device.type, enabled=False):
            correlation = cross_correlation(*as_pairs("BarlowTwins", z_a, z_b))
            agreement = correlation.diagonal()
            shared = correlation - torch.diag(agreement)
            return self.scale * ((1 - agreement).square().sum() + self.redundancy * shared.square().sum())

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"redundancy={self.redundancy}, scale={self.scale}"


def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Correlations over the batch of each dimension of z_a (rows) with each of z_b: (N, D), (N, D) -> (D, D)."""
    return _standardized(z_a).T @ _standardized(z_b) / len(z_a)


def _standardized(z: Tensor) -> Tensor:
    return (z - z.mean(dim=0)) * (z.var(dim=0, correction=0) + EPSILON).rsqrt()
