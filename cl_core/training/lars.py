"""LARS as SimCLR and BYOL use it, on top of timm's.

A module of its own because importing timm takes a second or two, and only this optimiser needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.lars import Lars


class LARS(Lars):
    """g' = g + decay w; v <- m v + r g'; w <- w - lr v, with r = trust_coefficient |w| / |g'|.

    r is 1 where a norm is 0 or the group does not adapt (You et al. 2017, arXiv:1708.03888; momentum as in the code of
    BYOL). timm alone divides by |g| + decay |w|, and neither decays nor adapts a group unless it does both. So the
    decay is added to the gradient before timm sees it, and timm's `always_adapt` says whether a group adapts.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, trust_coefficient: float) -> None:
        """groups: each with `params`, `decay` (a factor) and `always_adapt` (bool)."""
        super().__init__(groups, lr=lr, momentum=momentum, trust_coeff=trust_coefficient, eps=0.0)
        self.register_step_pre_hook(_add_decay)


@torch.no_grad()
def _add_decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Change `.grad` in place; the loop zeroes the gradients before the next backward pass."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and group["decay"]:
                parameter.grad.add_(parameter, alpha=group["decay"])
