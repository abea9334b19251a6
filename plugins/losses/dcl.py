"""Decoupled contrastive losses: NT-Xent without the sibling in the denominator (Yeh et al. 2022, arXiv:2110.06848).

In NT-Xent an easy positive shrinks the gradient of the negatives and the other way round, the more so the smaller the
batch. Takes projections as they leave the head; knows nothing of views, encoders or processes.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from cl_core.tiled import log_sum_exp_among
from plugins.losses.pairs import as_pairs, same_image, scaled


class DCL(nn.Module):
    """DCL: pull of the sibling and push of the other images as two terms (Yeh et al. 2022).

    temperature: 0.1 or 0.07 in the paper.

    loss(z_a, z_b) -> scalar: the mean over all 2N anchors of `log sum exp(cosine / temperature)` over the 2N - 2
    embeddings of other images, minus the sibling's `cosine / temperature`. z_a, z_b: (N, D), N >= 2, of any scale and
    floating dtype; row i of one is the sibling of row i of the other. The result is at least float32, also under
    autocast, and lies within 2 / temperature of log(2N - 2), the value of equal embeddings: it can be negative. An
    anchor's NT-Xent is the softplus of its DCL. Memory is O(N D). Raises ValueError where the two shapes differ,
    ConfigError for a single pair, which has nothing to push.

    >>> import torch
    >>> apart = torch.eye(4)  # siblings equal, everything else orthogonal: log(6) - 1 / 0.5
    >>> round(DCL(temperature=0.5)(apart, apart).item(), 4)
    -0.2082
    """

    def __init__(self, temperature: PositiveFloat = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Mean loss over the 2N anchors; z_a, z_b: (N, D) -> scalar."""
        with torch.autocast(z_a.device.type, enabled=False):
            z_a, z_b = as_pairs(type(self).__name__, z_a, z_b)
            z = scaled(z_a, z_b, self.temperature)
            push = log_sum_exp_among(z, same_image(z))  # (2N,)
            pull = (z[: len(z_a)] * z[len(z_a) :]).sum(dim=1)  # (N,), of both anchors of a pair
            return push.mean() - (self.weights(pull.detach() * self.temperature) * pull).mean()

    def weights(self, positive: Tensor) -> Tensor:
        """Of each pair's pull, mean 1; positive: (N,) cosines of siblings without gradient -> (N,)."""
        return torch.ones_like(positive)

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"temperature={self.temperature}"


class DCLW(DCL):
    """DCLW: DCL that pulls harder where siblings are still far apart (Yeh et al. 2022).

    temperature: 0.1 or 0.07 in the paper. sigma: spread of the von Mises-Fisher weights; 0.5 in the paper, larger ones
        come closer to DCL.

    loss(z_a, z_b) -> scalar, as DCL, with the pull of pair i times `2 - N softmax(cosine / sigma)_i` over the batch's
    N pairs. These weights take no gradient, have mean 1 and lie in (2 - N, 2): very similar siblings may be pushed
    apart. The result lies in [log(2N - 2) - 2 / temperature, log(2N - 2) + 4 / temperature]; it equals DCL where all
    siblings are equally similar. Raises as DCL does.

    >>> import torch
    >>> apart = torch.eye(4)  # all siblings equally similar: as DCL
    >>> round(DCLW(temperature=0.5)(apart, apart).item(), 4)
    -0.2082
    """

    def __init__(self, temperature: PositiveFloat = 0.1, sigma: PositiveFloat = 0.5) -> None:
        super().__init__(temperature)
        self.sigma = sigma

    def weights(self, positive: Tensor) -> Tensor:
        """2 - N softmax(positive / sigma); positive: (N,) cosines of siblings without gradient -> (N,)."""
        return 2 - len(positive) * (positive / self.sigma).softmax(dim=0)

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"{super().extra_repr()}, sigma={self.sigma}"
