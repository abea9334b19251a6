"""MoCo v2: tell an image's key from a queue of earlier keys (He et al. 2020, arXiv:1911.05722; Chen et al. 2020,
arXiv:2003.04297).

The queue makes the number of negatives independent of the batch, the slowly moving key network keeps its entries
comparable. A positive key is the only one that comes from the present batch, so whatever marks a batch gives it away:
batch-norm statistics do, and `ghost_batch` is the guard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather, world_size
from cl_core.types import Augmentation, Diagnosis, Method, Momentum, StepOutput, Views
from plugins.methods.ema import move_average
from plugins.methods.embedding_detectors import contrastive_diagnoses
from plugins.methods.info_nce import contrast_figures, cosines, info_nce, information_bound
from plugins.methods.queue import Queue


class MoCoV2(Method):
    """MoCo v2 (Chen et al. 2020, arXiv:2003.04297): contrast with a queue of keys from a moving average.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: chain that makes both views.
    queue_size: negatives per query; 65,536 in the paper. Best below the number of images, or every query meets keys of
        its own image among its negatives.
    temperature: 0.2 in the paper, 0.07 in MoCo v1.
    momentum: of the key network, constant; 0.999 in the paper, which is too slow for runs of a few thousand steps.
    hidden_dim: width of the head's hidden layer; null takes the encoder's output width, as the paper does.
    out_dim: width of queries and keys, 128 in the paper.
    ghost_batch: images that share batch-norm statistics, 32 per GPU in the paper. Queries pass in groups of about
        this size and keys in groups that mix them, at least two of each from a batch of 4 on; this takes the place of
        the shuffling between GPUs. Running statistics are updated once per group. null lets the whole batch pass at
        once: faster, and right only for encoders without batch norm.

    Each step contrasts with the queue as the step before left it; then the keys replace the oldest entries and the key
    network moves. A fast drop of the loss with a poor online kNN means that statistics leak.
    """

    year = 2020
    family = "contrastive"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        queue_size: PositiveInt = 4096,
        temperature: PositiveFloat = 0.2,
        momentum: Momentum = 0.99,
        hidden_dim: PositiveInt | None = None,
        out_dim: PositiveInt = 128,
        ghost_batch: Annotated[int, Field(ge=2)] | None = 32,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.temperature, self.momentum, self.ghost_batch = temperature, momentum, ghost_batch
        width = hidden_dim or encoder.out_dim
        # Without batch norm, as in the paper; the head would be one more place for statistics to leak.
        self.head = nn.Sequential(nn.Linear(encoder.out_dim, width), nn.ReLU(inplace=True), nn.Linear(width, out_dim))
        # A copy keeps batch-norm buffers of its own: they follow its own forward passes and are never averaged.
        self.key_network = copy.deepcopy(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.queue = Queue(queue_size, out_dim)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> two views of the same chain: of the query and of its key."""
        return Views(images=(self.augment(images, rng.child(0)), self.augment(images, rng.child(1))))

    def forward(self, views: Views) -> StepOutput:
        """Loss of one batch of pairs, in one direction only, as in the paper."""
        query_view, key_view = views.images
        queries = self._queries(query_view)
        keys = self._keys_of(key_view)
        self._newest = gather(keys)  # for `after_update`
        similarity = queue_similarity(queries, keys, self.queue.vectors)
        own = torch.zeros(len(similarity), dtype=torch.int64, device=similarity.device)
        loss = info_nce(similarity, own, self.temperature)
        figures = contrast_figures(similarity, own) | {
            "information_bound": information_bound(loss, similarity.shape[1])
        }
        return StepOutput(loss=loss, metrics=figures, embedding=queries.detach().float())

    def after_update(self, progress: float) -> None:
        """Let the keys of this step into the queue and move the key network towards the new weights."""
        self.queue.push(self._newest)
        move_average(self.key_network, nn.Sequential(self.encoder, self.head), self.momentum)

    def units(self, areas: Sequence[float]) -> float:
        """The key passes without gradient."""
        return areas[0] + areas[1] / 3

    def trivial(self) -> dict[str, float]:
        """Of equal similarities to all candidates: log(1 + queue_size), and no query tells its key."""
        return {"loss": math.log(1 + len(self.queue.vectors)), "contrastive_accuracy": 0.0, "information_bound": 0.0}

    def project(self, images: Tensor) -> Tensor:
        """The projection z of images (N, C, H, W), on which `diagnoses` looks too."""
        z: Tensor = self.head(self.encoder(images))
        return z

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Collapse, colours as a shortcut, and whether h beats z."""
        return contrastive_diagnoses(self, self.head)

    def _queries(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_dim), neighbours in the batch passing together."""
        parts = images.tensor_split(self._groups(len(images)))
        return torch.cat([self.head(self.encoder(part)) for part in parts])

    @torch.no_grad()
    def _keys_of(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_dim), dealt like cards, so that a key's group mixes those of the queries.

        A fixed deal is as good as a drawn one, because the order of the data is drawn.
        """
        groups = self._groups(len(images))
        rows = torch.arange(len(images), device=images.device)
        order = torch.cat([rows[first::groups] for first in range(groups)])
        keys = torch.cat([self.key_network(part) for part in images[order].tensor_split(groups)])
        return keys[order.argsort()]

    def _groups(self, batch: int) -> int:
        """How many groups pass one after the other, of two images or more and a share of every process's."""
        if self.ghost_batch is None:
            return 1
        images = batch * world_size()
        return min(max(1, min(max(2, math.ceil(images / self.ghost_batch)), images // 2)), batch)


def queue_similarity(queries: Tensor, keys: Tensor, negatives: Tensor) -> Tensor:
    """Cosines of each query to its own key, in column 0, and to all negatives.

    queries, keys: (N, D) of any scale. negatives: (K, D) -> (N, 1 + K) float32, also under autocast.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = F.cosine_similarity(queries.float(), keys.float(), dim=1)
    return torch.cat([own[:, None], cosines(queries, negatives)], dim=1)
