"""Online kNN: how good the representation is while it is being trained, on a small fixed subset.

A trend for the curves, not a result: results come from `cl_core.evaluation`, on all images and the test split. It
leaves the training state alone: batch-norm buffers and modes are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cl_core.data.store import Split, to_float
from cl_core.measures.knn import effective_k, knn_predict
from cl_core.types import Method, Representation, global_average

BANK, QUERIES = 2000, 1000  # images at most
NEIGHBOURS, TEMPERATURE = 200, 0.1  # of protocol knn/instdisc-v1
_BATCH = 250


class OnlineKnn:
    """Top-1 accuracy of weighted kNN, bank from the training images, queries from validation."""

    def __init__(self, bank: Split, queries: Split, device: torch.device) -> None:
        """bank, queries: labelled examples only."""
        self._bank, self._queries, self._device = bank, queries, device
        self._labels = torch.from_numpy(bank.labels).to(device)
        self._answers = torch.from_numpy(queries.labels).to(device)
        self._classes = int(max(bank.labels.max(), queries.labels.max())) + 1

    @classmethod
    def of(
        cls, split: Split, validation: Split | None, device: torch.device, report: Callable[[str], None]
    ) -> OnlineKnn | None:
        """The evaluation on fixed subsets of these splits, or None, saying why, where labels are missing."""
        bank = _labelled(split, BANK)
        queries = None if validation is None else _labelled(validation, QUERIES)
        if len(bank) == 0 or queries is None or len(queries) == 0:
            lacking = "training" if len(bank) == 0 else "validation"
            report(f"online kNN is off: there are no labelled {lacking} images")
            return None
        return cls(bank, queries, device)

    @torch.no_grad()
    def __call__(self, method: Method) -> float:
        """Share of the queries that are classified rightly, in [0, 1], by the average of the last stage's features."""
        representation = method.representation()
        with evaluating(representation):
            bank, queries = (self._features(representation, split) for split in (self._bank, self._queries))
        k = effective_k(NEIGHBOURS, len(bank))
        scores = knn_predict(queries, bank, self._labels, self._classes, k=k, temperature=TEMPERATURE)
        return float((scores.argmax(dim=1) == self._answers).double().mean())

    def _features(self, representation: Representation, split: Split) -> Tensor:
        rows = torch.arange(len(split)).split(_BATCH)
        images = (to_float(split.images(part).to(self._device)) for part in rows)
        return torch.cat([global_average(list(representation(batch).values())[-1]).float() for batch in images])


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


def _labelled(split: Split, count: int) -> Split:
    return split.select(np.flatnonzero(split.labels >= 0)).by_hash(count)
