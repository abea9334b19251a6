"""One optimiser step: views -> gradient -> step -> after_update, on Fabric's device and precision.

The trainer trains with it and the choice of precision is timed with it, so that what is timed is what runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_core.config import OptimizerConfig
from cl_core.data.sampling import mix
from cl_core.distributed import rank, world_size
from cl_core.errors import CollapseError
from cl_core.training.gradients import backward, require_parts
from cl_core.training.optim import Schedule, build_optimizer, set_lr
from cl_core.training.precision import Choice
from cl_core.training.processes import Devices, anywhere
from cl_core.training.sync_norm import synchronize_norms
from cl_core.types import Method, StepOutput, Views

_STEP_STREAM = 0x57E9


class Updater:
    """Makes the optimiser steps of a method; moves the method to Fabric's device and the chosen memory format."""

    def __init__(
        self,
        method: Method,
        config: OptimizerConfig,
        schedule: Schedule,
        choice: Choice,
        *,
        batch_size: int,
        seed: int,
        devices: Devices,
        micro_batch: int | None = None,
    ) -> None:
        """batch_size: of all processes together. micro_batch: of one of them."""
        require_parts(method, micro_batch, devices.shards)
        self.fabric = devices.fabric(choice)
        self.device = self.fabric.device
        self.method = method.to(self.device)
        self.method.to(memory_format=choice.memory_format)  # type: ignore[call-overload]
        if world_size() > 1:
            synchronize_norms(self.method, self.device)
        if choice.compiled:
            for part in self.method.children():  # in place, so the names of the weights stay
                part.compile(dynamic=False)
        self._forward = devices.forward_of(self.method, self.fabric)
        self.optimizer = build_optimizer(method.parameter_groups(), config, batch_size)
        self._clip, self._schedule, self._layout, self._seed = config.clip, schedule, choice.memory_format, seed
        self._micro_batch = micro_batch

    def __call__(self, views: Views, step: int) -> StepOutput:
        """Update the weights with the views of a step, counted from 0, or this process's share of them.

        Dropout and whatever else draws from torch's generators is seeded by the step, so a resumed run draws the same.
        Raises CollapseError if the loss is not finite.
        """
        torch.manual_seed(mix(self._seed, step, _STEP_STREAM, *[rank()] * (rank() > 0)))
        self.optimizer.zero_grad()
        check = partial(require_finite, step=step, lr=self._schedule.lr_at(step))
        output = backward(
            self.method, self._forward, views.map(self._placed), self.fabric, check, micro_batch=self._micro_batch
        )
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self._clip)
        set_lr(self.optimizer, self._schedule, step)
        self.optimizer.step()
        self.method.after_update((step + 1) / self._schedule.total_steps)
        return output

    def _placed(self, tensor: Tensor) -> Tensor:
        layout = self._layout if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self.device).contiguous(memory_format=layout)


def require_finite(loss: Tensor, step: int, lr: float) -> None:
    """Raise CollapseError, before any weight is touched, where the loss of any process is NaN or infinite."""
    if anywhere(not torch.isfinite(loss)):
        raise CollapseError(
            f"the loss is {loss.item()} at step {step + 1} (learning rate {lr:.4g}); lower optimizer.lr, raise "
            f"schedule.warmup_epochs, or set optimizer.clip: 1.0 (and train.precision: fp32 if it was bf16)"
        )


@contextmanager
def deterministic() -> Iterator[None]:
    """Make torch choose operations that give the same bits every time, as far as it has them; undone at the end."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # only costs time: nothing here reads such memory
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark = benchmark
