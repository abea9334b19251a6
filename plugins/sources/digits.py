"""The handwritten digits that ship with scikit-learn: real images with labels, no network, no files.

1,797 images of 8x8 pixels in 10 classes, the test part of "Optical Recognition of Handwritten Digits" (Alpaydin &
Kaynak 1998, UCI). The set knows no splits of its own: ingest draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from cl_core.examples import Example

_COUNT = 1797
_WHITE = 16  # scikit-learn counts the set pixels of 4x4 blocks: 0..16


class Digits:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, classes "0" to "9"."""

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and count; the images change only with scikit-learn."""
        return {"dataset": "digits", "scikit-learn": version("scikit-learn"), "images": _COUNT}

    def __iter__(self) -> Iterator[Example]:
        """Yield (8, 8) uint8 arrays in 0..255, keys "0000" to "1796"."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / _WHITE)).astype(np.uint8)
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            yield Example(key=f"{index:04d}", image=image, label=str(label))
