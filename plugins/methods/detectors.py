"""What the detectors of shortcuts share: verdicts, twins of a method with other options, figures over a sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from cl_core.measures.logistic import linear_accuracy
from cl_core.types import Finding, Method, Sample

AnyMethod = TypeVar("AnyMethod", bound=Method)

SOLVED = 0.02  # beyond chance: less than this is no more than luck on a thousand images
BETTER = 0.98  # of the error of the best rule: what is no lower is no better
PLACE = 0.5  # of the places beyond chance: more than a single tile may tell
UNSOLVED = "the network itself answers no better than by chance"


def found(
    is_wrong: bool,
    *,
    warning: str,
    fine: str,
    figures: Mapping[str, Any],
    against: Mapping[str, Any] | None = None,
) -> Finding:
    """A finding with the sentence that fits its state; figures may be tensors of one value."""
    return Finding(
        state="warning" if is_wrong else "fine",
        text=warning if is_wrong else fine,
        figures={name: float(value) for name, value in figures.items()},
        against={name: float(value) for name, value in (against or {}).items()},
    )


def beyond(accuracy: float, chance: float) -> float:
    """Share of the questions that are answered rightly and not by luck: 0 at chance, 1 for all, negative below."""
    return (accuracy - chance) / (1 - chance)


def twin(method: AnyMethod, **attributes: object) -> AnyMethod:
    """The same network, its weights shared, with other plain attributes: options such as a gap or a guard."""
    other = copy.copy(method)
    other.__dict__.update(attributes)
    return other


def gathered(sample: Sample, look: Callable[[Sample], Tensor]) -> Tensor:
    """What `look` makes of every part of a sample, joined: rows are images."""
    return torch.cat([look(part) for part in sample.parts()])


def mean_figures(method: Method, sample: Sample) -> dict[str, float]:
    """Loss and metrics of a method on views of a sample, averaged over its images."""
    totals: dict[str, float] = {}
    for part in sample.parts():
        output = method(method.make_views(part.images, part.rng))
        for name, value in {"loss": output.loss, **output.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(part) / len(sample)
    return totals


def place(fit: Tensor, fit_cells: Tensor, held_out: Tensor, held_out_cells: Tensor, *, cells: int) -> Finding:
    """How well a linear classifier tells the cell of a tile or patch from the features of it alone; (M, D), (M,)."""
    accuracy = linear_accuracy(fit, fit_cells, held_out, held_out_cells, num_classes=cells)
    return found(
        beyond(accuracy, 1 / cells) > PLACE,
        warning="a single one tells its place mostly; look for traces of the lens or of JPEG blocks",
        fine="a single one leaves its place open",
        figures={"accuracy": accuracy},
        against={"chance": 1 / cells},
    )


def each(method: Method, patches: Tensor) -> Tensor:
    """The encoder's features of every patch: (N, T, C, p, p) -> (N, T, D)."""
    return method.encoder(patches.flatten(0, 1)).float().unflatten(0, patches.shape[:2])


def along_borders(images: Tensor, measure: Callable[..., Tensor]) -> Tensor:
    """A measure of every channel along top, bottom, left and right: (N, T, C, h, w) -> (N, T, 4 C)."""
    sides = (images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1])
    return torch.cat([measure(side, dim=-1) for side in sides], dim=2)
