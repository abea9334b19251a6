"""What a store keeps of one image: pixels of a square, or a JPEG file; ingest applies it in threads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cl_core.data.decode import UnreadableImageError, decode
from cl_core.data.duplicates import Hash, perceptual_hashes
from cl_core.data.encode import encode
from cl_core.data.shards import JpegWriter, Layout, PixelWriter, ShardWriter
from cl_core.examples import Example


class Stored(NamedTuple):
    """One example after decoding: what the store keeps and a hash of its square, or the reason why there is none.

    image: (size, size, 3) uint8, or (bytes of a JPEG file, its height, its width). group: the example's. digest, seen:
    hashes of the square, of its bytes and of what it looks like.
    """

    key: str
    group: str | None = None
    image: np.ndarray | tuple[bytes, int, int] | None = None
    digest: bytes = b""
    seen: Hash = Hash(0, True)
    reason: str = ""


class Form(NamedTuple):
    """What becomes of an image.

    size: side of the square. max_shorter_side: of a JPEG file; None for pixels. max_pixels: larger ones are refused.
    """

    size: int
    max_shorter_side: int | None
    max_pixels: int

    @property
    def layout(self) -> Layout:
        """The name in the manifest."""
        return "decoded" if self.max_shorter_side is None else "encoded"

    def writer(self, folder: Path, split: str, *, grouped: bool = False) -> ShardWriter:
        """Writes the shards of a split, with the groups of its examples where there are any."""
        if self.max_shorter_side is not None:
            return JpegWriter(folder, split, grouped=grouped)
        return PixelWriter(folder, split, self.size, grouped=grouped)

    def convert(self, examples: Sequence[Example]) -> list[Stored]:
        """Verify and convert; never raises for what is wrong with an image."""
        stored, squares = zip(*map(self._stored, examples), strict=True)
        seen = iter(perceptual_hashes([square for square in squares if square is not None]))
        return [
            each if square is None else each._replace(seen=next(seen))
            for each, square in zip(stored, squares, strict=True)
        ]

    def _stored(self, example: Example) -> tuple[Stored, np.ndarray | None]:
        """The example but for what it looks like, and its square."""
        try:
            image, square = self._converted(example)
        except UnreadableImageError as error:
            return Stored(example.key, reason=str(error)), None
        square = np.ascontiguousarray(square)
        return Stored(example.key, example.group, image, hashlib.sha256(square.data).digest()[:16]), square

    def _converted(self, example: Example) -> tuple[np.ndarray | tuple[bytes, int, int], np.ndarray]:
        if self.max_shorter_side is None:
            pixels = np.ascontiguousarray(decode(example.image, size=self.size, max_pixels=self.max_pixels))
            return pixels, pixels
        jpeg, height, width, square = encode(example.image, **self._asdict())
        return (jpeg, height, width), square
