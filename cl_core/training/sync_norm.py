"""Batch norm over the whole batch where several processes share it.

Always on, without a switch: the statistics of a share would make what a network learns depend on how many processes
train it. torch's own layer runs on GPUs only; here is one that runs everywhere, in plain differentiable operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cl_core.distributed import total, world_size


def synchronize_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of the module take its statistics over all processes; names and weights stay.

    The module itself is changed and returned, which is why it must not be a single batch norm.
    """
    if device.type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronized
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = SyncBatchNorm  # in place, so that whoever holds the layer holds this one
    return module


class SyncBatchNorm(_BatchNorm):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) over the rows of all processes, also on CPUs.

    (N, C, ...) -> the same shape; N may differ between processes, and be 0 in some. Gradients are exact, as in torch's
    layer: sums are differentiable through all processes. In evaluation and in one process it is torch's batch norm.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise each channel by mean and variance of the whole batch, and remember both."""
        if not self.training or world_size() == 1:
            return super().forward(images)
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        others = [0, *range(2, values.ndim)]
        shape = [1, -1] + [1] * (values.ndim - 2)
        own = values.new_full((1,), values.numel() // values.shape[1])
        *sums, count = total(torch.cat([values.sum(dim=others), own])).split([values.shape[1], 1])
        mean = sums[0] / count
        centred = values - mean.view(shape)
        # In a second pass, since the difference of two large sums would lose digits.
        variance = total(centred.square().sum(dim=others)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(images.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, those of torch's layer."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if input.ndim < 2:
            raise ValueError(f"batch norm needs (N, C, ...), got {tuple(input.shape)}")
