"""How likely two embeddings belong together: scores of anchors (N, D) against candidates (M, D).

The best score is the log of the density ratio p(candidate | anchor) / p(candidate), up to a term of the anchor alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn


class Dot(nn.Module):
    """The dot product a . b / temperature, unbounded.

    temperature: 1 leaves it as it is.
    """

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        return anchors @ candidates.T / self.temperature


class Cosine(nn.Module):
    """The cosine over a temperature (Chen et al. 2020, arXiv:2002.05709), in [-1, 1] / temperature.

    temperature: 0.1 on ImageNet, 0.5 on CIFAR-10 in the paper.
    """

    def __init__(self, temperature: PositiveFloat = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(N, D), (M, D) of any scale -> (N, M)."""
        return F.normalize(anchors, dim=1) @ F.normalize(candidates, dim=1).T / self.temperature


class Gaussian(nn.Module):
    """Minus the squared distance over twice a variance; on unit vectors the cosine with temperature sigma^2, shifted.

    sigma: the distance that makes a difference.
    """

    def __init__(self, sigma: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        # Not by cdist, whose gradient is undefined at distance 0.
        squares = anchors.square().sum(dim=1)[:, None] + candidates.square().sum(dim=1)
        return -(squares - 2 * anchors @ candidates.T) / (2 * self.sigma**2)


class Bilinear(nn.Module):
    """a^T W b with a learned W (CPC, van den Oord et al. 2018, arXiv:1807.03748, equation 3).

    dim: D, width of the embeddings: the method's out_dim. W starts as the identity over the root of D.
    """

    def __init__(self, dim: PositiveInt) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim) / dim**0.5)

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        return anchors @ self.weight @ candidates.T


class MLP(nn.Module):
    """A network on both embeddings and their product, for relations that no product of two vectors expresses.

    dim: D, width of the embeddings: the method's out_dim. hidden_dim: width of the two hidden layers. All N x M pairs
    pass through it, which limits the batch.
    """

    def __init__(self, dim: PositiveInt, *, hidden_dim: PositiveInt = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 1),
        )

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        pairs = torch.broadcast_tensors(anchors[:, None], candidates[None])
        return self.layers(torch.cat([*pairs, pairs[0] * pairs[1]], dim=-1))[..., 0]
