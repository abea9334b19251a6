"""The nouns that travel from room to room; each arrow of the README's picture is one of them.

Example -> Store -> Views -> StepOutput -> Representation -> Features. (The store and the features live on disk; their
readers are `data.store.Store` and `evaluation.features.Features`. Example and Source stand in `examples`.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.examples import Example as Example  # noqa: PLC0414 - handed on
from cl_core.examples import Source as Source  # noqa: PLC0414 - handed on
from cl_core.ranges import Momentum as Momentum  # noqa: PLC0414 - handed on
from cl_core.ranges import NonNegative as NonNegative  # noqa: PLC0414 - handed on
from cl_core.ranges import UnitInterval as UnitInterval  # noqa: PLC0414 - handed on


class Augmentation(Protocol):
    """One operation of a chain: a whole batch in, a new batch out.

    It may also have a method `overwrite` with the same arguments and result, which is free to write into the images; a
    chain calls that one from the second operation on, where the images are its own.
    """

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:
        """images: (N, C, H, W) float in [0, 1], left untouched. Randomness only from `rng`, one draw per sample."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a method looks at in one step.

    images: one tensor per view, each with the batch's N samples first: (N, C, H, W), or (N, T, C, h, w) for T tiles.
    targets: (N,) int64 where the pretext task has an answer (a permutation, a rotation), else None.
    labels: (N,) int64 class labels, filled in by the trainer and only for methods that declare `uses_labels`.
    extras: anything else per sample (masks, offsets), each tensor with N first.
    """

    images: tuple[Tensor, ...]
    targets: Tensor | None = None
    labels: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Views:
        """A copy with the function applied to every tensor (move to a device, select rows)."""
        return Views(
            images=tuple(function(view) for view in self.images),
            targets=None if self.targets is None else function(self.targets),
            labels=None if self.labels is None else function(self.labels),
            extras={name: function(tensor) for name, tensor in self.extras.items()},
        )

    def areas(self, image_size: int) -> list[float]:
        """Pixels of each view per sample, over all its tiles, as a share of an image of image_size x image_size."""
        return [view[0].numel() / view.shape[-3] / image_size**2 for view in self.images]


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a method makes of its views.

    loss: scalar with gradient, the only tensor that has one. Where several processes share a batch, the mean of their
        losses is minimised; see `cl_core.distributed`.
    metrics: detached scalars to log (pretext accuracy, parts of the loss), never used for control; of several processes
        the mean is logged.
    embedding: (N, D) detached output in which collapse would show (a projection), of this process's images, or None
        where nothing can collapse.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


class Encoder(nn.Module, ABC):
    """What the pipeline asks of an encoder; any module with these members will do, this base is a convenience.

    out_dim: D, the width of `forward`'s output. An encoder whose stages follow one another may also offer
    `blocks() -> {stage: module}`, the module that leads to each stage from the one before; methods that train stage by
    stage need it.
    """

    out_dim: int

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> pooled features (N, D) of the last stage."""
        return global_average(list(self.stages(images).values())[-1])

    @abstractmethod
    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> {stage: map (N, C_s, H_s, W_s) or average of tokens (N, C_s)}, early to late."""


def run_blocks(blocks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What every block makes of the output of the one before it; the first gets the images."""
    outputs, features = {}, images
    for stage, block in blocks.items():
        features = outputs[stage] = block(features)
    return outputs


class Representation(nn.Module):
    """What evaluation keeps of a method: RGB images in [0, 1] -> features of every stage.

    It owns its input: `preprocess` turns RGB into what the encoder was trained on (standardised per image, L only).
    input_name: names that preprocessing; encoders with equal input share their random-init yardstick.
    """

    def __init__(
        self, encoder: nn.Module, preprocess: Callable[[Tensor], Tensor] | None = None, input_name: str = "rgb"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocess = preprocess
        self.input_name = input_name

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, 3, H, W) in [0, 1] -> {stage: (N, C, H, W) or (N, C)}, early to late."""
        encoder: Any = self.encoder
        stages: dict[str, Tensor] = encoder.stages(self._prepared(images))
        return stages

    def pooled(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> (N, D), the encoder's own output."""
        output: Tensor = self.encoder(self._prepared(images))
        return output

    def _prepared(self, images: Tensor) -> Tensor:
        return images if self.preprocess is None else self.preprocess(images)


class FineTuneModel(nn.Module):
    """The part of a method that fine-tuning continues from: RGB in [0, 1] -> (N, out_dim), all of it trainable.

    head: what of the method's head stays on top of the encoder, (N, D) -> (N, out_dim); None keeps the encoder alone.
    name: says what is fine-tuned, in results and in the keys of yardsticks.
    """

    def __init__(
        self, representation: Representation, out_dim: int, *, head: nn.Module | None = None, name: str = "encoder"
    ) -> None:
        super().__init__()
        self.representation = representation
        self.out_dim = out_dim
        self.head = head
        self.name = name

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> (N, out_dim)."""
        features = self.representation.pooled(images)
        return features if self.head is None else self.head(features)


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that the optimiser treats alike.

    decay: weight decay applies. adapt: LARS scales the step by the layer's norm. lr_mult: factor on the learning rate.
    constant_lr: the learning rate stays at its peak after the warm-up.
    """

    params: list[nn.Parameter]
    decay: bool = True
    adapt: bool = True
    lr_mult: float = 1.0
    constant_lr: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One qualitative picture for the report: title, one sentence on how to read it, (H, W, 3) uint8 pixels."""

    title: str
    caption: str
    image: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some images for a diagnosis to look at.

    images: (N, C, H, W) in [0, 1], on the method's device. labels: (N,) int64 classes on the CPU, -1 for none.
    rng: one row per image; all randomness of a diagnosis comes from it.
    """

    images: Tensor
    labels: Tensor
    rng: SampleRng

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: Tensor) -> Sample:
        """Some of the images with the randomness they have here; rows: (M,) int64."""
        chosen = rows.to(self.images.device)
        return Sample(images=self.images[chosen], labels=self.labels[rows], rng=self.rng.rows(rows.to(self.rng.device)))

    def parts(self, size: int = 128) -> Iterator[Sample]:
        """The same images, `size` at a time, so that a large network has room."""
        for rows in torch.arange(len(self)).split(size):
            yield self.rows(rows)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a diagnosis says of a trained method.

    state: "warning" where the method seems to cheat, to have collapsed or to have learnt nothing, else "fine".
    text: one sentence without full stop. figures: what it rests on. against: what these are held against (chance, the
    figure of a trivial answer, a threshold). All of them finite.
    """

    state: Literal["fine", "warning"]
    text: str
    figures: Mapping[str, float]
    against: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One question about a trained method, and how to answer it.

    question: one sentence, which "fine" answers as one would hope. find: (fit, held_out) -> Finding; `fit` are training
    images to fit a small detector on, `held_out` others to judge by. It is called in evaluation mode and without
    gradients, leaves the method as it was, and gives the same every time. needs_labels: it makes sense only for images
    with classes, and is handed labelled ones alone.
    """

    question: str
    find: Callable[[Sample, Sample], Finding]
    needs_labels: bool = False


class Method(nn.Module, ABC):
    """One self-supervised objective: images -> views -> loss.

    It never knows dataset, paths, optimiser, precision, epochs or ranks. All that resume needs (EMA networks, queues,
    tables) is in its `state_dict`. `forward` is pure with respect to that state, batch-norm statistics excepted.

    encoder: what is trained and kept. uses_labels: views come with class labels. lr_restarts: shares of the run, in
    (0, 1) and ascending, at which the learning rate starts anew from its peak, for methods that train in phases.
    sample_wise: loss and metrics of a batch are means over its samples, none of which looks at another (batch norm
        excepted), and `after_update` needs nothing of the batch: micro-batches may then pass one after the other.
    trains: false for a yardstick that keeps the encoder as it is; then `forward` is never called.
    year, family: for the report's leaderboard, of the paper that introduced the method, and what it has in common with
    others ("contrastive", "reconstruction").
    """

    encoder: nn.Module
    uses_labels: bool = False
    sample_wise: bool = False
    trains: bool = True
    lr_restarts: tuple[float, ...] = ()
    year: int | None = None
    family: str = ""

    @abstractmethod
    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) in [0, 1] -> views. Randomness only from `rng`.

        Must not depend on the encoder or on anything else that training changes: it may run ahead, in another thread.
        """

    @abstractmethod
    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch. It is `forward` so that data parallelism and torch.compile can wrap it."""

    def after_update(self, progress: float) -> None:
        """Called after each optimiser step with progress in (0, 1]: move EMA networks, queues, stages here."""

    def prepare(self, sample: Tensor) -> None:
        """Derive state from data: called once, before the first step, with up to 2,048 images (M, C, H, W)."""

    def representation(self) -> Representation:
        """Return what evaluation keeps, sharing its weights with this method."""
        return Representation(self.encoder)

    def fine_tune_model(self) -> FineTuneModel:
        """Return what fine-tuning continues from, sharing its weights with this method."""
        out_dim: Any = self.encoder.out_dim
        return FineTuneModel(self.representation(), out_dim)

    def project(self, images: Tensor) -> Tensor | None:
        """Return the embedding on which the loss acts of images (N, C, H, W) in [0, 1], (N, D), None without one.

        Called in evaluation mode, to measure the embedding's health. Default: None.
        """
        return None

    def parameter_groups(self) -> list[ParamGroup]:
        """Return every trainable parameter once. Default: biases and norms neither decay nor adapt."""
        weights = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        return [ParamGroup(params=weights), ParamGroup(params=vectors, decay=False, adapt=False)]

    def units(self, areas: Sequence[float]) -> float:
        """Return what the encoder costs per training image, in passes forward and backward over one whole image.

        areas: of each view over that of the image, see `Views.areas`. Forward alone is a third; heads do not count.
        Default: every view passes once, with gradient.
        """
        return sum(areas)

    def trivial(self) -> dict[str, float]:
        """Return the loss and metrics of a constant predictor, by the names they are logged under ("loss", ...)."""
        return {}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """Return pictures for the report, drawn from images (N, 3, H, W) in [0, 1] that were not trained on."""
        return []

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Return questions by name that detect shortcuts and collapse after training, for `contrast diagnose`."""
        return {}


class JointEmbedding(Method):
    """A method in which samples meet in the loss alone (batch norm excepted), so that micro-batches can be embedded.

    `train.micro_batch` makes of it a large batch in little memory. `embed` changes no state but statistics of batch
    norm, and may be called twice for a step.
    """

    @abstractmethod
    def embed(self, views: Views) -> tuple[Tensor, ...]:
        """Return all that the loss needs of the networks, each tensor of any floating dtype with the N samples first.

        What carries no gradient here (keys of a moving network) gets none.
        """

    @abstractmethod
    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch, from its embeddings and all of the views but their images."""

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch."""
        return self.compare(self.embed(views), views)


def global_average(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C); a (N, C) tensor is returned as it is."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What observers are told when a pretraining run starts.

    directory: scratch folder of this run that survives interruption (`.contrast/...`); trackers write below it.
    queries: on how many images the online evaluation's knn_top1 or self_match is a share; 0 where it is off.
    on_no_gain: what the experiment asks for where half of the updates have brought nothing.
    logged: the rows that earlier sittings of this run have logged, each with its "step"; () for a new run.
    """

    experiment: str
    directory: Path
    total_steps: int
    config: Mapping[str, Any]
    queries: int = 0
    on_no_gain: Literal["warn", "stop"] = "warn"
    logged: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What observers are told when a run ends: "finished", "interrupted" or "failed", and the last logged metrics."""

    status: str
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def set_seed(seed: int) -> None:
    """Seed torch's global generators (weight initialisation, dropout); view generation never uses them."""
    torch.manual_seed(seed)
