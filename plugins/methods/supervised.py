"""Supervised classification, the yardstick of the others: the same encoder, images, views and steps, but with labels.

Cross-entropy on a linear layer, as for the residual networks of He et al. 2016 (arXiv:1512.03385). Without it no
figure of a self-supervised method can be judged.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.distributed import gather
from cl_core.errors import ConfigError
from cl_core.types import Augmentation, Method, StepOutput, Views

UNLABELLED = -1


class Supervised(Method):
    """Supervised baseline (He et al. 2016, arXiv:1512.03385): cross-entropy of a linear layer on the features.

    encoder: images (N, C, H, W) -> (N, out_dim). augment: the chain; padded crop and flip in the paper. With the chain
    of a self-supervised method it separates what that method learns from what its augmentations teach.
    classes: number of classes of the data, 10 for CIFAR-10 and the digits. Too few is an error; too many costs no more
        than scores that learn to stay low.
    label_smoothing: share of each target that is spread evenly over all classes (Szegedy et al. 2016,
        arXiv:1512.00567, section 7, with 0.1); 0, as in He et al., spreads none.

    Images without label (-1) enter the statistics of batch norm, but neither loss nor accuracy; every batch needs at
    least one label. Raises ConfigError for a batch without labels and for a label that `classes` leaves no room for.
    """

    uses_labels = True
    family = "supervised"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        classes: Annotated[int, Field(ge=2)] = 10,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(encoder.out_dim, classes)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> one view."""
        return Views(images=(self.augment(images, rng.child(0)),))

    def forward(self, views: Views) -> StepOutput:
        """Mean cross-entropy over the labelled images; views.labels: (N,) int64, -1 for none."""
        logits = gather(self.classifier(self.encoder(views.images[0])).float())
        labels = self._checked(None if views.labels is None else gather(views.labels))
        loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing)
        right = (logits.argmax(dim=1) == labels).sum()  # never true of -1
        return StepOutput(loss=loss, metrics={"accuracy": right / (labels != UNLABELLED).sum()})

    def trivial(self) -> dict[str, float]:
        """Of equal scores for all classes, with any smoothing: log(classes), and chance where classes are balanced."""
        return {"loss": math.log(self.classes), "accuracy": 1 / self.classes}

    def _checked(self, labels: Tensor | None) -> Tensor:
        # Asked in every step, though a GPU has to wait for the answer: an index out of range would kill its context.
        highest = UNLABELLED if labels is None else int(labels.max())
        if labels is None or highest == UNLABELLED:
            raise ConfigError(
                "method supervised got a batch in which no image has a label, so there is nothing to learn; name a "
                "data.source with class labels, or, where only few images have one, raise train.batch_size"
            )
        if highest >= self.classes:
            raise ConfigError(
                f"method.classes {self.classes} leaves no room for label {highest}, counted from 0; set "
                f"method.classes to the number of classes of the data, here at least {highest + 1}"
            )
        return labels
