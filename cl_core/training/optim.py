"""Optimisers by name and the learning-rate schedule.

Knows parameter groups, not methods. Of all this only the optimiser's own state belongs in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cl_core.config import OptimizerConfig, ScheduleConfig
from cl_core.errors import ConfigError
from cl_core.types import ParamGroup


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step, before a group's multiplier.

    peak_lr: after the scaling rule; the number the optimiser sees. final_share: what is left of it at the end.
    """

    peak_lr: float
    warmup_steps: int
    total_steps: int
    final_share: float = 0.0

    @classmethod
    def of(cls, config: ScheduleConfig, peak_lr: float, steps_per_epoch: int) -> Schedule:
        """The schedule in steps of a configuration in epochs."""
        return cls(
            peak_lr=peak_lr,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=config.epochs * steps_per_epoch,
            final_share=config.final_lr,
        )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983). step: from 0. Pure.

        The warm-up starts above zero (a step at rate 0 would be wasted) and reaches the peak at step `warmup_steps`.
        """
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / (self.warmup_steps + 1)
        done = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1.0)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.peak_lr * (self.final_share + (1 - self.final_share) * cosine)


def build_optimizer(groups: Sequence[ParamGroup], config: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """The optimiser over a method's parameter groups, at its peak learning rate for this batch size.

    Raises ConfigError where there is nothing to train or the options exclude each other.
    """
    groups = [group for group in groups if group.params]
    if not groups:
        raise ConfigError("the method has no trainable parameter; choose an encoder or method with weights")
    if config.nesterov and config.momentum == 0:
        raise ConfigError("optimizer.nesterov: true needs optimizer.momentum above 0; set momentum: 0.9")
    lr = config.peak_lr(batch_size)
    if config.name == "lars":
        from cl_core.training.lars import LARS  # timm takes a second or two to import

        tensors = [_group(group, decay=config.weight_decay * group.decay, always_adapt=group.adapt) for group in groups]
        return LARS(tensors, lr=lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient)
    tensors = [_group(group, weight_decay=config.weight_decay * group.decay) for group in groups]
    if config.name == "adamw":
        return torch.optim.AdamW(tensors, lr=lr, betas=config.betas)
    return torch.optim.SGD(tensors, lr=lr, momentum=config.momentum, nesterov=config.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate times its own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def _group(group: ParamGroup, **options: float | bool) -> dict[str, Any]:
    return {"params": group.params, "lr_mult": group.lr_mult, **options}
