"""SimCLR: two augmented views of an image must find each other in the batch (Chen et al. 2020, arXiv:2002.05709).

The contrastive loss is a part of its own; this file holds what makes the algorithm: two views of one chain, one pass
through encoder and projection head, the encoder's output kept and the projection thrown away. SimCLR v2 (Chen et al.
2020, arXiv:2006.10029) is the same objective with a deeper head, of which fine-tuning keeps the first layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.errors import ConfigError
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, FineTuneModel, JointEmbedding, StepOutput, Views
from plugins.methods.embedding_detectors import contrastive_diagnoses
from plugins.methods.info_nce import ANCHORS_AT_ONCE, information_bound, spread_rows

_MODULES_PER_LAYER = 3  # of the head but for its last layer: linear, batch norm, ReLU


class SimCLR(JointEmbedding):
    """SimCLR (Chen et al. 2020, arXiv:2002.05709): agreement of two views, contrasted with the rest of the batch.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: chain that makes both views. loss: (z_a, z_b) -> scalar.
    hidden_dim: width of the projection head's hidden layers; null takes the encoder's output width, as the paper does.
    out_dim: width of the projection on which the loss acts.
    head_layers: linear layers of the head; 2 in the paper, 3 in SimCLR v2 (arXiv:2006.10029).
    head_norm: batch norm after the head's last layer too, as in the authors' released code.
    fine_tune_layer: head layer that fine-tuning starts from; 0 keeps the encoder alone, as SimCLR does, 1 its first
        layer with norm and ReLU too, as v2 does (arXiv:2006.10029, section 2). Smaller than head_layers.

    Logs positive_similarity, the mean cosine of siblings, and contrastive_accuracy, the share of the 2N anchors (of
    1,024 of them in larger batches) whose nearest neighbour in the batch is their sibling. Logs information_bound,
    log(candidates) less the loss, where the loss says among how many candidates an anchor chooses, as `info_nce` and
    `nt_xent` do. There is no `trivial` loss or accuracy to draw: that of a constant encoder depends on the batch size
    (log(2N - 1) for NT-Xent) and on the loss;
    its positive_similarity is 1.
    """

    year = 2020
    family = "contrastive"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        hidden_dim: PositiveInt | None = None,
        out_dim: PositiveInt = 128,
        head_layers: Literal[2, 3] = 2,
        head_norm: bool = True,
        fine_tune_layer: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if fine_tune_layer >= head_layers:
            raise ConfigError(
                f"method.fine_tune_layer {fine_tune_layer} must be smaller than method.head_layers {head_layers}: the "
                f"last layer only makes the projection for the loss; use at most {head_layers - 1}"
            )
        self.encoder = encoder
        self.augment = augment
        self.loss = loss
        self.fine_tune_layer = fine_tune_layer
        self.width = hidden_dim or encoder.out_dim
        self.head = mlp([encoder.out_dim, *[self.width] * (head_layers - 1), out_dim], last_norm=head_norm)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two views of the same chain."""
        return Views(images=(self.augment(images, rng.child(0)), self.augment(images, rng.child(1))))

    def embed(self, views: Views) -> tuple[Tensor, ...]:
        """The projections of both views, (N, out_dim) each."""
        # One pass over both views, so that batch norm sees them together, as in the authors' code.
        return self.head(self.encoder(torch.cat(views.images))).chunk(2)

    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch of pairs."""
        z_a, z_b = map(gather, embeddings)
        loss, metrics = self.loss(z_a, z_b), contrastive_metrics(z_a, z_b)
        if self._counts_candidates:
            metrics["information_bound"] = information_bound(loss, self.loss.candidates(len(z_a)))
        return StepOutput(loss=loss, metrics=metrics, embedding=embeddings[0].detach().float())

    def fine_tune_model(self) -> FineTuneModel:
        """The encoder under the head's first `fine_tune_layer` layers, each with its norm and ReLU."""
        layers = self.fine_tune_layer
        if layers == 0:
            return super().fine_tune_model()
        name = "encoder + head layer 1" if layers == 1 else f"encoder + head layers 1 to {layers}"
        kept = self.head[: layers * _MODULES_PER_LAYER]
        return FineTuneModel(self.representation(), self.width, head=kept, name=name)

    def trivial(self) -> dict[str, float]:
        """Of a constant encoder: siblings agree perfectly. Its loss depends on the batch size, see the class."""
        return {"positive_similarity": 1.0} | ({"information_bound": 0.0} if self._counts_candidates else {})

    @property
    def _counts_candidates(self) -> bool:
        return hasattr(self.loss, "candidates")

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.head(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, colours as a shortcut, and whether h beats z."""
        return contrastive_diagnoses(self, self.head)


@torch.no_grad()
def contrastive_metrics(z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
    """Mean cosine of siblings in [-1, 1], and share of anchors whose nearest candidate is the sibling; z: (N, D).

    The share is that of the anchors that `nearest_others` looks at, all of them up to 512 pairs.
    """
    unit = unit_vectors(z_a, z_b)
    anchors, nearest = nearest_others(unit)
    return {
        "positive_similarity": (unit[: len(z_a)] * unit[len(z_a) :]).sum(dim=1).mean(),
        "contrastive_accuracy": (nearest == (anchors + len(z_a)) % len(unit)).float().mean(),
    }


def unit_vectors(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Two views (N, D) of any scale below each other at length 1: (2N, D) float32."""
    return F.normalize(torch.cat([z_a, z_b]).float(), dim=1)


@torch.no_grad()
def nearest_others(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spread rows of (M, D) unit vectors, at most MAX_ANCHORS, and the row most similar to each but itself.

    To look at all would cost as much as half of the loss; of 1,024 a share has a standard error of 0.016 or less.
    """
    anchors = spread_rows(len(unit), unit.device)
    found = []
    with torch.autocast(unit.device.type, enabled=False):
        for rows in anchors.split(ANCHORS_AT_ONCE):
            similarity = (unit[rows] @ unit.T).scatter_(1, rows[:, None], -torch.inf)
            found.append(similarity.argmax(dim=1))
    return anchors, torch.cat(found)
