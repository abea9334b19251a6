"""Training a whole network on few labels: when to stop, at which rate, how far from where it started.

lpft-v2: AdamW from the frozen probe's solution (Kumar et al. 2022, arXiv:2202.10054), then weights between that start
and the end (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). Rate, number of steps and mix are chosen together, by the
log loss of held-out labels; a mix of 0 is the frozen probe, so that the result is never worse on them. Running
statistics of batch norm are mixed as weights are.

simclr-v1 (Chen et al. 2020, arXiv:2002.05709, appendix B.5): SGD from a linear layer at zero on the network's own
output, for as many epochs as the paper has; only the rate is chosen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cl_core.config import FinetuneConfig, OptimizerConfig
from cl_core.data.sampling import mix
from cl_core.data.store import Split
from cl_core.evaluation.classifier import Batches, BatchNorm, Classifier, Training, judged, sgd
from cl_core.measures.calibration import fit_temperature, log_loss
from cl_core.training.optim import Schedule
from cl_core.types import Augmentation, ParamGroup

MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
RATES = {"lpft-v2": [3e-4, 1e-3, 3e-3], "simclr-v1": [0.05, 0.5]}
SUPERVISED_RATES = {"lpft-v2": [1e-3, 3e-3, 1e-2], "simclr-v1": [0.05, 0.5]}
_LOOKS = 8  # at the held-out labels, in a whole run
_PATIENCE = 4  # looks without a lower loss
_WARM_UP = 0.1  # of the steps
_WEIGHT_DECAY = 1e-2
_REFERENCE_BATCH = 256  # for which simclr-v1's rates are written
_STREAM = 0xF17E  # keeps order and crops apart from those of pretraining


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one competitor is trained.

    from_probe: starts at a linear probe, and the weights in between are candidates; else the head starts at zero.
    """

    settings: FinetuneConfig
    rates: Sequence[float]
    from_probe: bool

    @classmethod
    def pretrained(cls, settings: FinetuneConfig) -> Recipe:
        """That of the pretrained encoder."""
        rates = settings.lr or RATES[settings.protocol]
        return cls(settings=settings, rates=rates, from_probe=settings.protocol == "lpft-v2")

    @classmethod
    def supervised(cls, settings: FinetuneConfig) -> Recipe:
        """That of the same network from its initial weights: its own grid, stopped in the same way."""
        rates = settings.supervised_lr or SUPERVISED_RATES[settings.protocol]
        return cls(settings=settings, rates=rates, from_probe=False)

    @property
    def mixes(self) -> tuple[float, ...]:
        """Of start and end, that are tried beside the start itself."""
        return MIXES[1:] if self.from_probe else MIXES[-1:]

    def steps_for(self, examples: int, share: float) -> int:
        """Length of a run on so many labels, that share of all."""
        settings = self.settings
        epochs = settings.epochs * (2 if settings.protocol == "simclr-v1" and share <= 0.01 else 1)
        steps = epochs * (examples // min(settings.batch_size, examples))
        return min(max(steps, settings.min_steps), settings.max_steps)

    def looks(self, steps: int) -> set[int]:
        """Numbers of steps after which the held-out labels are looked at."""
        if self.settings.protocol == "simclr-v1":
            return {steps}
        return {round(steps * look / _LOOKS) for look in range(1, _LOOKS + 1)}

    def training(self, classifier: Classifier, examples: int, *, lr: float, steps: int, seed: int) -> Training:
        """The optimiser of a run."""
        settings, device = self.settings, next(classifier.parameters()).device
        if settings.protocol == "simclr-v1":
            # Scaled by the batch that was asked for: one that the labels cannot fill would shrink the rate to nothing.
            peak_lr = lr * settings.batch_size / _REFERENCE_BATCH
            return sgd(classifier, peak_lr=peak_lr, steps=steps, seed=seed, device=device)
        # Statistics of a handful of images are worse than those that pretraining has left.
        batch_norm: BatchNorm = "eval" if self.from_probe and examples < settings.batch_size else "train"
        return Training(
            classifier,
            OptimizerConfig(name="adamw", lr=lr, weight_decay=_WEIGHT_DECAY),
            Schedule(peak_lr=lr, warmup_steps=round(_WARM_UP * steps), total_steps=steps),
            seed=seed,
            device=device,
            batch_norm=batch_norm,
            groups=list(_groups(classifier, settings.layer_decay if self.from_probe else 1.0)),
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What selection has picked, and by which log loss in nats; None where nothing could be held out."""

    lr: float
    steps: int
    mix: float
    selection_loss: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on: rows (n,) of a split, augmented. batch_size: images per forward pass when judging."""

    split: Split
    augment: Augmentation
    seed: int
    batch_size: int
    device: torch.device

    def batches(self, rows: np.ndarray, size: int) -> Batches:
        """Order and crops depend on seed and rows only, not on who competes."""
        return Batches(
            split=self.split,
            rows=rows,
            size=min(size, len(rows)),
            augment=self.augment,
            seed=mix(self.seed, _STREAM),
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows to learn from, the labelled images to look at (an empty split: none), and the classifier to start at."""

    learnt: np.ndarray
    held: Split
    start: Callable[[], Classifier]


def choose(recipe: Recipe, data: Data, parts: Sequence[Part], *, steps: int) -> Choice | None:
    """The best of all rates, steps and mixes, by the log loss over what all parts hold out; None where all diverged.

    Without parts the middle rate, all steps and, from a probe, the weights half-way: what did best where it was tried.
    """
    if not parts:
        half = MIXES[len(MIXES) // 2] if recipe.from_probe else 1.0
        return Choice(lr=recipe.rates[len(recipe.rates) // 2], steps=steps, mix=half)
    found: list[Choice] = []
    for lr in recipe.rates:
        found += _run(recipe, data, parts, lr=lr, steps=steps)
    finite = [choice for choice in found if math.isfinite(choice.selection_loss or 0.0)]
    return min(finite, key=lambda choice: (choice.selection_loss, choice.mix, choice.steps), default=None)


def fine_tune(recipe: Recipe, data: Data, part: Part, choice: Choice, *, steps: int) -> Classifier:
    """Train as was chosen, in eval mode afterwards. steps: of the whole schedule."""
    runner = _Runner(recipe, data, part, lr=choice.lr, steps=steps)
    for step in range(choice.steps if choice.mix else 0):
        runner.step(step)
    mixed: Classifier = runner.mixed(choice.mix).eval()
    return mixed


def _run(recipe: Recipe, data: Data, parts: Sequence[Part], *, lr: float, steps: int) -> Iterator[Choice]:
    """One rate: the parts side by side, so that all can stop where their common loss no longer falls."""
    runners = [_Runner(recipe, data, part, lr=lr, steps=steps) for part in parts]
    labels = torch.cat([runner.held_labels for runner in runners])
    looks, lowest, waited = recipe.looks(steps), math.inf, 0
    if recipe.from_probe:
        yield _judged(runners, labels, Choice(lr=lr, steps=0, mix=0.0))
    for step in range(steps):
        for runner in runners:
            runner.step(step)
        if step + 1 in looks:
            choices = [_judged(runners, labels, Choice(lr=lr, steps=step + 1, mix=mix)) for mix in recipe.mixes]
            yield from choices
            loss = min(choice.selection_loss or math.inf for choice in choices)
            lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
            if waited == _PATIENCE:
                return


def _judged(runners: Sequence[_Runner], labels: Tensor, choice: Choice) -> Choice:
    logits = torch.cat([runner.logits(choice.mix) for runner in runners])
    if not bool(torch.isfinite(logits).all()):
        return replace(choice, selection_loss=math.inf)
    temperature = fit_temperature(logits, labels)  # or the loss would mostly say how sure a long run makes
    return replace(choice, selection_loss=log_loss(logits / temperature, labels), temperature=temperature)


class _Runner:
    """A network in training, and the weights that it started from."""

    def __init__(self, recipe: Recipe, data: Data, part: Part, *, lr: float, steps: int) -> None:
        self.data, self.held = data, part.held
        self.classifier = part.start().to(data.device)
        if data.device.type == "cpu":
            self.classifier = self.classifier.to(memory_format=torch.channels_last)  # half as long again in float32
        self.start = copy.deepcopy(self.classifier.state_dict())
        self.scratch = copy.deepcopy(self.classifier)
        self.batches = data.batches(part.learnt, recipe.settings.batch_size)
        seed = self.batches.seed
        self.training = recipe.training(self.classifier, len(part.learnt), lr=lr, steps=steps, seed=seed)

    def step(self, step: int) -> None:
        self.training.step(step, self._loss_at)

    def _loss_at(self, step: int) -> Tensor:
        images, labels = self.batches.at(step)
        if self.data.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        return cross_entropy(self.classifier(images), labels)

    def mixed(self, share: float) -> Classifier:
        """The start's weights and buffers plus that share of the way to where training is; overwritten by the next."""
        state = {
            name: torch.lerp(self.start[name], value, share) if value.is_floating_point() else value
            for name, value in self.classifier.state_dict().items()
        }
        self.scratch.load_state_dict(state)
        return self.scratch

    @property
    def held_labels(self) -> Tensor:
        """(m,) int64."""
        return torch.from_numpy(self.held.labels[self.held.labels >= 0])

    def logits(self, share: float) -> Tensor:
        """(m, C) of the held-out images."""
        (scores,), _ = judged([self.mixed(share)], self.held, batch_size=self.data.batch_size, device=self.data.device)
        return scores


def _groups(classifier: Classifier, decay: float) -> Iterator[ParamGroup]:
    """Weights with weight decay, biases and norms without; each stage of the encoder a factor slower than the next."""
    encoder: nn.Module = classifier.model.representation.encoder
    blocks = list(encoder.blocks().values()) if decay < 1 and hasattr(encoder, "blocks") else []  # type: ignore[operator]
    depth = {id(parameter): number for number, block in enumerate(blocks) for parameter in block.parameters()}
    above = {id(parameter) for parameter in classifier.head.parameters()}
    for parameter in classifier.parameters():
        stages_above = 0 if id(parameter) in above else len(blocks) - depth.get(id(parameter), 0)
        yield ParamGroup(params=[parameter], decay=parameter.ndim > 1, lr_mult=decay**stages_above if blocks else 1.0)
