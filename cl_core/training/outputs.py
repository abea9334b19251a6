"""What a finished pretraining leaves: encoder, whole method, card, curves, figures, times, the method's own pictures.

Writes files; trains nothing. All but timing.json are the same bytes for the same run.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cl_core.data.files import write_bytes, write_json
from cl_core.data.sampling import SampleRng
from cl_core.data.store import Split, to_float
from cl_core.training.probe import evaluating
from cl_core.training.tracking import curves_csv
from cl_core.types import Method, Panel

PANEL_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run tells of itself: facts, images seen (again in each epoch), `Views.areas`, logged rows, times.

    untrained: online figures from before the first step. remarks: {"step", "text"} of what observers said.
    """

    training: Mapping[str, Any]
    images_seen: int
    areas: Sequence[float]
    rows: Sequence[Mapping[str, float]]
    untrained: Mapping[str, float]
    remarks: Sequence[Mapping[str, Any]]
    timing: Mapping[str, float]


def write_results(
    method: Method,
    result: Result,
    out: Path,
    *,
    card: Mapping[str, Any],
    split: Split,
    validation: Split | None,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that other stages and the report read; returns the figures of metrics.json.

    Those are the last logged row and, as "untrained", the online figures from before the first step.
    """
    metrics: dict[str, Any] = finite(result.rows[-1]) if result.rows else {}
    metrics |= {"untrained": finite(result.untrained)} if result.untrained else {}
    sample = to_float(split.images(torch.arange(min(2, len(split)))).to(device))
    training = {**result.training, "final": metrics, "remarks": list(result.remarks)}
    facts = {**card, "training": training, **leaderboard_facts(method, result)}
    write_weights(method.representation(), out / "encoder.safetensors")
    write_weights(method, out / "method.safetensors")
    write_card(method, sample, out / "encoder.json", facts)
    write_curves(result.rows, out / "curves.csv")
    write_panels(method, validation, out / "panels", seed, device)
    write_json(out / "timing.json", result.timing)
    write_json(out / "metrics.json", metrics)
    return metrics


def leaderboard_facts(method: Method, result: Result) -> dict[str, Any]:
    """What kind of method this is and what it has cost; see `Method.units`."""
    units = method.units(result.areas) if method.trains else 0.0
    return {
        "year": method.year,
        "family": method.family,
        "yardstick": method.uses_labels or not method.trains,
        "units_per_image": units,
        "units": units * result.images_seen,
    }


def write_weights(module: nn.Module, path: Path) -> None:
    """Weights and buffers as safetensors: float32 whatever they were trained in, contiguous, names as they are."""
    state = {name: _plain(tensor) for name, tensor in module.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))


def write_card(method: Method, sample: Tensor, path: Path, card: Mapping[str, Any]) -> None:
    """encoder.json: what was trained how, the shape of every stage's features, and what a constant output would score.

    sample: (N, C, H, W) images in [0, 1], on the method's device.
    """
    representation = method.representation()
    with evaluating(representation), torch.no_grad():
        stages = {name: list(features.shape[1:]) for name, features in representation(sample).items()}
        width = representation.pooled(sample).shape[1]
    facts = {"input": representation.input_name, "image": list(sample.shape[1:]), "stages": stages, "out_dim": width}
    write_json(path, {**card, **facts, "trivial": finite(method.trivial())})


def write_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """curves.csv."""
    write_bytes(path, curves_csv(rows).encode())


def write_panels(method: Method, split: Split | None, folder: Path, seed: int, device: torch.device) -> None:
    """panels.json, an empty list if the method draws none, and its pictures, drawn from a few images of the split."""
    shutil.rmtree(folder, ignore_errors=True)  # those of an earlier run
    panels: list[Panel] = []
    if split is not None and len(split) > 0:
        chosen = split.by_hash(PANEL_IMAGES)
        rows = torch.arange(len(chosen), device=device)
        with evaluating(method), torch.no_grad():
            panels = method.panels(to_float(chosen.images(rows.cpu()).to(device)), SampleRng(seed, 0, rows))
    names = [f"panel-{number}.png" for number in range(len(panels))]
    for name, panel in zip(names, panels, strict=True):
        write_bytes(folder / name, _png(panel.image))
    listed = zip(names, panels, strict=True)
    write_json(
        folder / "panels.json",
        [{"title": panel.title, "caption": panel.caption, "file": name} for name, panel in listed],
    )


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """The figures with null for what JSON cannot hold."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _plain(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    # A clone of its own: safetensors refuses tensors that share memory, as tied weights do.
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
