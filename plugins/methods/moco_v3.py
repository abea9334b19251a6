"""MoCo v3: tell an image's key from the keys of the rest of the batch (Chen, Xie & He 2021, arXiv:2104.02057).

No queue: large batches hold enough negatives. What remains of MoCo is the moving average that makes the keys; the
predictor comes from BYOL. All candidates share their batch-norm statistics, so nothing marks the right one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, JointEmbedding, Momentum, StepOutput, Views
from plugins.methods.ema import momentum_at, move_average
from plugins.methods.embedding_detectors import contrastive_diagnoses
from plugins.methods.info_nce import paired_info_nce


class MoCoV3(JointEmbedding):
    """MoCo v3 (Chen, Xie & He 2021, arXiv:2104.02057): predict the other view's key among the keys of the batch.

    encoder: images (N, C, H, W) -> (N, out_dim). augment_a, augment_b: the chains of the two views (BYOL's in the
        paper).
    temperature: 1.0 for ResNet-50 and 0.2 for vision transformers in the paper.
    base_momentum: of the key network, raised to 1 along a cosine; 0.99 in the paper.
    hidden_dim, out_dim: widths of the projector, whose last batch norm has no scale and shift; 4096 and 256 in the
        paper.
    predictor_hidden: hidden width of the predictor; 4096 in the paper.

    The loss is the sum of both directions, each times 2 * temperature, so that the learning rate need not follow the
    temperature. Equal similarities give 4 * temperature * log(N) with N images in the batch, so there is no `trivial`
    loss to draw. To freeze the patch projection of a transformer, as the paper does, is left to the encoder.
    """

    year = 2021
    family = "contrastive"

    def __init__(
        self,
        encoder: nn.Module,
        augment_a: Augmentation,
        augment_b: Augmentation,
        *,
        temperature: PositiveFloat = 0.2,
        base_momentum: Momentum = 0.99,
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        predictor_hidden: PositiveInt = 512,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment_a, self.augment_b = augment_a, augment_b
        self.temperature, self.base_momentum = temperature, base_momentum
        self.projector = mlp([encoder.out_dim, hidden_dim, out_dim], last_norm=True)
        self.projector[-1] = nn.BatchNorm1d(out_dim, affine=False)
        self.predictor = mlp([out_dim, predictor_hidden, out_dim])
        # A copy keeps batch-norm buffers of its own: they follow its own forward passes and are never averaged.
        self.key_network = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> one view of each chain."""
        return Views(images=(self.augment_a(images, rng.child(0)), self.augment_b(images, rng.child(1))))

    def embed(self, views: Views) -> tuple[Tensor, ...]:
        """Queries of both views, then their keys, (N, out_dim) each. A view passes alone, as in the authors' code."""
        view_a, view_b = views.images
        own = self._predicted(view_a), self._predicted(view_b)
        with torch.no_grad():
            keys = self.key_network(view_a), self.key_network(view_b)
        return *own, *keys

    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch of pairs."""
        q_a, q_b, k_a, k_b = map(gather, embeddings)
        mean, figures = paired_info_nce([(q_a, k_b), (q_b, k_a)], self.temperature)  # half the sum of both directions
        loss = 2 * self.temperature * 2 * mean
        return StepOutput(loss=loss, metrics=figures, embedding=embeddings[0].detach().float())

    def after_update(self, progress: float) -> None:
        """Move the key network towards the weights the optimiser has just set; progress in (0, 1]."""
        online = nn.Sequential(self.encoder, self.projector)
        move_average(self.key_network, online, momentum_at(progress, self.base_momentum))

    def units(self, areas: Sequence[float]) -> float:
        """Both views pass through both networks, through that of the keys without gradient."""
        return 4 / 3 * sum(areas)

    def trivial(self) -> dict[str, float]:
        """Of equal similarities to all keys: no query tells its own. The loss depends on the batch, see the class."""
        return {"contrastive_accuracy": 0.0, "information_bound": 0.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.projector(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, colours as a shortcut, and whether h beats z."""
        return contrastive_diagnoses(self, self.projector)

    def _predicted(self, images: Tensor) -> Tensor:
        """The queries of a view: (N, C, H, W) -> (N, out_dim)."""
        return self.predictor(self.projector(self.encoder(images)))
