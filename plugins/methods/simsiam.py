"""SimSiam: predict the projection of another view, with a stop-gradient (Chen & He 2021, arXiv:2011.10566).

BYOL without the moving average: both views pass through the same network. Stop-gradient and predictor can be switched
off, because what happens then is the paper's result. A low loss is not success here, a constant output gives -1; watch
the collapse figures, effective_rank before all (batch norm keeps up each dimension's spread), and the online kNN.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, Method, ParamGroup, StepOutput, Views
from plugins.methods.embedding_detectors import embedding_diagnoses


class SimSiam(Method):
    """SimSiam (Chen & He 2021, arXiv:2011.10566): predict the projection of the other view, which takes no gradient.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: chain that makes both views.
    hidden_dim, out_dim: widths of the projector; 2048 in the paper, sized for small encoders here.
    projector_layers: linear layers of the projector; 3 in the paper, 2 on CIFAR-10.
    predictor_hidden: hidden width of the predictor, a bottleneck of a quarter of out_dim; 512 in the paper.
    stop_gradient: whether the projection that is predicted counts as a constant; false collapses in the paper.
    predictor: whether there is one; false collapses in the paper. Then stop-gradient only halves the gradient.

    The loss is minus the mean cosine of both directions, in [-1, 1]: about 0 at random, -1 for equal vectors. The
    predictor's learning rate does not decay (section 4.2). Logs positive_similarity, the mean cosine of the projections
    of siblings.
    """

    sample_wise = True
    year = 2021
    family = "self-distillation"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 512,
        projector_layers: Literal[2, 3] = 2,
        predictor_hidden: PositiveInt = 128,
        stop_gradient: bool = True,
        predictor: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.stop_gradient = stop_gradient
        self.projector = mlp([encoder.out_dim, *[hidden_dim] * (projector_layers - 1), out_dim], last_norm=True)
        self.projector[-1] = nn.BatchNorm1d(out_dim, affine=False)  # as in the authors' code
        self.predictor = mlp([out_dim, predictor_hidden, out_dim]) if predictor else nn.Identity()

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two views of the same chain."""
        return Views(images=(self.augment(images, rng.child(0)), self.augment(images, rng.child(1))))

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch of pairs. Each view passes alone, so that batch norm sees one distribution, as in the
        authors' code."""
        z_a, z_b = (self.projector(self.encoder(view)) for view in views.images)
        similarity = mean_cosine(self.predictor(z_a), self._answer(z_b)) / 2
        similarity = similarity + mean_cosine(self.predictor(z_b), self._answer(z_a)) / 2
        return StepOutput(
            loss=-similarity,
            metrics={"positive_similarity": mean_cosine(z_a.detach(), z_b.detach())},
            embedding=z_a.detach().float(),
        )

    def parameter_groups(self) -> list[ParamGroup]:
        """The default groups, the predictor's apart."""
        predictor = {id(parameter) for parameter in self.predictor.parameters()}
        return [
            replace(group, params=[p for p in group.params if (id(p) in predictor) == constant], constant_lr=constant)
            for group in super().parameter_groups()
            for constant in (False, True)
        ]

    def trivial(self) -> dict[str, float]:
        """Of a constant output: perfect prediction, which is collapse."""
        return {"loss": -1.0, "positive_similarity": 1.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.projector(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, and whether h beats z."""
        return embedding_diagnoses(self, self.projector)

    def _answer(self, z: Tensor) -> Tensor:
        return z.detach() if self.stop_gradient else z


def mean_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the rows, in [-1, 1]; prediction, target: (N, D) of any scale."""
    with torch.autocast(prediction.device.type, enabled=False):
        return F.cosine_similarity(prediction.float(), target.float(), dim=1).mean()
