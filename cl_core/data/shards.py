"""The files of a store: Arrow IPC shards with columns key, label and image. Any Arrow reader opens them.

Written in record batches of bounded size, so that memory stays flat for any number of images; read memory-mapped, so
that opening costs nothing and pixels are copied once, into the batch that is trained on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from cl_core.data.files import sha256_file
from cl_core.errors import DataError

FORMAT = "contrast-store/1"
CHANNELS = 3
SHARD_ROWS = 8192
#: What to do about a store that cannot be read, for the end of an error message.
REMEDY = "restore it with `dvc checkout`, or delete the folder and run `contrast run` to ingest the images again"
_BATCH_BYTES = 8 << 20  # of images per record batch: the memory that writing takes, per split


def shard_schema(size: int) -> pa.Schema:
    """key: string; label: int32, null where there is none; image: size * size * 3 bytes, rows of RGB pixels."""
    columns = [("key", pa.string()), ("label", pa.int32()), ("image", pa.binary(size * size * CHANNELS))]
    return pa.schema(columns, metadata={"format": FORMAT, "image_shape": f"{size},{size},{CHANNELS}"})


class ShardWriter:
    """Writes one split to <folder>/<split>-00000.arrow, -00001.arrow ..., at most SHARD_ROWS rows each."""

    def __init__(self, folder: Path, split: str, size: int) -> None:
        self._folder, self._split = folder, split
        self._schema = shard_schema(size)
        row_bytes = size * size * CHANNELS
        self._images = np.empty((max(1, min(SHARD_ROWS, _BATCH_BYTES // row_bytes)), row_bytes), dtype=np.uint8)
        self._keys: list[str] = []
        self._labels: list[int | None] = []
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self.shards: list[dict[str, Any]] = []

    def add(self, key: str, label: int, image: np.ndarray) -> None:
        """Append one row; label -1 means none, image is (H, W, C) uint8."""
        self._images[len(self._keys)] = image.reshape(-1)
        self._keys.append(key)
        self._labels.append(None if label < 0 else label)
        written = self.shards[-1]["rows"] if self._file else 0
        if len(self._keys) == len(self._images) or written + len(self._keys) == SHARD_ROWS:
            self._flush()

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
        image_type = self._schema.field("image").type
        images = pa.FixedSizeBinaryArray.from_buffers(image_type, count, [None, pa.py_buffer(self._images[:count])])
        columns = [pa.array(self._keys, pa.string()), pa.array(self._labels, pa.int32()), images]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._keys, self._labels = [], []
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


@dataclass(frozen=True)
class Shard:
    """One file, memory-mapped.

    table: its columns key and label. images: one (rows, H * W * C) uint8 view per record batch, read-only.
    """

    table: pa.Table
    images: list[np.ndarray]


def read_shard(path: Path) -> Shard:
    """Map a shard. Raises DataError where it is missing, damaged or something else."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except FileNotFoundError:
        raise DataError(f"the shard {path} is missing; {REMEDY}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"the shard {path} is damaged ({error}); {REMEDY}") from error
    if reader.schema.names != ["key", "label", "image"]:
        raise DataError(f"the shard {path} has the columns {', '.join(reader.schema.names)}; {REMEDY}")
    table = pa.Table.from_batches(batches, reader.schema).select(["key", "label"])
    return Shard(table=table, images=[_pixels(batch.column("image")) for batch in batches])


def _pixels(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return flat.reshape(len(column), width)
