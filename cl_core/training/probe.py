"""The online evaluation: how good the representation is while it is being trained, on small fixed subsets.

kNN where there are labels, whether views find each other where there are none, and how much room the features fill in
either case; `measures.health` has the figures. A trend for the curves, not a result: results come
from `cl_core.evaluation`, on all images and the test split. It leaves the training state alone: batch-norm buffers and
modes are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cl_core.data.store import Split, to_float
from cl_core.measures.health import room_figures, view_figures
from cl_core.measures.knn import effective_k, knn_predict
from cl_core.types import Method, Representation, global_average

BANK, QUERIES = 2000, 1000  # images at most
NEIGHBOURS, TEMPERATURE = 200, 0.1  # of protocol knn/instdisc-v1
CLASS_PARTS = 6  # one of so many parts of a class is asked, as `contrast init` sets evaluation.knn.k
CROP = 3 / 4  # of the side: two of them, in opposite corners, share a quarter of the image
CORNERS = 4  # the first two are opposite ones
_FEWEST_HELD_OUT = 100  # images below which health is judged on training images: among few any view finds its sibling
_BATCH = 250
_NOTHING = np.zeros(0, dtype=np.int64)


class OnlineEvaluation(Protocol):
    """What the trainer evaluates now and then. queries: on how many images; its first figure is the share of them."""

    queries: int

    def __call__(self, method: Method) -> dict[str, float]:
        """Figures by the names they are logged under, the share in [0, 1] first; the method is left as it was."""


def online_evaluation(
    split: Split, validation: Split | None, device: torch.device, report: Callable[[str], None]
) -> OnlineEvaluation:
    """kNN of labelled validation images among labelled training images, or, saying so, health where one is lacking."""
    bank = _labelled(split, BANK)
    queries = split.select(_NOTHING) if validation is None else _labelled(validation, QUERIES)
    if len(bank) and len(queries):
        return OnlineKnn(bank, queries, device)
    lacking = "validation" if len(bank) else "training"
    name, judged = health_images(split, validation)
    report(
        f"no labelled {lacking} images: instead of kNN, self_match and rankme of {len(judged):,} {name} images show "
        f"how the features fare"
    )
    return OnlineHealth(judged, device)


def health_images(split: Split, validation: Split | None) -> tuple[str, Split]:
    """The images whose health is judged, QUERIES at most, and whether they are "validation" or "training" images."""
    if validation is not None and len(validation) >= _FEWEST_HELD_OUT:
        return "validation", validation.by_hash(QUERIES)
    return "training", split.by_hash(QUERIES)


class OnlineKnn:
    """Top-1 accuracy of weighted kNN, bank from the training images, queries from validation."""

    def __init__(self, bank: Split, queries: Split, device: torch.device) -> None:
        """bank, queries: labelled examples only."""
        self._bank, self._queries, self._device = bank, queries, device
        self._labels = torch.from_numpy(bank.labels).to(device)
        self._answers = torch.from_numpy(queries.labels).to(device)
        self._classes = int(max(bank.labels.max(), queries.labels.max())) + 1
        # Half of a class is no longer near: 127 neighbours of 127 digits a class hid what training had gained.
        self._k = effective_k(NEIGHBOURS, max(1, len(bank) // (CLASS_PARTS * len(np.unique(bank.labels)))))
        self.queries = len(queries)

    @torch.no_grad()
    def __call__(self, method: Method) -> dict[str, float]:
        """knn_top1: share of the queries that are classified rightly, by the average of the last stage's features; then
        `room_figures` of the queries."""
        representation = method.representation()
        with evaluating(representation):
            bank, queries = (_features(representation, split, self._device) for split in (self._bank, self._queries))
        scores = knn_predict(queries, bank, self._labels, self._classes, k=self._k, temperature=TEMPERATURE)
        return {"knn_top1": float((scores.argmax(dim=1) == self._answers).double().mean()), **room_figures(queries)}


class OnlineHealth:
    """Whether two fixed crops of an image find each other, and how much room the features fill."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self.queries = len(split)

    @torch.no_grad()
    def __call__(self, method: Method) -> dict[str, float]:
        """`view_figures` and `room_figures`, by the average of the last stage's features."""
        representation = method.representation()
        with evaluating(representation):
            whole, first, second = (_features(representation, self._split, self._device, c) for c in (None, 0, 1))
        return view_figures(first, second) | room_figures(whole)


def corner_crop(images: Tensor, corner: int) -> Tensor:
    """CROP of the sides of images (N, C, S, S), resized to S x S, bilinear.

    corner: upper left (0), lower right (1), upper right (2) or lower left (3).
    """
    size = images.shape[-1]
    side = max(1, round(CROP * size))
    top, left = (0 if corner in (0, 2) else size - side), (0 if corner in (0, 3) else size - side)
    crop = images[..., top : top + side, left : left + side]
    return interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and give every part of it its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _features(representation: Representation, split: Split, device: torch.device, corner: int | None = None) -> Tensor:
    """(N, D) of all images of a split, whole or of one of their corner crops."""
    parts = []
    for rows in torch.arange(len(split)).split(_BATCH):
        images = to_float(split.images(rows).to(device))
        stages = representation(images if corner is None else corner_crop(images, corner))
        parts.append(global_average(list(stages.values())[-1]).float())
    return torch.cat(parts)


def _labelled(split: Split, count: int) -> Split:
    return split.select(np.flatnonzero(split.labels >= 0)).by_hash(count)
