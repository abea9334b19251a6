"""One image of a source, fully verified, as (size, size, 3) uint8 RGB; or the reason why it cannot be used.

Reads every byte of the pixel data: a truncated file is refused, not filled up with grey. Everything that goes wrong
is an `UnreadableImageError` whose text is what the quarantine list says. What is converted, and how:

    grey, palette, 1 bit, CMYK, YCbCr, Lab     to RGB
    transparency of any kind                   laid over white
    16-bit grey                                scaled by 255 / 65535 and rounded, never clipped
    several frames                             the first
    EXIF orientation 1..8                      turned upright
    32-bit integer beyond 16 bits, float       refused: their range is unknown

It never guesses a format that has no signature (TGA, PCX) and never runs a program on a file (EPS, PDF).
"""

from __future__ import annotations

import functools
import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  #: default limit on width * height: Pillow's own, a quarter of a gigabyte as RGB

_FORMATS = ("JPEG", "PNG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_JPEG_SIGNATURE = b"\xff\xd8"
_ORIENTATION = 0x0112  # tag of EXIF 2.3, section 4.6.4
#: What libjpeg says of files that end early or whose data are broken. Its other complaints (stray bytes between
#: markers, unusual Adobe markers) are common in good files; Pillow then has the last word.
_DAMAGED_JPEG = re.compile(r"premature end|bad huffman|instead of rst|bad arithmetic|inconsistent progression", re.I)


Picture = np.ndarray | Image.Image  # (H, W, 3) uint8, or RGB
T = TypeVar("T")


class UnreadableImageError(Exception):
    """An image that cannot be used; the message is its reason in quarantine.csv, the same on every machine."""


def decode(image: bytes | Path | np.ndarray, *, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode, convert to RGB, scale the shorter side to `size`, crop the centre: (size, size, 3) uint8.

    image: bytes of a file, the path of one, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16.
    Raises UnreadableImageError, and nothing else, for whatever is wrong with the image.
    """
    # Turning commutes with scaling and cropping, and a small square is quicker to turn.
    return read(image, lambda picture, turn: upright(fit(picture, size), turn), side=size, max_pixels=max_pixels)


def read(
    image: bytes | Path | np.ndarray, finish: Callable[[Picture, int], T], *, side: int, max_pixels: int = MAX_PIXELS
) -> T:
    """What `finish` makes of the decoded picture, which is RGB but not yet upright, and its EXIF orientation, 1..8.

    side: a JPEG may be decoded at a fraction of its size that leaves at least 2 * side pixels. The rest as `decode`.
    """
    with reasons():
        if isinstance(image, np.ndarray):
            return finish(_from_array(image, max_pixels), 1)
        if isinstance(image, bytes):
            return _from_file(io.BytesIO(image), len(image), finish, side, max_pixels)
        if isinstance(image, Path):
            return _from_path(image, finish, side, max_pixels)
        raise UnreadableImageError(f"a {type(image).__name__} in place of bytes, a path or an array")


@contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever is raised inside into an UnreadableImageError with its reason."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:  # a decoder fed with garbage may raise anything, and one file must not stop the rest
        raise UnreadableImageError(_reason(error)) from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Switch off Pillow's warnings and its pixel limit; `decode` checks the limit itself, before it decodes.

    Both are global to the process, so this belongs around the threads that decode, not inside them.
    """
    _formats()  # loads Pillow's plugins, which threads had better not do at once
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def from_jpeg(data: bytes, side: int, max_pixels: int) -> np.ndarray | None:
    """(H, W, 3), decoded at a fraction of its size if that is at least 2 * side; None where Pillow must judge."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height, max_pixels)
    if colour in ("CMYK", "YCCK"):
        return None
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=2 * side, min_width=2 * side
        )
    except ValueError as error:
        if _DAMAGED_JPEG.search(str(error)):
            raise UnreadableImageError(f"truncated or damaged: {error}") from error
        return None


def _from_path(path: Path, finish: Callable[[Picture, int], T], side: int, max_pixels: int) -> T:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError("not a regular file")
    with path.open("rb") as file:
        return _from_file(file, status.st_size, finish, side, max_pixels)


def _from_file(file: BinaryIO, length: int, finish: Callable[[Picture, int], T], side: int, max_pixels: int) -> T:
    if length == 0:
        raise UnreadableImageError("the file is empty")
    if file.read(len(_JPEG_SIGNATURE)) == _JPEG_SIGNATURE:
        data = _JPEG_SIGNATURE + file.read()
        rgb = from_jpeg(data, side, max_pixels)
        if rgb is not None:
            return finish(rgb, jpeg_orientation(data))
        file = io.BytesIO(data)
    file.seek(0)
    return _from_pillow(file, finish, max_pixels)


def _from_pillow(file: BinaryIO, finish: Callable[[Picture, int], T], max_pixels: int) -> T:
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image in a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(f"more than the limit of {max_pixels} pixels") from error
    with image:
        _check_size(*image.size, max_pixels)
        image.load()
        # The orientation only now: TIFFs are turned by Pillow while they load, PNG may carry EXIF behind the pixels.
        return finish(_to_rgb(image), _orientation(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "I":
        return _from_32_bits(np.asarray(image))
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels, whose range is unknown; convert to 8 or 16 bits")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_32_bits(pixels: np.ndarray) -> Image.Image:
    """Mode I is how Pillow gives 16-bit PGM, and 32-bit TIFF."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise UnreadableImageError("32-bit pixels, whose range is unknown; convert to 8 or 16 bits")
    return Image.fromarray(_to_8_bits(pixels)).convert("RGB")


def _from_array(pixels: np.ndarray, max_pixels: int) -> Picture:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise UnreadableImageError(f"array of shape {pixels.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(f"array of {pixels.dtype}; expected uint8 or uint16")
    _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    if pixels.dtype == np.uint16:
        pixels = _to_8_bits(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    return _to_rgb(Image.fromarray(pixels))


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded to the nearest (65535 = 255 * 257)."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fit(picture: Picture, size: int) -> np.ndarray:
    """Scale the shorter side to `size` (bicubic, antialiased) and crop the centre: (size, size, 3) uint8.

    An image of that size already is returned as it is. Only the square that remains is computed, so that a strip of
    1 x 1,000,000 pixels costs no memory.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == (size, size):
            return picture
        picture = Image.fromarray(picture)
    width, height = picture.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=square, reducing_gap=3.0)
    return np.asarray(picture)


def jpeg_orientation(data: bytes) -> int:
    """Orientation of a JPEG; Pillow, which is slow to start, is asked only where there is something to find."""
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            return _orientation(image)
    except Exception:  # broken metadata around sound pixels
        return 1


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata are absent or broken, which says nothing about the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF reader may raise anything on broken metadata
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation; values outside 1..8 mean nothing."""
    if orientation == 1:
        return pixels
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise UnreadableImageError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise UnreadableImageError(f"{width} x {height} pixels, more than the limit of {max_pixels}")


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    """One line without paths and addresses, which would differ between machines."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "cannot be decoded: " + re.sub(r"\s*<[^>]*>", "", text)
