"""What comes in: one image as a source yields it. Apart from the other nouns, so that ingest need not load torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image as a source yields it, not yet verified.

    key: unique and stable name (a relative path, an index); splits and subsets are hashed from it.
    image: bytes of an image file, the path of one (read by the ingest workers), or an array (H, W) or (H, W, C) of
        uint8 or uint16.
    label: class name, or None.
    split: "train", "validation" or "test" where the source knows it; None leaves it to the hash.
    group: examples of one group (a patient, a video) never land in different splits; None means the key.
    """

    key: str
    image: bytes | Path | np.ndarray
    label: str | None = None
    split: str | None = None
    group: str | None = None


@runtime_checkable
class Source(Protocol):
    """Where images come from. Iterating is cheap; the decoding is ingest's."""

    def fingerprint(self) -> Mapping[str, Any]:
        """Return JSON that changes whenever the images do (names, sizes, modification times; or name and version).

        Raises DataError where the source does not exist or holds no image.
        """

    def __iter__(self) -> Iterator[Example]:
        """Yield every example, in the same order each time."""
