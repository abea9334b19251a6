"""A classifier on top of a network, its training and its judging: what fine-tuning and distillation have in common.

What is trained on and by which loss is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cl_core.config import OptimizerConfig
from cl_core.data.lazy import decoded
from cl_core.data.sampling import SampleRng, batch_rows, mix
from cl_core.data.store import Split, to_float
from cl_core.evaluation.features import pool
from cl_core.measures.logistic import Classifier as Probe
from cl_core.training.optim import Schedule, build_optimizer, set_lr
from cl_core.training.update import deterministic
from cl_core.types import Augmentation, FineTuneModel, ParamGroup

BatchNorm = Literal["train", "eval"]


class Classifier(nn.Module):
    """A fine-tuning model under a linear layer that starts at zero: (N, C, H, W) in [0, 1] -> (N, K) logits.

    stage: what the layer reads, a stage of the encoder pooled as the linear probe's (see `features.pool`), D values;
    "" for the model's own output.
    """

    def __init__(
        self, model: FineTuneModel, num_classes: int, *, stage: str = "", dim: int | None = None, max_values: int = 0
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.stage, self.max_values = stage, max_values
        self.head = nn.Linear(dim or model.out_dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def of_probe(cls, model: FineTuneModel, probe: Probe, stage: str, max_values: int) -> Classifier:
        """One that gives the scores of a linear probe on the model's stage, its standardisation folded in."""
        num_classes, dim = probe.weight.shape
        classifier = cls(model, num_classes, stage=stage, dim=dim, max_values=max_values)
        with torch.no_grad():
            weight = probe.weight * probe.scale
            classifier.head.weight.copy_(weight)
            classifier.head.bias.copy_(probe.bias - weight @ probe.mean)
        return classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        if self.stage:
            features = pool(self.model.representation(images)[self.stage], self.max_values)
        else:
            features = self.model(images)
        logits: Tensor = self.head(features)
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


class Training:
    """A classifier and the optimiser of all its parameters.

    config: its lr is the peak. seed: of torch's global generators, which only dropout and its like use here; they are
    put back after each step. batch_norm: "train" or "eval", how batch norm normalises meanwhile. groups: what is
    trained, by default everything alike.
    """

    def __init__(
        self,
        classifier: nn.Module,
        config: OptimizerConfig,
        schedule: Schedule,
        *,
        seed: int,
        device: torch.device,
        batch_norm: BatchNorm = "train",
        groups: Sequence[ParamGroup] | None = None,
    ) -> None:
        self.classifier, self.schedule, self.seed, self.device = classifier, schedule, seed, device
        self.batch_norm = batch_norm
        groups = groups or [ParamGroup(params=list(classifier.parameters()))]
        self.optimizer = build_optimizer(groups, config, batch_size=1)

    def step(self, step: int, loss_at: Callable[[int], Tensor]) -> Tensor:
        """Make a step, counted from 0, by the loss that the function gives for it; returns that, detached."""
        self._train_mode()
        with deterministic(), _global_rng(mix(self.seed, step), self.device):
            loss = loss_at(step)
            set_lr(self.optimizer, self.schedule, step)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.detach()

    def _train_mode(self) -> None:
        self.classifier.train()
        if self.batch_norm == "eval":
            for module in self.classifier.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


def sgd(classifier: nn.Module, *, peak_lr: float, steps: int, seed: int, device: torch.device) -> Training:
    """Training by SGD with Nesterov momentum 0.9, no weight decay, no warm-up, a cosine to zero."""
    config = OptimizerConfig(name="sgd", lr=peak_lr, momentum=0.9, nesterov=True, weight_decay=0.0)
    schedule = Schedule(peak_lr=peak_lr, warmup_steps=0, total_steps=steps)
    return Training(classifier, config, schedule, seed=seed, device=device)


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
