"""Denoising autoencoder: give back the clean image from a damaged one (Vincent et al. 2010, JMLR 11:3371-3408).

Stacked as in the paper: one stage of the encoder after the other learns to undo damage to its own input, which is the
clean output of the stages below; those are frozen by then. Or jointly: the whole encoder undoes damage to the image.
Damage exists only in training; the representation never sees it, and no decoder outlives its stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import average, gather
from cl_core.errors import ConfigError
from cl_core.types import (
    Augmentation,
    Diagnosis,
    Finding,
    Method,
    NonNegative,
    Panel,
    Sample,
    StepOutput,
    UnitInterval,
    Views,
)
from plugins.methods.decoder import decoder, stage_shapes
from plugins.methods.detectors import BETTER, found
from plugins.methods.panels import SHOWN, contact_sheet, judging

Corruption = Literal["masking", "gaussian", "salt_and_pepper"]

_AUGMENT, _HIT, _NOISE = range(3)
_FLAT = 1e-6  # variance below which a channel says nothing


class _Scale(NamedTuple):
    """What damage is measured by: the unit of gaussian noise, pepper and salt; each broadcasts over (N, C, h, w)."""

    deviation: Tensor
    low: Tensor
    high: Tensor


_PIXELS = _Scale(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0))


class DenoisingAutoencoder(Method):
    """Denoising autoencoder (Vincent et al. 2010, JMLR 11:3371-3408): undo damage to the input of each stage.

    encoder: needs maps; stacked training also needs `blocks()`. augment: chain for the clean images, crop and flip.
    mode: "stacked" trains stage after stage, the k-th of K for K - k + 1 parts of the run (so 4/10, 3/10, 2/10, 1/10 of
        it for four), the learning rate starting anew each time; "joint" trains all stages at once.
    corruption: "masking" sets values to 0, "salt_and_pepper" to the smallest or largest value by a fair coin,
        "gaussian" adds noise everywhere.
    rate: share of the places that masking and salt_and_pepper damage, all channels together. The paper damages single
        values, at up to 0.4; convolutions undo that by averaging neighbours, hence whole places and a higher rate.
    block: side in pixels of the damaged squares of an image; in the inputs of later stages it is 1.
    noise: standard deviation of the gaussian noise, in pixel values in [0, 1] and, for later stages, in deviations.
    emphasis: weights of the loss at damaged and at untouched places; [1, 0] is the paper's full emphasis.

    The target is standardised per channel over the batch, so that the loss is the unexplained share of the variance
    whatever the stage: 1 for predicting the mean, and `r2` is 1 - loss. `copy_loss` is what returning the damaged input
    would cost; useful networks stay below both. `active_share` is the share of the stage's outputs that are not 0: a
    stage whose units have died leaves nothing to learn for the next.
    """

    year = 2010
    family = "reconstruction"

    stage: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        image_size: int,
        *,
        mode: Literal["stacked", "joint"] = "stacked",
        corruption: Corruption = "masking",
        rate: UnitInterval = 0.5,
        block: PositiveInt = 1,
        noise: NonNegative = 0.3,
        emphasis: tuple[NonNegative, NonNegative] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        if sum(emphasis) == 0:
            raise ConfigError("method.emphasis [0, 0] leaves no loss; make one of the two positive, such as [1, 0]")
        self.encoder, self.augment, self.mode = encoder, augment, mode
        self.corruption, self.rate, self.block, self.noise, self.emphasis = corruption, rate, block, noise, emphasis
        shapes = stage_shapes(encoder, image_size)
        inputs = {"": (3, image_size), **shapes}  # what each stage starts from, by the name of the stage before
        if mode == "joint":
            self.decoders = nn.ModuleList([decoder(*list(shapes.values())[-1], *inputs[""])])
        else:
            self._require_blocks()
            pairs = zip(shapes.values(), inputs.values(), strict=False)
            self.decoders = nn.ModuleList([decoder(*output, *source) for output, source in pairs])
            blocks = encoder.blocks().values()
            self.costs = [_work(block, side) for block, (_, side) in zip(blocks, shapes.values(), strict=True)]
        self.lr_restarts = phase_ends(len(self.decoders))[:-1]
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> damaged and clean image; extras["hit"] (N, 1, H, W) bool, where damage was done."""
        clean = self.augment(images, rng.child(_AUGMENT))
        height, width = clean.shape[-2:]
        coarse = [math.ceil(side / self.block) for side in (height, width)]
        chosen = rng.child(_HIT).uniform(shape=(1, *coarse)) < self._rate
        chosen = chosen.repeat_interleave(self.block, dim=2).repeat_interleave(self.block, dim=3)
        hit = chosen[..., :height, :width].to(clean.device)
        noise = rng.child(_NOISE).normal(shape=clean.shape[1:]).to(clean.device)
        return Views(images=(self._damaged(clean, hit, noise, _PIXELS), clean), extras={"hit": hit})

    def forward(self, views: Views) -> StepOutput:
        """Share of the variance of the stage's clean input that its decoder fails to give back."""
        return self.at_stage(views, int(self.stage))

    def at_stage(self, views: Views, stage: int) -> StepOutput:
        """`forward` of the stage of this number, counted from 0; of the whole encoder if it is trained jointly."""
        damaged, clean = views.images
        hit = views.extras["hit"]
        if self.mode == "joint":
            output = list(self.encoder.stages(damaged).values())[-1]
        else:
            blocks = list(self.encoder.blocks().values())
            if stage > 0:
                with judging(*blocks[:stage]):  # as evaluation sees them; weights and batch-norm buffers stay
                    clean = nn.Sequential(*blocks[:stage])(clean)
                damaged, hit = self._damaged_features(clean)
            output = blocks[stage](damaged)
        judged = self._judged(self.decoders[stage](output), damaged, clean, hit)
        return replace(judged, metrics={**judged.metrics, "active_share": (output != 0).float().mean()})

    def after_update(self, progress: float) -> None:
        """Go on to the next stage when its part of the run begins; progress in (0, 1]."""
        ends = phase_ends(len(self.decoders))
        self.stage.fill_(sum(progress >= end for end in ends[:-1]))

    def units(self, areas: Sequence[float]) -> float:
        """Stages learn one after the other, those below passing without gradient."""
        if self.mode == "joint":
            return areas[0]
        ends = (0.0, *phase_ends(len(self.costs)))
        passes = [cost + sum(self.costs[:stage]) / 3 for stage, cost in enumerate(self.costs)]
        spent = sum((end - start) * cost for (start, end), cost in zip(pairwise(ends), passes, strict=True))
        return areas[0] * spent / sum(self.costs)

    def trivial(self) -> dict[str, float]:
        """Of predicting every channel's mean, as a stage of dead units does."""
        return {"loss": 1.0, "r2": 0.0, "active_share": 0.0}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """Clean, damaged and restored images; of a stacked encoder there is no decoder back to the image."""
        if self.mode == "stacked":
            return []
        some = torch.arange(min(SHOWN, len(images)), device=images.device)
        views = self.make_views(images[some], rng.rows(some))
        damaged, clean = views.images
        with judging(self):
            restored = self.decoders[0](list(self.encoder.stages(damaged).values())[-1])
        mean, deviation = _moments(clean)
        sheet = contact_sheet([clean, damaged, restored * deviation + mean])
        caption = "Each row: an image, the same image damaged, and what the network makes of the damaged one."
        return [Panel(title="Denoising", caption=caption, image=sheet)]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether every stage restores more than what is there for nothing."""
        return {
            "denoising": Diagnosis(
                question="Does every stage restore more than a copy of its input, or the mean?",
                find=lambda fit, held_out: denoising(self, held_out),
            )
        }

    @property
    def _rate(self) -> float:
        return 1.0 if self.corruption == "gaussian" else self.rate

    def _require_blocks(self) -> None:
        if not hasattr(self.encoder, "blocks"):
            raise ConfigError(
                "method denoising_autoencoder trains stage by stage, and the encoder has no blocks(); set method.mode: "
                "joint, or choose an encoder that has them"
            )

    def _damaged_features(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """A stage's input with damage, and where it is; drawn from torch's generator, as dropout is."""
        hit = torch.rand_like(clean[:, :1], dtype=torch.float32) < self._rate
        noise = torch.randn_like(clean)
        low = gather(clean.amin(dim=(0, 2, 3), keepdim=True)).amin(dim=0, keepdim=True)
        high = gather(clean.amax(dim=(0, 2, 3), keepdim=True)).amax(dim=0, keepdim=True)
        return self._damaged(clean, hit, noise, _Scale(_moments(clean)[1], low, high)), hit

    def _damaged(self, clean: Tensor, hit: Tensor, noise: Tensor, scale: _Scale) -> Tensor:
        """clean, noise: (N, C, h, w); hit: (N, 1, h, w) bool."""
        if self.corruption == "gaussian":
            return clean + self.noise * scale.deviation.to(clean) * noise
        if self.corruption == "masking":
            return clean.masked_fill(hit, 0.0)
        # One coin per place, so that salt is white and pepper black.
        return torch.where(hit, torch.where(noise[:, :1] > 0, scale.high.to(clean), scale.low.to(clean)), clean)

    def _judged(self, restored: Tensor, damaged: Tensor, clean: Tensor, hit: Tensor) -> StepOutput:
        mean, deviation = _moments(clean)
        target, copied = ((x.float() - mean) / deviation for x in (clean, damaged))
        weight = torch.where(hit, *(torch.tensor(float(w), device=hit.device) for w in self.emphasis))
        loss = reconstruction_loss(restored.float(), target, weight)
        metrics = {
            "r2": 1 - loss.detach(),
            "copy_loss": reconstruction_loss(copied, target, weight),
            "stage": self.stage.float(),
        }
        return StepOutput(loss=loss, metrics=metrics)


def denoising(method: DenoisingAutoencoder, held_out: Sample) -> Finding:
    """The unexplained share of the variance, stage by stage, against returning the damaged input and the mean."""
    figures, copies, useless = {}, {}, []
    for number in range(len(method.decoders)):
        loss, copied = _restoring(method, held_out, number)
        name = f"stage {number + 1}"
        figures[name], copies[f"copy {number + 1}"] = loss, copied
        useless += [name] if loss >= BETTER * min(copied, 1.0) else []
    return found(
        bool(useless),
        warning=f"{', '.join(useless)} restores no better than copying the damaged input or painting the mean",
        fine="every stage restores more than a copy and the mean",
        figures=figures,
        against={**copies, "mean": 1.0},
    )


def _restoring(method: DenoisingAutoencoder, held_out: Sample, stage: int) -> tuple[float, float]:
    """Loss of a stage and of copying, averaged over the images."""
    loss = copied = 0.0
    for part in held_out.parts():
        output, share = method.at_stage(method.make_views(part.images, part.rng), stage), len(part) / len(held_out)
        loss += share * float(output.loss)
        copied += share * float(output.metrics["copy_loss"])
    return loss, copied


def phase_ends(stages: int) -> tuple[float, ...]:
    """Shares of the run at which each of K stages is done, the k-th taking K - k + 1 parts; the last is 1."""
    parts = [stages - k for k in range(stages)]
    return tuple(sum(parts[: k + 1]) / sum(parts) for k in range(stages))


def reconstruction_loss(restored: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the squared error; restored, target: (N, C, h, w), weight: (N, 1, h, w), >= 0."""
    weight = weight.expand_as(target)
    return (weight * F.mse_loss(restored, target, reduction="none")).sum() / average(weight.sum()).clamp(min=_FLAT)


def _work(block: nn.Module, side: int) -> int:
    """Multiplications of a block that works on maps of side x side: each weight is used once per place."""
    return side**2 * sum(weight.numel() for weight in block.parameters() if weight.ndim > 1)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over the batch, (1, C, 1, 1) each."""
    variance, own = torch.var_mean(features.float(), dim=(0, 2, 3), correction=0, keepdim=True)
    overall = average(own)
    variance = average(variance + (own - overall).square())
    return overall, variance.clamp(min=_FLAT).sqrt()
