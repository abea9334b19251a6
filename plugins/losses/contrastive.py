"""The contrastive objective in general: pick the positives out of candidates by their score.

After van den Oord et al. 2018 (arXiv:1807.03748). Score, positives, negatives and what stands in the denominator are
settings; CPC, NT-Xent, DCL and SupCon are points among them (tests/unit/test_contrastive.py spells each out). Knows
neither views nor encoders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_core.tiled import Score, log_sum_exps_of_pairs
from plugins.losses.pairs import as_pairs


def contrastive_loss(
    scores: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    decoupled: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Minus the mean score of an anchor's positives, plus the log of the summed exponentials of its candidates.

    scores: (N, M) of N anchors and M candidates, temperature included. positives, negatives: (N, M) bool; what is in
    neither is no candidate, and without negatives all that is not positive is one. decoupled: only negatives are summed
    (DCL, Yeh et al. 2022, arXiv:2110.06848). weight: (N,) factors on the positives' term (DCLW), None for 1.
    Returns (N,), one loss per anchor; several positives are averaged outside of the logarithm (SupCon). An anchor
    without a positive gets 0.

    >>> import torch
    >>> equal = contrastive_loss(torch.zeros(2, 8), torch.eye(2, 8, dtype=torch.bool))
    >>> bool(torch.allclose(equal, torch.tensor(8.0).log()))
    True
    """
    negatives = ~positives if negatives is None else negatives
    summed = negatives if decoupled else negatives | positives
    total = scores.masked_fill(~summed, -torch.inf).logsumexp(dim=1)
    count = positives.sum(dim=1)
    pull = scores.masked_fill(~positives, 0.0).sum(dim=1) / count.clamp(min=1)
    pull = pull if weight is None else weight * pull
    return torch.where(count > 0, total - pull, torch.zeros_like(total))


class InfoNCE(nn.Module):
    """InfoNCE: find the other view among the other views of the batch, by any score (van den Oord et al. 2018, eq. 4).

    score: (N, D), (N, D) -> (N, N), a part of its own. symmetric: both views look for the other; false as in CPC, where
    the first is the context.

    loss(z_a, z_b) -> scalar: the mean of `-log softmax(score)` at the sibling. z_a, z_b: (N, D), N >= 2, of any scale.
    Equal scores give log(N), perfect ones 0. log(N) - loss is a lower bound of the mutual information of the two views
    where the batch was drawn independently, and never exceeds log(N). Raises ValueError where shapes differ,
    ConfigError for a single pair.
    """

    def __init__(self, score: Score, *, symmetric: bool = True) -> None:
        super().__init__()
        self.score, self.symmetric = score, symmetric

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Mean loss over the anchors; z_a, z_b: (N, D) -> scalar."""
        with torch.autocast(z_a.device.type, enabled=False):
            forth, back, own = log_sum_exps_of_pairs(*as_pairs("info_nce", z_a, z_b), self.score)
            return (((forth + back) / 2 if self.symmetric else forth) - own).mean()

    @staticmethod
    def candidates(pairs: int) -> int:
        """Among how many an anchor chooses: the other view of each image of the batch."""
        return pairs
