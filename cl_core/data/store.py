"""The dataset as the rest of the pipeline sees it: splits of keys, labels and images.

Reads what `data.ingest` wrote, memory-mapped; never writes. Of the layout `decoded` images are copied, of `encoded`
they are decoded when asked for. Opening checks that every shard is there with its rows; `verify` also reads all bytes.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cl_core.data.files import sha256_bytes, sha256_file
from cl_core.data.jpeg import JpegFiles
from cl_core.data.lazy import LazyImages
from cl_core.data.memory import expect_random_reads, fetch, usable_memory
from cl_core.data.shards import FORMAT, REMEDY, JpegBlock, Layout, Shard, read_shard
from cl_core.data.splits import SPLITS, hash_words
from cl_core.errors import DataError

Rows = Tensor | np.ndarray

_RESIDENT = 0.5  # of the memory: shards of up to this share are expected to stay in it
_COPIED = 4096  # images copied to a device at a time


class Store:
    """A folder of Arrow shards with its manifest.

    manifest: as ingest wrote it. digest: sha256 of manifest.json, which names the sha256 of each shard, so equal
    digests mean equal data.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], digest: str) -> None:
        self.path, self.manifest, self.digest = path, manifest, digest
        self.image_size: int = manifest["image_size"]
        self.channels: int = manifest["channels"]
        self.layout: Layout = manifest["layout"]
        self.classes: list[str] = manifest["classes"]
        self._splits = {name: self._read_split(name) for name in manifest["splits"]}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Map the store at `path`. Raises DataError where it is missing, damaged or of another format version."""
        try:
            data = (path / "manifest.json").read_bytes()
        except OSError:
            raise DataError(
                f"{path} holds no store (it has no manifest.json); run `contrast run` to ingest the images, or "
                "`dvc pull` to fetch the store"
            ) from None
        return cls(path, _parsed(data, path / "manifest.json"), sha256_bytes(data))

    @property
    def has_labels(self) -> bool:
        """Whether train holds labelled images of at least two classes, without which nothing can be evaluated."""
        counts = self.manifest["splits"]["train"]["class_counts"].values()
        return sum(count > 0 for count in counts) >= 2

    def split(self, name: str) -> Split:
        """The split of that name, empty where it has no images. Raises DataError unless it is one of SPLITS."""
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}")
        return self._splits[name]

    def verify(self) -> None:
        """Read every byte. Raises DataError naming the shards whose sha256 is not the manifest's."""
        damaged = [
            shard["file"]
            for split in self.manifest["splits"].values()
            for shard in split["shards"]
            if sha256_file(self.path / shard["file"]) != shard["sha256"]
        ]
        if damaged:
            raise DataError(f"the store {self.path} is damaged in {', '.join(damaged)}; {REMEDY}")

    def _read_split(self, name: str) -> Split:
        shards = []
        for listed in self.manifest["splits"][name]["shards"]:
            path = self.path / listed["file"]
            shards.append(read_shard(path, self.layout))
            self._check_shard(shards[-1], listed["rows"], path)
        kind = EncodedSplit if self.layout == "encoded" else Split
        return kind(name, shards, image_size=self.image_size, channels=self.channels)

    def _check_shard(self, shard: Shard, rows: int, path: Path) -> None:
        if shard.table.num_rows != rows:
            raise DataError(f"the shard {path} has {shard.table.num_rows} rows, the manifest says {rows}; {REMEDY}")
        width = self.image_size**2 * self.channels
        if self.layout == "decoded" and any(block.shape[1] != width for block in shard.images):
            raise DataError(f"the shard {path} does not hold {self.image_size} x {self.image_size} images; {REMEDY}")


class Split:
    """Some images of a store, in a fixed order; row i is key i, label i and image i.

    image_size: H = W. channels: C = 3. is_encoded: whether images are decoded when they are asked for.
    """

    is_encoded = False

    def __init__(
        self, name: str, shards: list[Shard], *, image_size: int, channels: int, chosen: np.ndarray | None = None
    ) -> None:
        self.name, self.image_size, self.channels = name, image_size, channels
        self._shards = shards
        self._blocks = [block for shard in shards for block in shard.images]
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        self._chosen = chosen  # rows of the shards, None for all
        self._scattered = False  # whether rows are asked for before they are read; see `expect_random_reads`
        self._pixels: Tensor | None = None  # (N, H, W, C) uint8 on the device that `on` copied them to

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._chosen is None else len(self._chosen)

    @cached_property
    def keys(self) -> list[str]:
        """The names of the examples, N of them."""
        keys: list[str] = self._column("key").to_pylist() if self._shards else []
        return keys if self._chosen is None else [keys[row] for row in self._chosen]

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 indices into the store's classes, -1 where there is no label."""
        if not self._shards:
            return np.zeros(0, dtype=np.int64)
        labels = self._column("label").fill_null(-1).to_numpy().astype(np.int64)
        return labels if self._chosen is None else labels[self._chosen]

    @cached_property
    def groups(self) -> np.ndarray | None:
        """(N,) int64, equal where the source names the same group (patient, video); None where it names none.

        An example without a group is one of its own. Numbers are those of one split and its selections.
        """
        if not self._shards or "group" not in self._shards[0].table.column_names:
            return None
        named = self._column("group").combine_chunks().dictionary_encode()
        numbers = named.indices.fill_null(-1).to_numpy().astype(np.int64)
        alone = np.flatnonzero(numbers < 0)
        numbers[alone] = len(named.dictionary) + np.arange(len(alone))
        return numbers if self._chosen is None else numbers[self._chosen]

    def images(self, rows: Rows) -> Tensor:
        """rows: (M,) int64 in [0, N) -> (M, C, H, W) uint8 in channels-last memory, a copy of the mapped pixels.

        Raises IndexError for a row that is not there.
        """
        blocks, rows = self._places(rows)
        pixels = np.empty((len(rows), self.image_size**2 * self.channels), dtype=np.uint8)
        for number in np.unique(blocks):
            here = np.flatnonzero(blocks == number)
            pixels[here] = self._blocks[number][rows[here]]
        shape = (len(rows), self.image_size, self.image_size, self.channels)
        return torch.from_numpy(pixels.reshape(shape)).permute(0, 3, 1, 2)

    def floats(self, rows: Rows, device: torch.device) -> Tensor:
        """The images as float32 in [0, 1] on a device, for views to be made of; perhaps not yet decoded, see `lazy`."""
        if self._pixels is not None and self._pixels.device.type == device.type:
            return to_float(self._pixels[moved(torch.as_tensor(rows), device)].permute(0, 3, 1, 2))
        return to_float(moved(self.images(rows), device))

    def expect_random_reads(self) -> None:
        """Prepare for rows in random order: of shards that do not fit into memory only they are read.

        The system reads up to megabytes around a row, which pays where they stay in memory and else throws out others.
        """
        mapped = [self._bytes(block) for block in self._blocks]
        self._scattered = sum(each.nbytes for each in mapped) > _RESIDENT * usable_memory()
        if self._scattered:
            for each in mapped:
                expect_random_reads(each)

    def on(self, device: torch.device) -> Split:
        """The same split with its pixels copied to a device, where `floats` gathers them; what is selected has none."""
        twin = copy.copy(self)
        twin._pixels = torch.empty((len(self), *[self.image_size] * 2, self.channels), dtype=torch.uint8, device=device)
        for rows in torch.arange(len(self)).split(_COPIED):
            twin._pixels[rows[0] : rows[-1] + 1] = self.images(rows).permute(0, 2, 3, 1)
        return twin

    def by_hash(self, count: int) -> Split:
        """The `count` examples of smallest key hash, all if there are fewer, in the same order as before.

        A smaller count gives a subset of a larger one's, and adding images replaces few of those chosen.
        """
        if count >= len(self):
            return self
        hashes = np.array([hash_words(key)[3] for key in self.keys], dtype=np.uint64)
        return self.select(np.sort(np.argsort(hashes, kind="stable")[: max(count, 0)]))

    def select(self, rows: Rows) -> Split:
        """The given rows, (M,) int64 in [0, N), in the given order."""
        return type(self)(
            self.name,
            self._shards,
            image_size=self.image_size,
            channels=self.channels,
            chosen=self._shard_rows(rows),
        )

    def _bytes(self, block: Any) -> np.ndarray:
        """The images of a block, as they are mapped."""
        mapped: np.ndarray = block
        return mapped

    def _row_bytes(self, block: Any, row: int) -> np.ndarray:
        """One of them."""
        mapped: np.ndarray = block[row]
        return mapped

    def _shard_rows(self, rows: Rows) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.name}, which has {len(self)}")
        return rows if self._chosen is None else self._chosen[rows]

    def _places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The number of each row's block, and the row in there."""
        rows = self._shard_rows(rows)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        inner = rows - self._starts[blocks]
        if self._scattered:  # all at once, so that the disk has them to do side by side
            for number, row in zip(blocks.tolist(), inner.tolist(), strict=True):
                fetch(self._row_bytes(self._blocks[number], row))
        return blocks, inner

    def _column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for shard in self._shards for chunk in shard.table.column(name).chunks])


class EncodedSplit(Split):
    """A split whose images are JPEG files. Raises DataError, naming the image, where one cannot be decoded."""

    is_encoded = True
    _blocks: list[JpegBlock]

    def images(self, rows: Rows) -> Tensor:
        """As of any split, (M, C, H, W) uint8: the shorter side scaled to the image size, the centre cropped."""
        return self._files(rows).squares(self.image_size)

    def floats(self, rows: Rows, device: torch.device) -> Tensor:
        """The images in [0, 1], decoded when somebody looks at them, whole or only a crop of each."""
        return LazyImages.of(self._files(rows), self.image_size, device)

    def _bytes(self, block: JpegBlock) -> np.ndarray:
        return block.contents

    def _row_bytes(self, block: JpegBlock, row: int) -> np.ndarray:
        return np.frombuffer(block.file(row), np.uint8)

    def _files(self, rows: Rows) -> JpegFiles:
        blocks, inner = self._places(rows)
        found = [(self._blocks[block], row) for block, row in zip(blocks, inner, strict=True)]
        return JpegFiles(
            data=[block.file(row) for block, row in found],
            heights=np.array([block.heights[row] for block, row in found], dtype=np.int64),
            widths=np.array([block.widths[row] for block, row in found], dtype=np.int64),
            names=lambda number: f"the image {self.keys[int(rows[number])]!r} of {self.name}",
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, so that a GPU fetches it while it computes."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [0, 1], same shape, memory layout and device."""
    return images.to(torch.float32, copy=True).div_(255)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(data)
        written = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    if written == FORMAT and manifest.get("layout") not in get_args(Layout):
        raise DataError(
            f"{path} has the layout {manifest.get('layout')!r}, not {' or '.join(get_args(Layout))}; {REMEDY}"
        )
    if written != FORMAT:
        raise DataError(
            f"{path} has the format {written!r}, this version of contrast reads {FORMAT!r}; delete the folder and run "
            "`contrast run` to ingest the images again"
        )
    return manifest
