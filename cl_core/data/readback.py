"""Rows of a store in the making, read back from its shards by position, so that none need be held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_core.data.decode import decode
from cl_core.data.form import Form
from cl_core.data.shards import CHANNELS, JpegBlock, Shard, read_shard
from cl_core.data.splits import SPLITS


class Row(NamedTuple):
    """What `ShardWriter.add` takes. image: what the layout stores, pixels flat."""

    key: str
    label: int
    image: Any
    group: str | None


class Readback:
    """The rows by position among the images kept.

    shards: of each split, as in the manifest. splits: (N,) numbers into SPLITS.
    """

    def __init__(self, folder: Path, form: Form, shards: Mapping[int, list[dict[str, Any]]], splits: np.ndarray):
        self._form = form
        self._ranks = np.zeros(len(splits), dtype=np.int64)  # row within the split
        for split in range(len(SPLITS)):
            here = splits == split
            self._ranks[here] = np.arange(here.sum())
        self._splits = splits
        self._starts = {split: np.cumsum([0, *(shard["rows"] for shard in listed)]) for split, listed in shards.items()}
        self._shard = cache(lambda split, number: read_shard(folder / shards[split][number]["file"], form.layout))

    def key(self, position: int) -> str:
        """The name of the image."""
        shard, row = self._place(position)
        key: str = shard.table.column("key")[row].as_py()
        return key

    def row(self, position: int) -> Row:
        """All that is stored of the image."""
        shard, row = self._place(position)
        found = shard.table.slice(row, 1).to_pylist()[0]
        label = -1 if found["label"] is None else found["label"]
        return Row(found["key"], label, _image(shard, row), found.get("group"))

    def square(self, position: int) -> np.ndarray:
        """The (S, S, 3) uint8 pixels of the image."""
        image = _image(*self._place(position))
        size = self._form.size
        if isinstance(image, tuple):
            return np.ascontiguousarray(decode(image[0], size=size, max_pixels=self._form.max_pixels))
        pixels: np.ndarray = image.reshape(size, size, CHANNELS)
        return pixels

    def rows(self, split: int, without: np.ndarray) -> Iterator[Row]:
        """Those of a split in order, except where `without`, (N,) bool, is true."""
        return (self.row(int(position)) for position in np.flatnonzero((self._splits == split) & ~without))

    def _place(self, position: int) -> tuple[Shard, int]:
        split, rank = int(self._splits[position]), int(self._ranks[position])
        number = int(np.searchsorted(self._starts[split], rank, side="right")) - 1
        return self._shard(split, number), rank - int(self._starts[split][number])


def _image(shard: Shard, row: int) -> Any:
    for block in shard.images:
        if row < len(block):
            break
        row -= len(block)
    if isinstance(block, JpegBlock):
        return bytes(block.file(row)), int(block.heights[row]), int(block.widths[row])
    return block[row]
