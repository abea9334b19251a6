"""From images to views: the chain of augmentations, and what the views stage writes about it.

Which views a sample gets in an epoch is decided here once (`views_of`), for the trainer and the views stage alike. It
knows no augmentation by name and trains nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_core.data.files import write_bytes, write_json
from cl_core.data.lazy import LazyImages, decoded
from cl_core.data.materialized import MaterializedViews, write_epochs
from cl_core.data.preview import draw_preview
from cl_core.data.sampling import SampleRng, epoch_order
from cl_core.data.store import Split, to_float
from cl_core.errors import DataError
from cl_core.types import Augmentation, Method, Views

__all__ = ["Chain", "MaterializedViews", "views_of", "write_views"]

PLAN_FORMAT = "views/1"
STATISTICS_IMAGES = 1024  # images that the statistics look at
NEAR_CONSTANT_STD = 0.02  # 5 grey levels of 255: below it an image shows next to nothing

_BATCH = 256
_TIMING_REPEATS = 3


class Chain:
    """Augmentations applied one after the other; what a method receives as `augment`.

    operations: (name, augmentation) pairs; operation k draws from `rng.child(k)`, so changing the options of one leaves
    the draws of the others as they are.
    """

    def __init__(self, operations: Sequence[tuple[str, Augmentation]]) -> None:
        self.operations = tuple(operations)

    @property
    def names(self) -> list[str]:
        """Names of the operations in order."""
        return [name for name, _ in self.operations]

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:
        """images (N, C, H, W) float in [0, 1], left untouched -> (N, C, h, w) float in [0, 1]."""
        given = images
        for number, (_, operation) in enumerate(self.operations):
            # An operation may offer `overwrite`, for images that nobody but the chain has seen: it saves a copy.
            owned = not share_memory(images, given)
            change = getattr(operation, "overwrite", operation) if owned else operation
            images = change(images, rng.child(number))
        return images


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether writing into one tensor may change the other."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def views_of(method: Method, images: Tensor, seed: int, epoch: int, rows: Tensor) -> Views:
    """The views of a batch: images (N, C, H, W) in [0, 1], rows (N,) of them in their split. On the images' device."""
    with torch.no_grad():
        views = method.make_views(images, SampleRng(seed, epoch, rows.to(images.device))).map(decoded)
    if isinstance(images, LazyImages):
        images.forget()
    return views


def write_views(
    method: Method,
    chains: Mapping[str, Chain],
    split: Split,
    out: Path,
    *,
    seed: int,
    plan: Mapping[str, Any],
    preview: int,
    materialize: int,
) -> None:
    """Write plan.json, statistics.json, preview.png and timing.json to `out`, with `materialize` that many epochs too.

    plan: what the stage knows (method, chains); goes into plan.json as it is. preview: images to draw. All files but
    timing.json are the same bytes for the same input. plan.json comes last, so it never promises what is not there.
    Raises DataError for an empty split and for views that are not finite.
    """
    if len(split) == 0:
        raise DataError(f"split {split.name!r} has no images to make views of; check data.splits in params.yaml")
    maker = _Maker(method, split, seed)
    (out / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(out / "materialized", ignore_errors=True)
    write_json(out / "statistics.json", _statistics(maker))
    shown = maker.sample(preview)
    write_bytes(out / "preview.png", draw_preview(maker.images(shown), maker.views(0, shown)))
    write_json(out / "timing.json", _timing(maker, chains))
    epochs = write_epochs(maker.views, len(split), materialize, out) if materialize else None
    head = {"format": PLAN_FORMAT, "seed": seed, **plan}
    write_json(out / "plan.json", {**head, **_described(maker.views(0, shown)), "materialized": epochs})


@dataclass(frozen=True)
class _Maker:
    """Makes the views that training would make, of any rows of the split."""

    method: Method
    split: Split
    seed: int

    def images(self, rows: Tensor) -> Tensor:
        return to_float(self.split.images(rows))

    def undecoded(self, rows: Tensor) -> Tensor:
        return self.split.floats(rows, torch.device("cpu"))

    def views(self, epoch: int, rows: Tensor) -> Views:
        return views_of(self.method, self.undecoded(rows), self.seed, epoch, rows)

    def sample(self, count: int) -> Tensor:
        """Rows of up to `count` images, the same every time, in ascending order."""
        return epoch_order(len(self.split), self.seed, 0)[:count].sort().values


@dataclass
class _Moments:
    """Running figures of images (..., C, h, w), one mean and standard deviation per channel."""

    images: int = 0
    near_constant: int = 0
    pixels: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, batch: Tensor) -> None:
        """Take in (..., C, h, w); every tile counts as an image."""
        planes = batch.detach().cpu().double().flatten(-2)  # (..., C, h * w)
        planes = planes.reshape(-1, *planes.shape[-2:])
        self.images += len(planes)
        self.pixels += len(planes) * planes.shape[-1]
        self.near_constant += int((planes.std(dim=2, correction=0).amax(dim=1) < NEAR_CONSTANT_STD).sum())
        self.low, self.high = min(self.low, float(planes.min())), max(self.high, float(planes.max()))
        self.total = self.total + planes.sum(dim=(0, 2))
        self.squares = self.squares + planes.square().sum(dim=(0, 2))

    def figures(self) -> dict[str, Any]:
        """JSON; rounded, so that the order in which threads add up does not show."""
        mean = self.total / self.pixels
        std = (self.squares / self.pixels - mean.square()).clamp(min=0).sqrt()
        return {
            "mean": [round(value, 5) for value in mean.tolist()],
            "std": [round(value, 5) for value in std.tolist()],
            "range": [round(self.low, 5), round(self.high, 5)],
            "near_constant": round(self.near_constant / self.images, 5),
        }


def _described(views: Views) -> dict[str, Any]:
    """Shape per sample and type of each view, and whether there are targets."""
    images = [{"shape": list(view.shape[1:]), "dtype": str(view.dtype).removeprefix("torch.")} for view in views.images]
    return {"views": images, "targets": views.targets is not None}


def _statistics(maker: _Maker) -> dict[str, Any]:
    """Figures of the raw images and of every view over a sample."""
    raw, after = _Moments(), list[_Moments]()
    rows = maker.sample(STATISTICS_IMAGES)
    for part in rows.split(_BATCH):
        views = maker.views(0, part)
        after = after or [_Moments() for _ in views.images]
        raw.add(maker.images(part))
        for number, (moments, view) in enumerate(zip(after, views.images, strict=True), start=1):
            if not torch.isfinite(view).all():
                raise DataError(f"view {number} has values that are not finite; look for the operation that makes them")
            moments.add(view)
    return {
        "images": len(rows),
        "near_constant_below_std": NEAR_CONSTANT_STD,
        "raw": raw.figures(),
        "views": [moments.figures() for moments in after],
    }


def _timing(maker: _Maker, chains: Mapping[str, Chain]) -> dict[str, Any]:
    """Milliseconds per 1,000 images of each operation of each chain, the fastest of a few repeats.

    Decoding, where the store is encoded, counts towards the first operation.
    """
    rows = maker.sample(_BATCH)
    rng = SampleRng(maker.seed, 0, rows)
    costs = {}
    for argument, chain in chains.items():
        runs = [_step_seconds(chain, maker.undecoded(rows), rng) for _ in range(_TIMING_REPEATS)]
        fastest = [min(seconds) * 1e6 / len(rows) for seconds in zip(*runs, strict=True)]
        costs[argument] = [
            {"name": name, "ms_per_1000_images": round(cost, 3)}
            for name, cost in zip(chain.names, fastest, strict=True)
        ]
    return {"images": len(rows), "threads": torch.get_num_threads(), "chains": costs}


def _step_seconds(chain: Chain, images: Tensor, rng: SampleRng) -> list[float]:
    seconds = []
    for number, (_, operation) in enumerate(chain.operations):
        before = time.perf_counter()
        images = operation(images, rng.child(number))
        seconds.append(time.perf_counter() - before)
    return seconds
