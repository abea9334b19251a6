"""The health of a trained method's features without labels, of every stage and of the embedding, and before training.

The views are the same for every experiment: the four corner crops of `training.probe`, without randomness, mirroring or
colours, so that experiments compare and no mirrored digit is another digit. An experiment's own views would flatter it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_core.data.store import Split, to_float
from cl_core.evaluation.features import frozen
from cl_core.measures.health import FIRST_INDEX, LAST_INDEX, RIDGE, health_figures
from cl_core.training.probe import CORNERS, corner_crop, health_images
from cl_core.types import Method, global_average

PROTOCOL = "health/corners-v1"
_EMBEDDING = ""  # no stage is called that
Device = torch.device | str


def health(
    trained: Method,
    untrained: Method,
    train: Split,
    validation: Split,
    *,
    batch_size: int = 500,
    device: Device = "cpu",
) -> dict[str, Any]:
    """health.json: what was looked at, and `method_health` of both methods under "trained" and "untrained".

    1,000 validation images at most; training images where fewer than 100 are held out, among which finding one's other
    view is easy. Raises DataError where a method changes while it is looked at.
    """
    name, split = health_images(train, validation)
    methods = {"trained": trained, "untrained": untrained}
    return {
        "protocol": PROTOCOL,
        "input": trained.representation().input_name,
        "split": {"training": "train"}.get(name, name),
        "images": len(split),
        "views": CORNERS,
        "ridge": RIDGE,
        "alpha_indices": [FIRST_INDEX, LAST_INDEX],
        **{state: method_health(method, split, batch_size, device) for state, method in methods.items()},
    }


def method_health(method: Method, split: Split, batch_size: int = 500, device: Device = "cpu") -> dict[str, Any]:
    """{"stages": {stage: {"dim": D, figure: value}}, "embedding": the same or None} on a split that is not empty.

    Figures: see `measures.health.health_figures`, which leaves out what is not finite or has too few dimensions.
    """
    method.to(device)
    with frozen(method, "its health was measured"), torch.no_grad():
        whole, *crops = (_features(method, split, batch_size, device, corner) for corner in (None, *range(CORNERS)))
    figures = {
        place: {"dim": values.shape[1]} | health_figures(values, torch.stack([views[place] for views in crops]))
        for place, values in whole.items()
    }
    return {"stages": {stage: figures[stage] for stage in figures if stage}, "embedding": figures.get(_EMBEDDING)}


def _features(method: Method, split: Split, batch_size: int, device: Device, corner: int | None) -> dict[str, Tensor]:
    """(N, D) of every stage and the embedding, of whole images or of one of their corner crops, on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(split)).split(batch_size):
        images = to_float(split.images(rows).to(device))
        seen = images if corner is None else corner_crop(images, corner)
        stages = method.representation()(seen)
        embedding = method.project(seen)
        for place, values in (stages if embedding is None else stages | {_EMBEDDING: embedding}).items():
            parts.setdefault(place, []).append(global_average(values).float().cpu())
    return {place: torch.cat(batches) for place, batches in parts.items()}
