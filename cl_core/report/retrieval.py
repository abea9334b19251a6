"""Nearest training images of a few test images: what an encoder takes for similar, for the eye rather than for a table.

Reads features and images, computes no accuracy that anybody should quote: the queries are few and chosen by hash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cl_core.data.store import Split, Store
from cl_core.errors import DataError
from cl_core.evaluation.features import Features

THUMBNAIL = 96  #: pixels; larger images are reduced to it, smaller ones embedded as they are


@dataclass(frozen=True)
class Picture:
    """An image of the store: its key, its class name ("" where unlabelled) and a PNG."""

    key: str
    label: str
    png: bytes


@dataclass(frozen=True)
class Neighbour:
    """A training image near a query. similarity: cosine. same: of the query's class, None where either has none."""

    picture: Picture
    similarity: float
    same: bool | None


@dataclass(frozen=True)
class Retrieval:
    """Queries with their neighbours, nearest first. split: where the queries come from. reason: why there are none."""

    stage: str = ""
    split: str = ""
    rows: tuple[tuple[Picture, tuple[Neighbour, ...]], ...] = ()
    reason: str = ""

    @property
    def judged(self) -> list[bool]:
        """For every neighbour of known class, whether it is the query's."""
        return [n.same for _, neighbours in self.rows for n in neighbours if n.same is not None]


def retrieve(store: Store, embed: Path, remake: str, *, queries: int = 8, neighbours: int = 8) -> Retrieval:
    """Look up the nearest training images of some test images (validation images where there is no test split).

    embed: folder of the experiment's features. remake: the command that makes them, for messages.
    Similarity is the cosine of the last stage's average features. Returns a Retrieval with a `reason` where features
    are missing. Raises DataError where they belong to other images than the store's.
    """
    asking = next((name for name in ("test", "validation") if (embed / f"{name}.safetensors").is_file()), None)
    if asking is None or not (embed / "train.safetensors").is_file():
        return Retrieval(reason=f"there are no features; run `{remake}`")
    bank, queried = Features.load(embed / "train.safetensors"), Features.load(embed / f"{asking}.safetensors")
    if not len(bank.keys) or not len(queried.keys):
        return Retrieval(reason=f"the {asking} or the training split is empty")
    stage = list(bank.average)[-1]
    chosen = choose_queries(queried.keys, queried.labels.tolist(), queries)
    values, found = nearest(queried.average[stage][chosen], bank.average[stage], neighbours)
    asked = _pictures(store, store.split(asking), queried, chosen, remake)
    answers = _pictures(store, store.split("train"), bank, sorted(set(found.flatten().tolist())), remake)
    rows = tuple(
        (asked[row], tuple(_neighbour(asked[row], answers[k], v) for k, v in zip(near, value, strict=True)))
        for row, near, value in zip(chosen, found.tolist(), values.tolist(), strict=True)
    )
    return Retrieval(stage, asking, rows)


def choose_queries(keys: Sequence[str], labels: Sequence[int], count: int) -> list[int]:
    """Rows of up to `count` examples: smallest key hash first, one per class in turn, sorted by class."""
    ranked: dict[int, list[int]] = {}
    for row in sorted(range(len(keys)), key=lambda row: hashlib.sha256(keys[row].encode()).digest()):
        ranked.setdefault(labels[row], []).append(row)
    turns = [(turn, label, row) for label, rows in ranked.items() for turn, row in enumerate(rows)]
    picked = sorted(turns)[:count]
    return [row for _, row in sorted((label, row) for _, label, row in picked)]


def nearest(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity of the k nearest rows of the bank, and which they are: (Q, k) float32 and (Q, k) int64.

    query: (Q, D), bank: (M, D), any float type and scale. k is at most M. Equal similarities come in bank order.
    """
    similarity = normalize(query.float(), dim=1) @ normalize(bank.float(), dim=1).T
    values, rows = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows[:, :k]


def png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG whose longer side is at most THUMBNAIL."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _neighbour(query: Picture, picture: Picture, similarity: float) -> Neighbour:
    known = bool(query.label and picture.label)
    return Neighbour(picture, similarity, query.label == picture.label if known else None)


def _pictures(store: Store, split: Split, features: Features, rows: list[int], remake: str) -> Mapping[int, Picture]:
    positions = {key: row for row, key in enumerate(split.keys)}
    unknown = next((features.keys[row] for row in rows if features.keys[row] not in positions), None)
    if unknown is not None:
        raise DataError(
            f"the features hold {unknown!r}, which is no {split.name} image of the store; "
            f"make them again with `{remake}`"
        )
    where = torch.tensor([positions[features.keys[row]] for row in rows])
    images = split.images(where).permute(0, 2, 3, 1).cpu().numpy()
    names = [store.classes[label] if label >= 0 else "" for label in features.labels[rows].tolist()]
    return {
        row: Picture(features.keys[row], name, png(image)) for row, name, image in zip(rows, names, images, strict=True)
    }
