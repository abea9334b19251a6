"""DINO: a student matches its own moving average on other crops of an image (Caron et al. 2021, arXiv:2104.14294).

No negatives and no predictor: what prevents collapse is that the teacher's output is centred (against one prototype for
all) and sharpened (against all prototypes alike). Large crops go to both networks, small ones to the student alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import average
from cl_core.types import Augmentation, Diagnosis, Method, Momentum, StepOutput, UnitInterval, Views
from plugins.methods.assignment import assignment_information
from plugins.methods.ema import momentum_at, move_average
from plugins.methods.embedding_detectors import embedding_diagnoses, opinions


class DINO(Method):
    """DINO (Caron et al. 2021, arXiv:2104.14294): self-distillation across crops without labels.

    encoder: images of any size (N, C, H, W) -> (N, out_dim). augment_a, augment_b: chains of the two large crops.
    augment_local: chain of the small ones.
    local_crops: small crops per image; 8 in the paper, none leaves the two large crops.
    prototypes: K, outputs of the head; 65,536 in the paper, sized for small encoders and sets here.
    hidden_dim, bottleneck_dim: widths of the head; 2048 and 256 in the paper.
    student_temperature: of the student's softmax. teacher_temperature: [first, last] of the teacher's, raised in a line
        over the first `warmup` of the run.
    centre_momentum: of the moving average that is taken off the teacher's outputs.
    base_momentum: of the teacher, raised to 1 along a cosine; 0.996 in the paper, for small batches 0.9995.
    frozen: share of the run in which the last layer of the head stays as it is; one epoch in the paper.

    The loss is log K for a teacher without opinion. `teacher_entropy` falling to 0, or staying at log K with
    `divergence` 0, are the two ways to collapse; `assignment_information`, what the teacher's answer tells about an
    image, is 0 in both, while the encoder's output may still look well spread.
    """

    year = 2021
    family = "self-distillation"

    centre: Tensor
    progress: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        augment_a: Augmentation,
        augment_b: Augmentation,
        augment_local: Augmentation,
        *,
        local_crops: NonNegativeInt = 4,
        prototypes: Annotated[int, Field(ge=2)] = 1024,
        hidden_dim: PositiveInt = 512,
        bottleneck_dim: PositiveInt = 128,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07),
        warmup: UnitInterval = 0.3,
        centre_momentum: Momentum = 0.9,
        base_momentum: Momentum = 0.99,
        frozen: UnitInterval = 0.02,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment_a, self.augment_b, self.augment_local = augment_a, augment_b, augment_local
        self.local_crops, self.student_temperature = local_crops, student_temperature
        self.teacher_temperature, self.warmup = teacher_temperature, warmup
        self.centre_momentum, self.base_momentum, self.frozen = centre_momentum, base_momentum, frozen
        self.head = Head(encoder.out_dim, hidden_dim, bottleneck_dim, prototypes)
        self.teacher = copy.deepcopy(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))
        self._seen: Tensor | None = None

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two large crops, then the small ones, each (N, C, h, w)."""
        large = (self.augment_a(images, rng.child(0)), self.augment_b(images, rng.child(1)))
        small = tuple(self.augment_local(images, rng.child(2 + k)) for k in range(self.local_crops))
        return Views(images=(*large, *small))

    def forward(self, views: Views) -> StepOutput:
        """Mean cross-entropy of student and teacher over all pairs of different crops, the teacher's a large one."""
        embeddings = [self.encoder(view) for view in views.images]
        with torch.no_grad():
            targets = [self.teacher(view).float() for view in views.images[:2]]
        self._seen = average(torch.cat(targets).mean(dim=0))
        students = [self.head(z, learn_prototypes=float(self.progress) >= self.frozen) for z in embeddings]
        beliefs = [F.softmax((t - self.centre) / self._sharpness(), dim=1) for t in targets]
        loss = distillation_loss(beliefs, [s.float() / self.student_temperature for s in students])
        entropy = torch.stack([-(p * p.clamp(min=1e-12).log()).sum(dim=1).mean() for p in beliefs]).mean()
        information = assignment_information(torch.cat(beliefs))
        metrics = {
            "teacher_entropy": entropy,
            "divergence": loss.detach() - entropy,
            "assignment_information": information,
        }
        return StepOutput(loss=loss, metrics=metrics, embedding=embeddings[0].detach().float())

    def after_update(self, progress: float) -> None:
        """Move teacher and centre; progress in (0, 1]."""
        student = nn.Sequential(self.encoder, self.head)
        move_average(self.teacher, student, momentum_at(progress, self.base_momentum))
        if self._seen is not None:
            self.centre.lerp_(self._seen, 1 - self.centre_momentum)
        self._seen = None
        self.progress.fill_(progress)

    def units(self, areas: Sequence[float]) -> float:
        """The teacher sees the two large crops too, without gradient."""
        return sum(areas) + sum(areas[:2]) / 3

    def trivial(self) -> dict[str, float]:
        """Of a teacher and a student without opinion."""
        uniform = math.log(len(self.centre))
        return {"loss": uniform, "teacher_entropy": uniform, "divergence": 0.0, "assignment_information": 0.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.head.layers(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Those of all embeddings, taken before the last layer, and whether the teacher tells images apart."""
        teacher = Diagnosis(
            question="Does the teacher tell images apart, neither all alike nor each at random?",
            find=lambda fit, held_out: opinions(self.beliefs, held_out),
        )
        return {**embedding_diagnoses(self, self.head.layers), "teacher": teacher}

    def beliefs(self, images: Tensor) -> Tensor:
        """The teacher's centred and sharpened distribution for images (N, C, H, W): (N, K), rows sum to 1."""
        return F.softmax((self.teacher(images).float() - self.centre) / self._sharpness(), dim=1)

    def _sharpness(self) -> float:
        first, last = self.teacher_temperature
        return first + (last - first) * min(float(self.progress) / max(self.warmup, 1e-9), 1.0)


class Head(nn.Module):
    """Three linear layers with GELU, unit length, then the cosine with every prototype: (N, D) -> (N, K)."""

    def __init__(self, wide: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        layers = [nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, features: Tensor, learn_prototypes: bool = True) -> Tensor:
        """features (N, D) -> cosines (N, K); learn_prototypes: whether the last layer gets a gradient."""
        weight = self.prototypes.weight if learn_prototypes else self.prototypes.weight.detach()
        z = F.normalize(self.layers(features).float(), dim=1)
        with torch.autocast(z.device.type, enabled=False):
            return z @ F.normalize(weight.float(), dim=1).T


def distillation_loss(targets: list[Tensor], logits: list[Tensor]) -> Tensor:
    """Cross-entropy averaged over all pairs (teacher t, student s) with s != t.

    targets: distributions (N, K) of the first crops. logits: (N, K) of every crop, in the same order.
    """
    logs = [F.log_softmax(scores, dim=1) for scores in logits]
    terms = [-(p * log).sum(dim=1).mean() for t, p in enumerate(targets) for s, log in enumerate(logs) if s != t]
    return torch.stack(terms).mean()
