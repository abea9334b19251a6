"""The files of a store: Arrow IPC shards with columns key, label and image. Any Arrow reader opens them.

The layout `decoded` holds pixels, `encoded` JPEG files with their height and width. Where the source names groups, a
column group says which example belongs to which.

Written in record batches of bounded size, so that memory stays flat for any number of images; read memory-mapped, so
that opening costs nothing and pixels are copied once, into the batch that is trained on.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from cl_core.data.files import sha256_file
from cl_core.errors import DataError

Layout = Literal["decoded", "encoded"]
FORMAT = "contrast-store/1"
CHANNELS = 3
SHARD_ROWS = 8192
#: What to do about a store that cannot be read, for the end of an error message.
REMEDY = "restore it with `dvc checkout`, or delete the folder and run `contrast run` to ingest the images again"
_BATCH_BYTES = 8 << 20  # of images per record batch: the memory that writing takes, per split


def shard_schema(size: int, layout: Layout, *, grouped: bool = False) -> pa.Schema:
    """key: string; label: int32, null where there is none; image: size * size * 3 bytes, rows of RGB pixels.

    Of the layout encoded, image: the bytes of a JPEG file; height, width: int32, its pixels.
    grouped: there is a column group: string, null for an example of none.
    """
    columns = [("key", pa.string()), ("label", pa.int32())] + [("group", pa.string())] * grouped
    if layout == "encoded":
        columns += [("image", pa.binary()), ("height", pa.int32()), ("width", pa.int32())]
        return pa.schema(columns, metadata={"format": FORMAT, "image_encoding": "jpeg"})
    columns += [("image", pa.binary(size * size * CHANNELS))]
    return pa.schema(columns, metadata={"format": FORMAT, "image_shape": f"{size},{size},{CHANNELS}"})


class ShardWriter(ABC):
    """Writes one split to <folder>/<split>-00000.arrow, -00001.arrow ..., at most SHARD_ROWS rows each.

    What a layout adds: `_keep` an image until its record batch is full, and `_columns` of those kept.
    """

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._keys: list[str] = []
        self._labels: list[int | None] = []
        self._groups: list[str | None] = []
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self.shards: list[dict[str, Any]] = []

    def add(self, key: str, label: int, image: Any, group: str | None = None) -> None:
        """Append one row; label -1 means none, image is what the layout stores, group is for a grouped schema only."""
        self._keep(image)
        self._keys.append(key)
        self._labels.append(None if label < 0 else label)
        self._groups.append(group)
        written = self.shards[-1]["rows"] if self._file else 0
        if self._is_full() or written + len(self._keys) == SHARD_ROWS:
            self._flush()

    @abstractmethod
    def _keep(self, image: Any) -> None:
        """Take in the image of row len(self._keys) of the record batch."""

    @abstractmethod
    def _is_full(self) -> bool:
        """Whether the record batch is as large as it may be."""

    @abstractmethod
    def _columns(self) -> list[pa.Array]:
        """The columns from `image` on of the rows kept, which are then forgotten."""

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard; returns [{"file", "rows", "sha256"}, ...]."""
        self._flush()
        self._finish_shard()
        return self.shards

    def abort(self) -> None:
        """Let go of the open file, which is left incomplete."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        count = len(self._keys)
        if count == 0:
            return
        if self._file is None:
            self._start_shard()
        columns = [pa.array(self._keys, pa.string()), pa.array(self._labels, pa.int32())]
        columns += [pa.array(self._groups, pa.string())] if "group" in self._schema.names else []
        self._writer.write_batch(pa.RecordBatch.from_arrays([*columns, *self._columns()], schema=self._schema))
        self._keys, self._labels, self._groups = [], [], []
        self.shards[-1]["rows"] += count
        if self.shards[-1]["rows"] == SHARD_ROWS:
            self._finish_shard()

    def _start_shard(self) -> None:
        name = f"{self._split}-{len(self.shards):05d}.arrow"
        self._file = (self._folder / name).open("wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self.shards.append({"file": name, "rows": 0, "sha256": ""})

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.shards[-1]["sha256"] = sha256_file(self._folder / self.shards[-1]["file"])


class PixelWriter(ShardWriter):
    """Of the layout decoded: images (size, size, 3) uint8."""

    def __init__(self, folder: Path, split: str, size: int, *, grouped: bool = False) -> None:
        super().__init__(folder, split, shard_schema(size, "decoded", grouped=grouped))
        row_bytes = size * size * CHANNELS
        self._images = np.empty((max(1, min(SHARD_ROWS, _BATCH_BYTES // row_bytes)), row_bytes), dtype=np.uint8)

    def _keep(self, image: np.ndarray) -> None:
        self._images[len(self._keys)] = image.reshape(-1)

    def _is_full(self) -> bool:
        return len(self._keys) == len(self._images)

    def _columns(self) -> list[pa.Array]:
        count = len(self._keys)
        buffers = [None, pa.py_buffer(self._images[:count])]
        return [pa.FixedSizeBinaryArray.from_buffers(self._schema.field("image").type, count, buffers)]


class JpegWriter(ShardWriter):
    """Of the layout encoded: (bytes of a JPEG file, its height, its width)."""

    def __init__(self, folder: Path, split: str, *, grouped: bool = False) -> None:
        super().__init__(folder, split, shard_schema(0, "encoded", grouped=grouped))
        self._images: list[tuple[bytes, int, int]] = []
        self._bytes = 0

    def _keep(self, image: tuple[bytes, int, int]) -> None:
        self._images.append(image)
        self._bytes += len(image[0])

    def _is_full(self) -> bool:
        return self._bytes >= _BATCH_BYTES

    def _columns(self) -> list[pa.Array]:
        files, heights, widths = zip(*self._images, strict=True)
        self._images, self._bytes = [], 0
        return [pa.array(files, pa.binary()), pa.array(heights, pa.int32()), pa.array(widths, pa.int32())]


@dataclass(frozen=True)
class JpegBlock:
    """The images of a record batch of an encoded store, memory-mapped.

    data: the files one after the other. starts: (rows + 1,) where each begins. heights, widths: (rows,) in pixels.
    """

    data: memoryview
    starts: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def contents(self) -> np.ndarray:
        """All files as one (M,) uint8 view."""
        return np.frombuffer(self.data, np.uint8)

    def file(self, row: int) -> memoryview:
        """The bytes of a JPEG file, not copied."""
        return self.data[self.starts[row] : self.starts[row + 1]]


@dataclass(frozen=True)
class Shard:
    """One file, memory-mapped.

    table: its columns key, label and, where there are groups, group. images: per record batch one (rows, H * W * C)
    uint8 view, read-only, or a JpegBlock.
    """

    table: pa.Table
    images: list[Any]


def read_shard(path: Path, layout: Layout = "decoded") -> Shard:
    """Map a shard. Raises DataError where it is missing, damaged or something else."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except FileNotFoundError:
        raise DataError(f"the shard {path} is missing; {REMEDY}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"the shard {path} is damaged ({error}); {REMEDY}") from error
    grouped = "group" in reader.schema.names
    if reader.schema.names != shard_schema(1, layout, grouped=grouped).names:
        raise DataError(f"the shard {path} has the columns {', '.join(reader.schema.names)}; {REMEDY}")
    table = pa.Table.from_batches(batches, reader.schema).select(["key", "label", *["group"] * grouped])
    images = _jpegs if layout == "encoded" else _pixels
    return Shard(table=table, images=[images(batch) for batch in batches])


def _pixels(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("image")
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return flat.reshape(len(column), width)


def _jpegs(batch: pa.RecordBatch) -> JpegBlock:
    column = batch.column("image")
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    heights, widths = (batch.column(name).to_numpy() for name in ("height", "width"))
    return JpegBlock(memoryview(data).cast("B"), starts, heights, widths)
