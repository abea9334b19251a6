"""VICReg: views agree, dimensions keep a variance and do not covary (Bardes et al. 2022, arXiv:2105.04906).

No negatives and no normalisation: what keeps a view from collapsing is asked of each view alone. Takes projections as
they leave the expander; knows nothing of views, encoders or processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from plugins.losses.pairs import as_pairs

EPSILON = 1e-4  # added to variances: the root has a gradient at 0


class VICReg(nn.Module):
    """VICReg: invariance, variance and covariance of two views (Bardes et al. 2022, equations 1 to 6).

    invariance, variance, covariance: weights of the three terms; 25, 25 and 1 in the paper.

    loss(z_a, z_b) -> scalar: invariance * mean of (z_a - z_b)^2 over batch and dimensions
    + variance * mean of max(0, 1 - sqrt(var + 1e-4)) over the dimensions of both views
    + covariance * sum over both views of sum_{i != j} cov_ij^2 / D, with var and cov of the batch, unbiased.
    z_a, z_b: (N, D), N >= 2, of any floating dtype; row i of one is the sibling of row i of the other. The result is at
    least float32, also under autocast, and not negative; 0 asks for equal views of variance 1 or more without
    covariance. Constant embeddings that agree give 0.99 * variance. Memory is O(N D + D^2). Raises ValueError where the
    two shapes differ, ConfigError for a single pair.

    >>> import torch
    >>> constant = torch.ones(8, 4)
    >>> round(VICReg()(constant, constant).item(), 4)
    24.75
    """

    def __init__(
        self,
        invariance: NonNegativeFloat = 25.0,
        variance: NonNegativeFloat = 25.0,
        covariance: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Weighted sum of the three terms; z_a, z_b: (N, D) -> scalar."""
        with torch.autocast(z_a.device.type, enabled=False):
            z_a, z_b = as_pairs("VICReg", z_a, z_b)
            return (
                self.invariance * F.mse_loss(z_a, z_b)
                # The mean over the views, not their sum: both are in use, and differ by the factor 2.
                + self.variance * (variance_term(z_a) + variance_term(z_b)) / 2
                + self.covariance * (covariance_term(z_a) + covariance_term(z_b))
            )

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"invariance={self.invariance}, variance={self.variance}, covariance={self.covariance}"


def variance_term(z: Tensor) -> Tensor:
    """How far standard deviations stay below 1, on average over dimensions: (N, D) -> scalar in [0, 0.99]."""
    return F.relu(1 - (z.var(dim=0) + EPSILON).sqrt()).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions over D: (N, D) -> scalar, 0 or more."""
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (len(z) - 1)  # (D, D)
    return (covariance - torch.diag(covariance.diagonal())).square().sum() / z.shape[1]
