"""NNCLR: the positive is the nearest neighbour among earlier images (Dwibedi et al. 2021, arXiv:2104.14548).

A neighbour differs from the image by more than any augmentation can make, and is of the same class the more often the
better the network. Whether it is, is not seen here, for that takes labels; see the similarities that are logged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, JointEmbedding, StepOutput, Views
from plugins.methods.embedding_detectors import contrastive_diagnoses
from plugins.methods.info_nce import cosines, paired_info_nce
from plugins.methods.queue import Queue


class NNCLR(JointEmbedding):
    """NNCLR (Dwibedi et al. 2021, arXiv:2104.14548): predict the nearest neighbour of the other view's projection.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: chain that makes both views.
    queue_size: earlier projections among which neighbours are sought; 98,304 in the paper.
    temperature: 0.1 in the paper; solo-learn takes 0.2 on CIFAR-10.
    hidden_dim, out_dim: widths of the projector, of three layers with batch norm after each; 2048 and 256 in the paper.
    predictor_hidden: hidden width of the predictor, of two layers; 4096 in the paper.

    Anchors are the neighbours, candidates the predictions of the batch from the other view; the loss is the mean of
    both directions. Equal embeddings give log(N) with N images in the batch, so there is no `trivial` loss to draw.
    The queue takes the projections of the first view after each step.

    Logs sibling_similarity, the mean cosine of the two projections of an image, and neighbour_similarity, that of an
    image's neighbour and the projection of its other view. Neighbours as near as siblings add little to augmentation;
    far ones are other kinds of image or, until the queue has filled once, its random start.
    """

    year = 2021
    family = "contrastive"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        queue_size: PositiveInt = 4096,
        temperature: PositiveFloat = 0.2,
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
        predictor_hidden: PositiveInt = 512,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.temperature = temperature
        self.projector = mlp([encoder.out_dim, hidden_dim, hidden_dim, out_dim], last_norm=True)
        self.predictor = mlp([out_dim, predictor_hidden, out_dim])
        self.queue = Queue(queue_size, out_dim)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two views of the same chain."""
        return Views(images=(self.augment(images, rng.child(0)), self.augment(images, rng.child(1))))

    def embed(self, views: Views) -> tuple[Tensor, ...]:
        """Projections of both views, then their predictions, (N, out_dim) each. A view passes alone, as in the paper's
        pseudo-code."""
        z_a, z_b = (self.projector(self.encoder(view)) for view in views.images)
        return z_a, z_b, self.predictor(z_a), self.predictor(z_b)

    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch of pairs."""
        own = embeddings[:2]
        near_a, near_b = (gather(nearest(z, self.queue.vectors)) for z in own)
        z_a, z_b = (gather(z.detach()) for z in own)
        p_a, p_b = map(gather, embeddings[2:])
        self._newest = z_a  # for `after_update`
        loss, figures = paired_info_nce([(near_a, p_b), (near_b, p_a)], self.temperature)
        neighbour_similarity = (_mean_cosine(near_a, z_b) + _mean_cosine(near_b, z_a)) / 2
        return StepOutput(
            loss=loss,
            metrics=figures
            | {"sibling_similarity": _mean_cosine(z_a, z_b), "neighbour_similarity": neighbour_similarity},
            embedding=own[0].detach().float(),
        )

    def after_update(self, progress: float) -> None:
        """Let the projections of this step into the queue."""
        self.queue.push(self._newest)

    def trivial(self) -> dict[str, float]:
        """Of a constant output: all are neighbours, none is told. Its loss depends on the batch size, see the class."""
        nothing = {"contrastive_accuracy": 0.0, "information_bound": 0.0}
        return {**nothing, "sibling_similarity": 1.0, "neighbour_similarity": 1.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.projector(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, colours as a shortcut, and whether h beats z."""
        return contrastive_diagnoses(self, self.projector)


@torch.no_grad()
def nearest(vectors: Tensor, memory: Tensor) -> Tensor:
    """The row of memory (M, D) with the highest cosine to each of vectors (N, D) of any scale: (N, D), no gradient."""
    return memory[cosines(vectors, memory).argmax(dim=1)]


@torch.no_grad()
def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(a.float(), b.float(), dim=1).mean()
