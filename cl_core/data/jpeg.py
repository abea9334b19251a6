"""Decoding the images of an encoded store in threads: whole as squares, or a box of each, resized.

Both libraries let go of Python's lock while they work, so threads help. What becomes of an image depends on its file
and its box alone, so the pixels are the same for any number of threads and any batch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.data.decode import fit
from cl_core.data.shards import CHANNELS, REMEDY
from cl_core.errors import DataError

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels

THREADS = "CONTRAST_DECODE_THREADS"  #: environment variable: number of decoding threads
KEPT_BYTES = 512 << 20  # of decoded images per batch; of larger batches each view decodes its own
_SHARE = 8  # images that a thread takes at a time


@dataclass(frozen=True)
class JpegFiles:
    """Some files of a store. Raises DataError, naming the image, where one cannot be decoded.

    data: the bytes of each. heights, widths: (N,) int64 in pixels. names: what errors call them.
    """

    data: Sequence[memoryview]
    heights: np.ndarray
    widths: np.ndarray
    names: Callable[[int], str]
    _decoded: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.data)

    def squares(self, size: int) -> Tensor:
        """(N, 3, size, size) uint8 in channels-last memory: shorter side scaled to `size`, centre cropped.

        As ingest makes them for a decoded store, so a file that ingest kept as it was gives the same pixels.
        """
        out = np.empty((len(self), size, size, CHANNELS), dtype=np.uint8)

        def square(number: int) -> None:
            out[number] = fit(self._pixels(number, 2 * size, 2 * size), size)

        in_threads(square, range(len(self)))
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def crops(self, boxes: Sequence[Box], mode: Interpolation, out: Tensor) -> Tensor:
        """A box of each image, resized with antialiasing and rounded to 8 bits.

        out: (N, 3, h, w) on the CPU, filled with values in [0, 1] if it is float32, in 0..255 if uint8; returned.
        """
        height, width = out.shape[-2:]
        filled = out.numpy()
        scale = np.float32(255 if out.dtype == torch.float32 else 1)

        def crop(number: int) -> None:
            region = self._region(number, boxes[number], (height, width))
            resized = F.interpolate(region, (height, width), mode=mode, antialias=True)[0]
            # Not by torch, which would start threads of its own in each of these.
            np.divide(resized.numpy(), scale, out=filled[number], dtype=np.float32, casting="unsafe")

        in_threads(crop, range(len(self)))
        return out

    def forget(self) -> None:
        """Let go of the decoded images that were kept for the next view."""
        self._decoded.clear()

    def _region(self, number: int, box: Box, size: tuple[int, int]) -> Tensor:
        """(1, 3, h, w) uint8: the box, from the image decoded at a fraction of its size that is enough for `size`.

        At a fraction the edges of the box are rounded to whole pixels, so by at most half a pixel of the result.
        """
        top, left, height, width = box
        fraction = next(f for f in (8, 4, 2, 1) if f == 1 or (height >= f * size[0] and width >= f * size[1]))
        key = (number, fraction)
        pixels = self._decoded.get(key)
        if pixels is None:
            pixels = self._pixels(number, *(-(-side // fraction) for side in self._shape(number)))
            if self._keeps:
                self._decoded[key] = pixels
        rows, columns = _edges(top, height, fraction), _edges(left, width, fraction)
        return torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1)[None]

    def _shape(self, number: int) -> tuple[int, int]:
        return int(self.heights[number]), int(self.widths[number])

    @functools.cached_property
    def _keeps(self) -> bool:
        return int((self.heights * self.widths).sum()) * CHANNELS <= KEPT_BYTES

    def _pixels(self, number: int, height: int, width: int) -> np.ndarray:
        """(H, W, 3) of at least this height and width, at the smallest of libjpeg's fractions, or whole."""
        exact: dict[str, Any] = {"fastdct": False, "fastupsample": False}
        try:
            return simplejpeg.decode_jpeg(self.data[number], "RGB", min_height=height, min_width=width, **exact)
        except ValueError as error:
            name = self.names(number)
            raise DataError(f"{name} cannot be decoded: the store is damaged ({error}); {REMEDY}") from error


def in_threads(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Call `work` with each number, some at a time in threads; what one of them raises is raised here."""
    numbers = list(numbers)
    if decode_threads() == 1 or len(numbers) == 1:
        _each(work, numbers)
        return
    shares = [numbers[start : start + _SHARE] for start in range(0, len(numbers), _SHARE)]
    for _ in _pool(decode_threads()).map(functools.partial(_each, work), shares):
        pass


def decode_threads() -> int:
    """How many threads decode: as many as torch uses in this process, unless the environment says otherwise."""
    return max(1, int(os.environ.get(THREADS) or torch.get_num_threads()))


def _each(work: Callable[[int], None], numbers: Sequence[int]) -> None:
    for number in numbers:
        work(number)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def _edges(start: int, length: int, fraction: int) -> slice:
    return slice(round(start / fraction), round((start + length) / fraction))
