"""SwAV: predict the cluster of one view from another (Caron et al. 2020, arXiv:2006.09882).

Clusters are learnt prototypes; the codes to predict share the images of a batch out among all of them, which is what
keeps everything from falling into one cluster.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.heads import mlp
from cl_core.types import Augmentation, Diagnosis, Method, StepOutput, UnitInterval, Views
from plugins.methods.assignment import assignment_information
from plugins.methods.embedding_detectors import assignments, embedding_diagnoses
from plugins.methods.queue import Queue


class SwAV(Method):
    """SwAV (Caron et al. 2020, arXiv:2006.09882): swapped prediction of balanced codes over prototypes.

    encoder: images (N, C, H, W) -> (N, out_dim), of any size where there are small crops. augment: chain of the two
        views that codes are made of. augment_small: chain of the small crops (half the side in the paper).
    small_crops: further views that predict the codes of the first two; 6 in the paper, here 0, without which
        `augment_small` is not used.
    prototypes: 3000 in the paper; one to two times the batch size, or fewer, unless there is a queue.
    temperature: of the predictions. epsilon: of the codes, the smaller the sharper. iterations: of Sinkhorn-Knopp.
        0.1, 0.05 and 3 in the paper.
    frozen_share: share of training in which prototypes stay as they are, so that they do not chase features that mean
        nothing yet; one epoch in the paper.
    queue_size: earlier embeddings of both views that are shared out with the batch, for batches that are small against
        the prototypes; the paper keeps 3,840 of each view where its batch is 256. 0 does without.
    queue_from: share of training from which the queue takes part, once it is full; epoch 15 in the paper.
    hidden_dim, out_dim: widths of the projector; 2048 and 128 in the paper.

    Logs prototype_perplexity, exp of the entropy of the prototypes that are nearest to the batch's first two views: 1
    where all images fall into one cluster, which is collapse, at most min(2N, prototypes); swapped_accuracy, the share
    of those views whose highest score is where the other view's code is highest; and assignment_information, what the
    predicted code of a view tells about it: 0 in that collapse and in the other, where all codes are even and the loss
    rests at log(prototypes).
    """

    year = 2020
    family = "clustering"

    progress: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        augment_small: Augmentation,
        *,
        small_crops: NonNegativeInt = 0,
        prototypes: Annotated[int, Field(ge=2)] = 256,
        temperature: PositiveFloat = 0.1,
        epsilon: PositiveFloat = 0.05,
        iterations: PositiveInt = 3,
        frozen_share: UnitInterval = 0.025,
        queue_size: NonNegativeInt = 0,
        queue_from: UnitInterval = 0.075,
        hidden_dim: PositiveInt = 512,
        out_dim: PositiveInt = 128,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment, self.augment_small, self.small_crops = augment, augment_small, small_crops
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.frozen_share, self.queue_from = frozen_share, queue_from
        self.projector = mlp([encoder.out_dim, hidden_dim, out_dim])
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, out_dim), dim=1))
        self.queue = Queue(queue_size, out_dim) if queue_size else None
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two views of one chain, then the small crops of the other."""
        large = [self.augment(images, rng.child(view)) for view in range(2)]
        small = [self.augment_small(images, rng.child(2 + view)) for view in range(self.small_crops)]
        return Views(images=(*large, *small))

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch of V views."""
        own = self._embeddings(views)  # (V, N, D)
        z = gather(own.transpose(0, 1)).transpose(0, 1)
        frozen = float(self.progress) < self.frozen_share
        # Without a gradient the optimiser skips them; a gradient of zero would still decay them and carry momentum.
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        with torch.autocast(z.device.type, enabled=False):
            scores = z @ prototypes.T  # (V, N, K)
        codes = self._codes(scores[:2])
        self._newest = z[:2].detach().flatten(0, 1)  # for `after_update`
        return StepOutput(
            loss=swapped_loss(scores, codes, self.temperature),
            metrics=cluster_figures(scores[:2], codes, self.temperature),
            embedding=own[0].detach(),
        )

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Bring the prototypes back to unit length and let the embeddings of this step into the queue."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.progress.fill_(progress)
        if self.queue is not None:
            self.queue.push(self._newest)

    def trivial(self) -> dict[str, float]:
        """Of equal scores for all prototypes: log(prototypes); and of all images in one cluster."""
        return {"loss": math.log(len(self.prototypes)), "prototype_perplexity": 1.0, "assignment_information": 0.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.projector(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Those of all embeddings, and whether the prototypes share the images out."""
        prototypes = Diagnosis(
            question="Are the images spread over many prototypes?",
            find=lambda fit, held_out: assignments(self.scores, held_out),
        )
        return {**embedding_diagnoses(self, self.projector), "prototypes": prototypes}

    def scores(self, images: Tensor) -> Tensor:
        """Cosines of images (N, C, H, W) with the prototypes, (N, K) float32."""
        z = F.normalize(self.projector(self.encoder(images)).float(), dim=1)
        return z @ F.normalize(self.prototypes, dim=1).T

    def _embeddings(self, views: Views) -> Tensor:
        """Unit vectors of all views: (V, N, D) float32. Views of one size pass together, as in the authors' code."""
        sizes = [views.images[:2], views.images[2:]]
        features = [self.encoder(torch.cat(crops)) for crops in sizes if crops]
        z = self.projector(torch.cat(features))
        return F.normalize(z.float(), dim=1).unflatten(0, (len(views.images), -1))

    @torch.no_grad()
    def _codes(self, scores: Tensor) -> Tensor:
        """The codes of the first two views, each shared out with the queue where that takes part: (2, N, K)."""
        batch = scores.shape[1]
        if self.queue is not None and self.queue.is_full and float(self.progress) >= self.queue_from:
            with torch.autocast(scores.device.type, enabled=False):
                memory = self.queue.vectors @ self.prototypes.T
            scores = torch.cat([scores, memory.expand(2, -1, -1)], dim=1)
        return torch.stack([sinkhorn(view, self.epsilon, self.iterations)[:batch] for view in scores])


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes that share N samples out among K prototypes about equally (Cuturi 2013, arXiv:1306.0895).

    scores: (N, K) float32 of any size -> (N, K), rows sum to 1, columns to N / K the nearer the more iterations. It
    alternates between columns and rows of exp(scores / epsilon), in logarithms, so that nothing overflows and no
    column vanishes.
    """
    logs = scores / epsilon
    for _ in range(iterations):
        logs = logs.log_softmax(dim=0).log_softmax(dim=1)
    return logs.exp()


def swapped_loss(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of softmax(scores / temperature) of each view under the codes of each other view.

    scores: (V, N, K). codes: (T, N, K) of the first T of these views, rows sum to 1. No view predicts its own code.
    """
    predicted = (scores / temperature).log_softmax(dim=2)
    entropies = -(codes[:, None] * predicted).sum(dim=3).mean(dim=2)  # (T, V)
    own = torch.eye(*entropies.shape, dtype=torch.bool, device=scores.device)
    return entropies.masked_fill(own, 0).sum() / (entropies.numel() - len(codes))


@torch.no_grad()
def cluster_figures(scores: Tensor, codes: Tensor, temperature: float) -> dict[str, Tensor]:
    """Perplexity of the nearest prototypes, how often they are those of the other view's code, and what the predicted
    codes tell about the views; scores and codes (2, N, K)."""
    nearest = scores.argmax(dim=2)  # (2, N)
    shares = F.one_hot(nearest.flatten(), scores.shape[2]).float().mean(dim=0)
    return {
        "prototype_perplexity": torch.special.entr(shares).sum().exp(),
        "swapped_accuracy": (nearest == codes.flip(0).argmax(dim=2)).float().mean(),
        "assignment_information": assignment_information((scores / temperature).softmax(dim=2).flatten(0, 1)),
    }
