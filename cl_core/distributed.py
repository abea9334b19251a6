"""Training in several processes, as far as a method or a loss meets it: `gather`, which shows it the whole batch.

The processes share each batch evenly: of R, process r holds rows r N / R to (r + 1) N / R of N. Together they minimise
the mean over processes of the loss that each returns. So a loss that is a mean over images needs nothing of this
module; one that compares images, or takes statistics over them, gathers what it compares. In one process everything
here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def world_size() -> int:
    """How many processes share each batch."""
    joined = dist.is_available() and dist.is_initialized() and not _alone.get()
    return dist.get_world_size() if joined else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: what only one of them does must not wait for the others."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in the order of the batch: (N / R, ...) of each -> (N, ...) on each, with gradient.

    All processes have to call it, with equal shapes. Losses and figures of the result are those of one process that
    holds the whole batch, and so are the gradients. To spare work a loss may compare only its own rows with those of
    all and return its own mean: the mean over processes stays the same.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, with gradient; same shape. All processes have to call it."""
    if world_size() == 1:
        return tensor
    summed: Tensor = _Total.apply(tensor)
    return summed


def average(tensor: Tensor) -> Tensor:
    """The mean over all processes, with gradient; same shape. All processes have to call it.

    For what a loss is divided by: a sum over a process's own pixels over the mean count of pixels is a loss whose mean
    over processes is the sum over all pixels over their count.
    """
    return total(tensor) / world_size() if world_size() > 1 else tensor


# Why backward sums over processes: let process s return the loss L_s, so that L = (1 / R) sum_s L_s is minimised, and
# let z_r be the rows of process r, which all L_s depend on. Backward on process s knows dL_s / dz only; summed over s
# and cut to the rows of r that is R dL / dz_r. From there it runs through the weights w on process r alone, and data
# parallelism averages the gradients of the weights: (1 / R) sum_r R dL / dz_r dz_r / dw = dL / dw, exactly.


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        parts = [part.contiguous() for part in gradients[0].chunk(dist.get_world_size())]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    result = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result)
    return result
