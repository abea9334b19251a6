"""How healthy features are where no image has a label: do views of an image find each other, how much room is filled?

Takes features, returns figures; makes no views and touches no model. Comparable between encoders of one width only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cl_core.measures.diagnostics import effective_rank


@torch.no_grad()
def self_match(first: Tensor, second: Tensor) -> float:
    """Share of images whose nearest neighbour among all images' second views is their own second view, in [0, 1].

    first, second: (N, D) features of two views of the same N >= 1 images, any float type and scale; cosine. 1/N is
    chance, and what features get that are all equal. The self-consistency of CLID (Lu et al. 2023), with k = 1.
    """
    similarity = normalize(first.double(), dim=1) @ normalize(second.double(), dim=1).T  # (N, N)
    own = torch.arange(len(first), device=first.device)
    return int((similarity.argmax(dim=1) == own).sum()) / len(first)


@torch.no_grad()
def health_figures(first: Tensor, second: Tensor) -> dict[str, float]:
    """`self_match` of two views (N, D) each, and `rankme`, the effective rank of the first view's features.

    rankme: exp of the entropy of the normalised singular values, in [1, min(N, D)], of features as they are, neither
    centred nor normalised (RankMe, Garrido et al. 2023, arXiv:2210.02885, equation 1).
    """
    return {"self_match": self_match(first, second), "rankme": effective_rank(first)}
