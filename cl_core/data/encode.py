"""One image of a source as the JPEG file of an encoded store; or the reason why it cannot be used.

Verified as `decode` does. A JPEG that is upright, grey or RGB, and small enough is kept byte for byte: compressing it
again would lose detail and win nothing. Everything else is converted as `decode` says, its shorter side scaled down to
the limit, and compressed at quality 95 with 4:2:0 chroma, which is what cameras write: 4:4:4 would take a third more
bytes, and more time to decode, to keep colour detail that JPEG sources do not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from cl_core.data.decode import MAX_PIXELS, Picture, fit, from_jpeg, jpeg_orientation, read, reasons, upright

QUALITY = 95
CHROMA = "420"
_LONGEST = 65_500  # pixels that libjpeg takes per side


class Encoded(NamedTuple):
    """jpeg: the file's bytes, upright, (height, width) pixels. square: what `decode` makes of the source's image."""

    jpeg: bytes
    height: int
    width: int
    square: np.ndarray


def encode(
    image: bytes | Path | np.ndarray, *, size: int, max_shorter_side: int, max_pixels: int = MAX_PIXELS
) -> Encoded:
    """The image as a JPEG whose shorter side is at most `max_shorter_side` pixels, and its square of side `size`.

    image: as for `decode`. What is longer than a JPEG may be is cut down to its centre.
    Raises UnreadableImageError, and nothing else, for whatever is wrong with the image.
    """
    with reasons():
        kept = _kept(image, size, max_shorter_side, max_pixels)
    if kept is not None:
        return kept

    def finish(picture: Picture, orientation: int) -> Encoded:
        pixels = np.ascontiguousarray(upright(_capped(picture, max_shorter_side), orientation))
        jpeg = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling=CHROMA, fastdct=False)
        height, width = pixels.shape[:2]
        return Encoded(jpeg, height, width, upright(fit(picture, size), orientation))

    return read(image, finish, side=max(size, max_shorter_side), max_pixels=max_pixels)


def _kept(image: bytes | Path | np.ndarray, size: int, max_shorter_side: int, max_pixels: int) -> Encoded | None:
    """The file as it is, where it is a JPEG that needs no change."""
    if isinstance(image, Path):
        image = image.read_bytes() if image.is_file() else b""
    if not isinstance(image, bytes):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
        return None
    if min(height, width) > max_shorter_side or colour in ("CMYK", "YCCK") or jpeg_orientation(image) != 1:
        return None
    pixels = from_jpeg(image, size, max_pixels)
    return None if pixels is None else Encoded(image, height, width, fit(pixels, size))


def _capped(picture: Picture, max_shorter_side: int) -> np.ndarray:
    """Scale the shorter side down to the limit (bicubic, antialiased); a smaller picture stays as it is."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    scale = min(1.0, max_shorter_side / min(image.size))
    width, height = (min(round(side * scale), _LONGEST) for side in image.size)
    if (width, height) == image.size:
        return np.asarray(image)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(left + width / scale, image.width), min(top + height / scale, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
