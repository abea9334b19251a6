"""The supervised contrastive loss: all images of a class attract each other (Khosla et al. 2020, arXiv:2004.11362).

Takes projections as they leave the head, and labels; knows nothing of views, encoders or processes.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from cl_core.tiled import log_sum_exp_among
from plugins.losses.pairs import as_pairs, itself, scaled


class SupCon(nn.Module):
    """SupCon: each of the 2N embeddings must find its sibling and all of its class (Khosla et al. 2020, equation 2).

    temperature: 0.1 in the paper. Its released code multiplies the loss by temperature / 0.07, this does not.

    loss(z_a, z_b, labels) -> scalar: the mean over all 2N anchors of the mean of `-log softmax(cosine / temperature)`
    over the anchor's positives, the softmax over the other 2N - 1. z_a, z_b: (N, D), N >= 2, of any scale and floating
    dtype; row i of one is the sibling of row i of the other. labels: (N,) integers of the images; positives are the
    sibling and whoever has the same label. An image of unknown class (a negative label), or alone of its class in the
    batch, keeps its sibling as its only positive, so no anchor is without one. Without labels that holds for all, and
    the loss is NT-Xent.

    The result is at least float32, also under autocast, and lies in [0, log(2N - 1) + 2 / temperature]; positives
    compete, so an anchor with P of them costs log(P) or more. Equal embeddings give log(2N - 1). Memory is O(N D).
    Raises ValueError where the shapes do not fit, ConfigError for a single pair.

    >>> import torch
    >>> classes = torch.eye(2)[[0, 0, 1, 1]]  # a class is one point, the other orthogonal: log(3 + 4 exp(-1 / 0.5))
    >>> round(SupCon(temperature=0.5)(classes, classes, torch.tensor([5, 5, 7, 7])).item(), 4)
    1.2645
    """

    def __init__(self, temperature: PositiveFloat = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z_a: Tensor, z_b: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean loss over the 2N anchors; z_a, z_b: (N, D), labels: (N,) -> scalar."""
        with torch.autocast(z_a.device.type, enabled=False):
            z = scaled(*as_pairs("SupCon", z_a, z_b), self.temperature)
            push = log_sum_exp_among(z, itself(z))  # (2N,)
            return (push - _mean_of_positives(z, _classes(labels, z_a).repeat(2))).mean()

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"temperature={self.temperature}"


def _mean_of_positives(z: Tensor, classes: Tensor) -> Tensor:
    """Mean dot product of each row with the others of its class: (2N, D), (2N,) -> (2N,)."""
    _, of, count = classes.unique(return_inverse=True, return_counts=True)
    # The sum of dot products is the dot product with the sum, which takes no matrix of who is of whose class.
    total = z.new_zeros(len(count), z.shape[1]).index_add(0, of, z)
    return (z * (total[of] - z)).sum(dim=1) / (count[of] - 1)


def _classes(labels: Tensor | None, z: Tensor) -> Tensor:
    """(N,) int64, where images of unknown class are each a class of their own."""
    alone = -1 - torch.arange(len(z), device=z.device)
    if labels is None:
        return alone
    if labels.shape != alone.shape:
        raise ValueError(f"SupCon needs one label for each of {len(z)} pairs, got labels {tuple(labels.shape)}")
    return torch.where(labels < 0, alone, labels)
