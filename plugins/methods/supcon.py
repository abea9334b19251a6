"""SupCon: SimCLR that also knows the classes (Khosla et al. 2020, arXiv:2004.11362).

Not self-supervised: a label-aware companion that shows what perfect positives would bring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.distributed import gather
from cl_core.errors import ConfigError
from cl_core.types import Augmentation, StepOutput, Views
from plugins.methods.simclr import SimCLR, nearest_others, unit_vectors


class SupCon(SimCLR):
    """SupCon (Khosla et al. 2020, arXiv:2004.11362): all views of a class attract each other. Uses labels.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: chain that makes both views.
    loss: (z_a, z_b, labels) -> scalar, as the loss `supcon`; labels (N,) int64, -1 for an image without one.
    hidden_dim, out_dim, head_layers, head_norm: the projection head, as in SimCLR. The paper's head is two layers of
        2048 and 128 without batch norm.

    Logs positives, the mean number of positives of an anchor: 1, its sibling, where no two images of the batch are
    known to share a class, which makes this SimCLR. Logs positive_similarity, the mean cosine of all positive pairs,
    and class_accuracy, the share of the 2N anchors (of 1,024 of them in larger batches) whose nearest neighbour in the
    batch is a positive. Raises
    ConfigError where the loss takes no labels.
    """

    uses_labels = True
    year = 2020
    family = "supervised"
    loss: Callable[..., Tensor]

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        loss: Callable[..., Tensor],
        *,
        hidden_dim: PositiveInt | None = None,
        out_dim: PositiveInt = 128,
        head_layers: Literal[2, 3] = 2,
        head_norm: bool = True,
    ) -> None:
        _require_labels(loss)
        super().__init__(
            encoder,
            augment,
            loss,
            hidden_dim=hidden_dim,
            out_dim=out_dim,
            head_layers=head_layers,
            head_norm=head_norm,
        )

    def compare(self, embeddings: tuple[Tensor, ...], views: Views) -> StepOutput:
        """Loss of one batch of pairs."""
        z_a, z_b, labels = map(gather, (*embeddings, views.labels))
        return StepOutput(
            loss=self.loss(z_a, z_b, labels),
            metrics=class_metrics(z_a, z_b, labels),
            embedding=embeddings[0].detach().float(),
        )


@torch.no_grad()
def class_metrics(z_a: Tensor, z_b: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Positives per anchor, mean cosine of positive pairs, share of anchors nearest to a positive; z: (N, D).

    The share is that of the anchors that `nearest_others` looks at, all of them up to 512 pairs.
    """
    unit = unit_vectors(z_a, z_b)
    alone = -1 - torch.arange(len(labels), device=labels.device)
    classes = torch.where(labels < 0, alone, labels).repeat(2)
    _, of, count = classes.unique(return_inverse=True, return_counts=True)
    total = unit.new_zeros(len(count), unit.shape[1]).index_add_(0, of, unit)
    anchors, nearest = nearest_others(unit)
    positives = (count[of] - 1).float()
    return {
        "positives": positives.mean(),
        "positive_similarity": (unit * (total[of] - unit)).sum() / positives.sum(),
        "class_accuracy": (classes[anchors] == classes[nearest]).float().mean(),
    }


def _require_labels(loss: Callable[..., Tensor]) -> None:
    """Raise ConfigError where loss(z_a, z_b, labels) is no possible call."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        inspect.signature(call).bind(*["z_a", "z_b", "labels"])
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ConfigError(
            f"method 'supcon' hands (z_a, z_b, labels) to its loss, and {name} takes no labels; set loss: "
            f"{{name: supcon}}, or method: {{name: simclr}} to leave labels unused"
        ) from None
