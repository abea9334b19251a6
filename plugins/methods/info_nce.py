"""The contrastive objective with one right candidate per anchor: InfoNCE (van den Oord et al. 2018, arXiv:1807.03748).

Shared by the methods that contrast with candidates of their own making (a queue, the keys of a batch); who the
candidates are is theirs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(N, D), (M, D) of any scale -> (N, M) float32 cosines, also under autocast."""
    with torch.autocast(anchors.device.type, enabled=False):
        return F.normalize(anchors.float(), dim=1) @ F.normalize(candidates.float(), dim=1).T


def info_nce(similarity: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Mean of `-log softmax(similarity / temperature)` at each anchor's own candidate: log M where all are equal.

    similarity: (N, M) float32. own: (N,) int64 in [0, M).
    """
    return F.cross_entropy(similarity / temperature, own)


def information_bound(loss: Tensor, candidates: int) -> Tensor:
    """log N - L, in nats and without gradient: the mutual information that an InfoNCE loss L over N candidates proves.

    A lower bound of that between anchor and positive where the others are independent draws from all positives (van den
    Oord et al. 2018, section 2.3), which never exceeds log N. Candidates that come in pairs of views, from a queue or
    from a moving network are none, so there it is a number to watch: 0 for equal scores, and not to be compared between
    batch sizes. A higher one does not imply better features (Tschannen et al. 2020, arXiv:1907.13625).
    """
    return math.log(candidates) - loss.detach()


@torch.no_grad()
def contrast_figures(similarity: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Mean similarity of anchors to their own candidate, and share of them to whom no other comes as near.

    similarity: (N, M). own: (N,) int64. A tie is a miss, so that equal scores, which a collapse gives, score 0.
    """
    positive = similarity.gather(1, own[:, None])
    others = similarity.scatter(1, own[:, None], -torch.inf)
    return {
        "positive_similarity": positive.mean(),
        "contrastive_accuracy": (positive[:, 0] > others.amax(dim=1)).float().mean(),
    }
