"""Barlow Twins (arXiv:2103.03230) and VICReg (arXiv:2105.04906): two views agree, dimensions share nothing.

Without negatives, stop-gradient, predictor or moving average: what keeps them from collapsing is the loss alone, a part
of its own. So the two are one method, two chains and a wide expander, and differ in the figures that their losses move.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, JointEmbedding, StepOutput, Views
from plugins.methods.embedding_detectors import embedding_diagnoses


class RedundancyReduction(JointEmbedding):
    """What Barlow Twins and VICReg have in common: all but their figures."""

    def __init__(
        self,
        encoder: nn.Module,
        augment_a: Augmentation,
        augment_b: Augmentation,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        expander_dim: PositiveInt = 1024,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment_a = augment_a
        self.augment_b = augment_b
        self.loss = loss
        self.expander = mlp([encoder.out_dim, expander_dim, expander_dim, expander_dim])

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> one view of each chain."""
        return Views(images=(self.augment_a(images, rng.child(0)), self.augment_b(images, rng.child(1))))

    def embed(self, views: Views) -> tuple[Tensor, ...]:
        """The expanded views, (N, expander_dim) each. A view passes alone, so that batch norm sees one distribution,
        as in the authors' code."""
        return tuple(self.expander(self.encoder(view)) for view in views.images)

    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch of pairs."""
        z_a, z_b = map(gather, embeddings)
        still_a, still_b = z_a.detach().float(), z_b.detach().float()
        with torch.autocast(still_a.device.type, enabled=False):
            figures = self.figures(still_a, still_b)
        return StepOutput(loss=self.loss(z_a, z_b), metrics=figures, embedding=embeddings[0].detach().float())

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.expander(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, and whether h beats z."""
        return embedding_diagnoses(self, self.expander)

    @staticmethod
    @abstractmethod
    def figures(z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """Return scalars to log that the method's own loss drives; z_a, z_b: (N, D) float32 without gradient."""


class BarlowTwins(RedundancyReduction):
    """Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): make the cross-correlation of two views the identity.

    encoder: images (N, C, H, W) -> (N, out_dim). augment_a, augment_b: the chains of the two views.
    loss: (z_a, z_b) -> scalar; the loss `barlow_twins` is what makes this the paper's method.
    expander_dim: width of all three layers of the expander; 8192 in the paper, where wider was better throughout.

    Logs agreement, the mean correlation of a dimension in one view with itself in the other, in [-1, 1], which should
    rise to 1, and redundancy, the root mean square of the correlations of different dimensions, in [0, 1], which should
    stay low (chance alone gives 1 / sqrt(batch size)). Both are 0 for a constant encoder.
    """

    year = 2021
    family = "redundancy reduction"

    @staticmethod
    def figures(z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """Mean of the cross-correlation's diagonal, root mean square of the rest; z_a, z_b: (N, D)."""
        unit_a, unit_b = (F.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
        correlation = unit_a.T @ unit_b / len(z_a)  # (D, D)
        agreement = correlation.diagonal()
        return {"agreement": agreement.mean(), "redundancy": off_diagonal_mean_square(correlation).sqrt()}

    def trivial(self) -> dict[str, float]:
        """Of a constant encoder: nothing varies, so nothing correlates. Its loss is the loss part's own."""
        return {"agreement": 0.0, "redundancy": 0.0}


class VICReg(RedundancyReduction):
    """VICReg (Bardes et al. 2022, arXiv:2105.04906): invariance, with variance and covariance held per view.

    encoder: images (N, C, H, W) -> (N, out_dim). augment_a, augment_b: the chains of the two views.
    loss: (z_a, z_b) -> scalar; the loss `vicreg` is what makes this the paper's method.
    expander_dim: width of all three layers of the expander; 8192 in the paper.

    Logs distance, the mean squared distance of siblings per dimension, which should fall; deviation, the mean standard
    deviation of a dimension, which should reach 1; covariance, the root mean square of the covariances of different
    dimensions, which should stay low. All are 0 for a constant encoder.
    """

    year = 2022
    family = "redundancy reduction"

    @staticmethod
    def figures(z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """Of both views together, before weights and hinge; z_a, z_b: (N, D)."""
        covariances = torch.stack([z.T.cov() for z in (z_a, z_b)])  # (2, D, D)
        return {
            "distance": F.mse_loss(z_a, z_b),
            "deviation": covariances.diagonal(dim1=1, dim2=2).sqrt().mean(),
            "covariance": off_diagonal_mean_square(covariances).sqrt(),
        }

    def trivial(self) -> dict[str, float]:
        """Of a constant encoder. Its loss is the loss part's own (24.75 for `vicreg` with the paper's weights)."""
        return {"distance": 0.0, "deviation": 0.0, "covariance": 0.0}


def off_diagonal_mean_square(matrices: Tensor) -> Tensor:
    """Mean over all (..., D, D) entries that are not on a diagonal; 0 for D = 1."""
    dim = matrices.shape[-1]
    diagonal = torch.eye(dim, dtype=torch.bool, device=matrices.device)
    count = matrices.numel() - matrices.numel() // dim
    return matrices.masked_fill(diagonal, 0).square().sum() / max(count, 1)
