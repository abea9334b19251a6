"""The contrastive objective with one right candidate per anchor: InfoNCE (van den Oord et al. 2018, arXiv:1807.03748).

Shared by the methods that contrast with candidates of their own making (a queue, the keys of a batch); who the
candidates are is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.tiled import log_sum_exp

MAX_ANCHORS = 1024
ANCHORS_AT_ONCE = 128  # whose similarities with all candidates are in memory


def cosines(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(N, D), (M, D) of any scale -> (N, M) float32 cosines, also under autocast."""
    with torch.autocast(anchors.device.type, enabled=False):
        return F.normalize(anchors.float(), dim=1) @ F.normalize(candidates.float(), dim=1).T


def info_nce(similarity: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Mean of `-log softmax(similarity / temperature)` at each anchor's own candidate: log M where all are equal.

    similarity: (N, M) float32. own: (N,) int64 in [0, M).
    """
    return F.cross_entropy(similarity / temperature, own)


def paired_info_nce(
    directions: Sequence[tuple[Tensor, Tensor]], temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`info_nce` of cosines where the candidate of row i is row i, averaged over directions, in memory O(N D).

    directions: anchors and candidates, each (N, D) of any scale. Returns the loss and its figures: those of
    `contrast_figures`, the accuracy of at most MAX_ANCHORS rows per direction, and `information_bound`.
    """
    losses, figures = [], []
    for anchors, candidates in directions:
        with torch.autocast(anchors.device.type, enabled=False):
            a, c = (F.normalize(z.float(), dim=1) for z in (anchors, candidates))
            own = (a * c).sum(dim=1)
            losses.append((log_sum_exp(a / temperature, c) - own / temperature).mean())
        figures.append([own.detach().mean(), _accuracy(a, c)])
    loss = torch.stack(losses).mean()
    positive, accuracy = (torch.stack(values).mean() for values in zip(*figures, strict=True))
    bound = information_bound(loss, len(directions[0][1]))
    return loss, {"positive_similarity": positive, "contrastive_accuracy": accuracy, "information_bound": bound}


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
    return {
        "positive_similarity": similarity.gather(1, own[:, None]).mean(),
        "contrastive_accuracy": _told(similarity, own).float().mean(),
    }


def _told(similarity: Tensor, own: Tensor) -> Tensor:
    """Whether no other candidate comes as near to an anchor as its own: (N, M), (N,) -> (N,) bool."""
    others = similarity.scatter(1, own[:, None], -torch.inf)
    return similarity.gather(1, own[:, None])[:, 0] > others.amax(dim=1)


@torch.no_grad()
def _accuracy(anchors: Tensor, candidates: Tensor) -> Tensor:
    """The accuracy of `contrast_figures` of some rows, in parts; unit vectors (N, D)."""
    rows = spread_rows(len(anchors), anchors.device).split(ANCHORS_AT_ONCE)
    return torch.cat([_told(cosines(anchors[part], candidates), part) for part in rows]).float().mean()


def spread_rows(count: int, device: torch.device) -> Tensor:
    """At most MAX_ANCHORS of the rows of a batch, evenly spread: what figures that are only logged look at."""
    return torch.arange(0, count, -(-count // MAX_ANCHORS), device=device)
