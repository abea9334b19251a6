"""What the tests of encoded stores share: pictures of several sizes as files, and stores made of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.types import Example

SIZE = 32


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Coarse blots enlarged, with an edge: compresses as a photograph does."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 3 :, : width // 2] //= 2
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def photo(seed: int, height: int = 60, width: int = 80) -> bytes:
    return encoded(picture(seed, height, width))


class Files:
    """Examples of given images; every `held_out`-th is for validation, labels take turns."""

    def __init__(self, images: Sequence[Any], held_out: int = 0) -> None:
        self.images, self.held_out = images, held_out

    def fingerprint(self) -> dict[str, int]:
        return {"count": len(self.images)}

    def __iter__(self) -> Iterator[Example]:
        for i, image in enumerate(self.images):
            split = "validation" if self.held_out and i % self.held_out == 0 else "train"
            yield Example(key=f"k{i}", image=image, label=str(i % 3), split=split)


def make_store(folder: Path, images: Sequence[Any], max_shorter_side: int | None = 2 * SIZE, **options: Any) -> Store:
    """An encoded store, or a decoded one where the side is None."""
    source = Files(images, options.pop("held_out", 0))
    options = {"size": SIZE, "splits": SplitRule(0, 0), "source_spec": {}, "report": lambda line: None} | options
    ingest(source, folder, max_shorter_side=max_shorter_side, **options)
    return Store.open(folder)
