"""A classifier on top of a network, its training and its judging: what fine-tuning and distillation have in common.

Training is that of protocol finetune/simclr-v1: SGD with Nesterov momentum 0.9, no weight decay, no warm-up, a cosine
to zero, batch norm in train mode. What is trained on and by which loss is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cl_core.config import OptimizerConfig
from cl_core.data.lazy import decoded
from cl_core.data.sampling import SampleRng, batch_rows
from cl_core.data.store import Split, to_float
from cl_core.training.optim import Schedule, build_optimizer, set_lr
from cl_core.training.update import deterministic
from cl_core.types import Augmentation, FineTuneModel, ParamGroup


class Classifier(nn.Module):
    """A fine-tuning model under a linear layer that starts at zero: (N, C, H, W) in [0, 1] -> (N, K) logits."""

    def __init__(self, model: FineTuneModel, num_classes: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.head = nn.Linear(model.out_dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(self.model(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Augmented batches of some rows (n,) of a split, n >= size. Order and crops depend on seed and rows alone."""

    split: Split
    rows: np.ndarray
    size: int
    augment: Augmentation
    seed: int
    device: torch.device

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (size, C, H, W) in [0, 1] and labels (size,) int64 of a step, counted from 0, on the device."""
        picked, epoch = batch_rows(len(self.rows), self.size, step, self.seed)
        rows = torch.from_numpy(self.rows)[picked]
        images = self.split.floats(rows, self.device)
        images = decoded(self.augment(images, SampleRng(self.seed, epoch, rows.to(self.device))))
        return images, torch.from_numpy(self.split.labels[rows.numpy()]).to(self.device)


def train(
    classifier: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    peak_lr: float,
    steps: int,
    seed: int,
    device: torch.device,
    after_step: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> None:
    """Minimise the loss of each step, a scalar with gradient, over all of the classifier's parameters.

    seed: of torch's global generators, which only dropout and its like use here; they are put back afterwards.
    """
    schedule = Schedule(peak_lr=peak_lr, warmup_steps=0, total_steps=steps)
    config = OptimizerConfig(name="sgd", lr=peak_lr, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizer = build_optimizer([ParamGroup(params=list(classifier.parameters()))], config, batch_size=1)
    classifier.train()
    with deterministic(), _global_rng(seed, device):
        for step in range(steps):
            loss = loss_at(step)
            set_lr(optimizer, schedule, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step(step, loss.detach())


@torch.no_grad()
def judged(
    models: Sequence[nn.Module], split: Split, *, batch_size: int, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Logits (N, K) of several models, in eval mode, in one pass over the labelled images of a split; labels (N,)."""
    rows = np.flatnonzero(split.labels >= 0)
    scores: list[list[Tensor]] = [[] for _ in models]
    for model in models:
        model.eval()
    for start in range(0, len(rows), batch_size):
        images = to_float(split.images(rows[start : start + batch_size]).to(device))
        for model, collected in zip(models, scores, strict=True):
            collected.append(model(images).float().cpu())
    return [torch.cat(parts) for parts in scores], torch.tensor(split.labels[rows])


@contextmanager
def _global_rng(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
