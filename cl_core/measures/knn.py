"""Weighted nearest neighbours on frozen features, protocol knn/instdisc-v1 (Wu et al. 2018, arXiv:1805.01978, 3.4).

Cosine similarity, weights exp(similarity / T), k = 200 and T = 0.1, a bank of training features computed under the
test transform. Takes features, returns scores; extracts nothing and touches no model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cl_core.errors import ConfigError, DataError

PROTOCOL = "knn/instdisc-v1"
_CHUNK_VALUES = 1 << 25  # similarities held at once: 128 MB in float32
_GROUP = 10  # columns that are first represented by their largest


def effective_k(k: int, bank_size: int) -> int:
    """The number of neighbours that a bank can give."""
    return min(k, bank_size)


def protocol_id(k: int, bank_size: int) -> str:
    """The protocol's id, which says so where k had to be reduced: "knn/instdisc-v1(k=120)"."""
    reduced = effective_k(k, bank_size)
    return PROTOCOL if reduced == k else f"{PROTOCOL}(k={reduced})"


@torch.no_grad()
def knn_predict(
    query: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int = 200, *, temperature: float = 0.1
) -> Tensor:
    """Class scores by weighted vote of the k nearest rows of the bank: (Q, num_classes) float32, rows sum to 1.

    query: (Q, D), bank: (M, D), any float type and scale, normalised inside; a row of zeros is at cosine 0 from all.
    labels: (M,) int64 in [0, num_classes), where any class may be absent. Q may be 0. Memory is O(2^25 + M * D),
    chunked over Q. Raises ConfigError unless 1 <= k <= M (see `effective_k`), DataError for a label out of range.
    """
    if not 1 <= k <= len(bank):
        raise ConfigError(f"knn.k {k} must lie between 1 and the {len(bank)} examples of the bank; use effective_k")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(
            f"the bank has labels from {int(labels.min())} to {int(labels.max())}, classes go from 0 to "
            f"{num_classes - 1}; leave unlabelled examples out"
        )
    bank = normalize(bank.float(), dim=1)
    rows = max(1, _CHUNK_VALUES // len(bank))
    # One place for all chunks: fresh memory would have to be cleared, which takes as long as the search.
    place = bank.new_empty(min(rows, max(1, len(query))), len(bank))
    votes = []
    for chunk in query.split(rows):
        values = torch.mm(normalize(chunk.float(), dim=1), bank.T, out=place[: len(chunk)])
        similarity, neighbours = _largest(values, k)
        # A softmax: the common factor per query leaves the vote as it is and keeps small temperatures from overflowing.
        weights = (similarity / temperature).softmax(dim=1)
        votes.append(weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[neighbours], weights))
    return torch.cat(votes)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """topk(k, dim=1) of (Q, M), the same values; of equal ones at the border others may be picked.

    Columns are taken together in groups. The k groups of largest maximum hold the k largest values: each of any other
    group is at most as large as those k maxima. So the search runs over the maxima and then over k groups only.
    """
    groups = values.shape[1] // _GROUP
    if groups < 2 * k:
        return values.topk(k, dim=1)
    # Columns i, i + groups, i + 2 * groups ... form a group: maxima are then taken along contiguous memory.
    parted = values[:, : groups * _GROUP].view(len(values), _GROUP, groups)
    best = parted.amax(dim=1).topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(_GROUP, device=values.device)[:, None] * groups
    members = (best[:, None] + offsets).flatten(1)
    rest = torch.arange(groups * _GROUP, values.shape[1], device=values.device).expand(len(values), -1)
    candidates = torch.cat([members, rest], dim=1)
    found, places = values.gather(1, candidates).topk(k, dim=1)
    return found, candidates.gather(1, places)
