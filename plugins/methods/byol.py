"""BYOL: predict what a slowly moving copy of the network makes of another view (Grill et al. 2020, arXiv:2006.07733).

No negatives and no loss part: the regression, the stop-gradient and the moving average are the algorithm. A low loss
is not success here, a constant output gives 0; watch the collapse figures and the online kNN.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, Method, Momentum, StepOutput, Views
from plugins.methods.ema import momentum_at, move_average
from plugins.methods.embedding_detectors import embedding_diagnoses


class BYOL(Method):
    """BYOL (Grill et al. 2020, arXiv:2006.07733): an online network predicts the projections of its moving average.

    encoder: images (N, C, H, W) -> (N, out_dim). augment_a, augment_b: the chains of the two views.
    hidden_dim, out_dim: widths of the projector; 4096 and 256 in the paper, sized for small encoders here.
    predictor_hidden: hidden width of the predictor; 4096 in the paper.
    base_momentum: tau_0 of the moving average, raised to 1 along a cosine; the paper uses 0.996 for 1000 epochs and
        0.99 for 300, 0.97 suits 40 and fewer.
    momentum_schedule: "cosine" as above, or "constant": tau stays at base_momentum. Constant 0 makes the target a copy
        of the network itself, which collapses in the paper (table 5a); 1 keeps it at its random weights.

    The loss is the sum of both directions, in [0, 8]; `direction_loss` is their mean, in [0, 4]: about 2 at random, 0
    for equal, 4 for opposite vectors. Weight decay of zero is reported to be unstable.
    """

    sample_wise = True
    year = 2020
    family = "self-distillation"

    def __init__(
        self,
        encoder: nn.Module,
        augment_a: Augmentation,
        augment_b: Augmentation,
        *,
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        predictor_hidden: PositiveInt = 512,
        base_momentum: Momentum = 0.99,
        momentum_schedule: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment_a = augment_a
        self.augment_b = augment_b
        self.base_momentum, self.momentum_schedule = base_momentum, momentum_schedule
        self.projector = mlp([encoder.out_dim, hidden_dim, out_dim])
        self.predictor = mlp([out_dim, predictor_hidden, out_dim])
        # A copy keeps batch-norm buffers of its own: they follow its own forward passes and are never averaged.
        self.target = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> one view of each chain."""
        return Views(images=(self.augment_a(images, rng.child(0)), self.augment_b(images, rng.child(1))))

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch of pairs. Each view passes alone, so that batch norm sees one distribution, as in the
        authors' code."""
        view_a, view_b = views.images
        z_a, z_b = self.projector(self.encoder(view_a)), self.projector(self.encoder(view_b))
        with torch.no_grad():
            target_a, target_b = self.target(view_a), self.target(view_b)
        ab = regression_loss(self.predictor(z_a), target_b)
        ba = regression_loss(self.predictor(z_b), target_a)
        return StepOutput(
            loss=ab + ba, metrics={"direction_loss": (ab + ba).detach() / 2}, embedding=z_a.detach().float()
        )

    def after_update(self, progress: float) -> None:
        """Move the target towards the weights the optimiser has just set; progress in (0, 1]."""
        online = nn.Sequential(self.encoder, self.projector)
        cosine = self.momentum_schedule == "cosine"
        momentum = momentum_at(progress, self.base_momentum) if cosine else self.base_momentum
        move_average(self.target, online, momentum)

    def units(self, areas: Sequence[float]) -> float:
        """Both views pass through both networks, through the target without gradient."""
        return 4 / 3 * sum(areas)

    def trivial(self) -> dict[str, float]:
        """Of a constant output: perfect prediction, which is collapse."""
        return {"loss": 0.0, "direction_loss": 0.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.projector(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, and whether h beats z."""
        return embedding_diagnoses(self, self.projector)


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the unit vectors, 2 - 2 cos, in [0, 4]; prediction, target: (N, D) of any scale."""
    with torch.autocast(prediction.device.type, enabled=False):
        cosine = F.cosine_similarity(prediction.float(), target.float(), dim=1)
    return (2 - 2 * cosine).mean()
