"""Optimisers by name and the learning-rate schedule.

Knows parameter groups, not methods. Of all this only the optimiser's own state belongs in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from cl_core.config import OptimizerConfig, ScheduleConfig
from cl_core.errors import ConfigError
from cl_core.types import ParamGroup


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step, before a group's multiplier.

    peak_lr: after the scaling rule; the number the optimiser sees. final_share: what is left of it at the end.
    restarts: shares of the run at which the cosine starts anew, for methods that train in phases.
    """

    peak_lr: float
    warmup_steps: int
    total_steps: int
    final_share: float = 0.0
    restarts: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, config: ScheduleConfig, peak_lr: float, steps_per_epoch: int, restarts: tuple[float, ...] = ()
    ) -> Schedule:
        """The schedule in steps of a configuration in epochs."""
        return cls(
            peak_lr=peak_lr,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=config.epochs * steps_per_epoch,
            final_share=config.final_lr,
            restarts=restarts,
        )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983). step: from 0. Pure.

        The warm-up starts above zero (a step at rate 0 would be wasted) and reaches the peak at step `warmup_steps`.
        """
        if step < self.warmup_steps:
            return self.level_at(step)
        edges = [self.warmup_steps, *(round(share * self.total_steps) for share in self.restarts), self.total_steps]
        begin, end = next(((a, b) for a, b in pairwise(edges) if step < b), edges[-2:])
        done = min((step - begin) / max(end - begin, 1), 1.0)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.peak_lr * (self.final_share + (1 - self.final_share) * cosine)

    def level_at(self, step: int) -> float:
        """The rate without its decay: warm-up, then the peak to the end. step: from 0. Pure."""
        return self.peak_lr * min((step + 1) / (self.warmup_steps + 1), 1.0)


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


def set_lr(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Give every group the learning rate of a step, counted from 0, times its own multiplier."""
    decayed, level = schedule.lr_at(step), schedule.level_at(step)
    for group in optimizer.param_groups:
        group["lr"] = (level if group["constant_lr"] else decayed) * group["lr_mult"]


def _group(group: ParamGroup, **options: float | bool) -> dict[str, Any]:
    return {"params": group.params, "lr_mult": group.lr_mult, "constant_lr": group.constant_lr, **options}
