"""Decoding: every colour mode, depth, orientation and size becomes the same RGB square, or a reason why not."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from cl_core.data.decode import UnreadableImageError, decode


def noise(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, with a different colour in each corner, so that every orientation and channel order shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=2).round().astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: np.ndarray, b: Any) -> int:
    return int(np.abs(a.astype(int) - np.asarray(b).astype(int)).max())


# colours


def test_an_rgb_image_of_the_right_size_is_stored_bit_for_bit():
    pixels = noise(0)
    for image in (pixels, encoded(Image.fromarray(pixels), "PNG"), encoded(Image.fromarray(pixels), "BMP")):
        assert np.array_equal(decode(image, size=8), pixels)


def test_a_jpeg_decodes_to_the_same_pixels_as_with_pillow():
    data = encoded(Image.fromarray(noise(1, 16)), "JPEG", quality=80)
    assert np.array_equal(decode(data, size=16), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_becomes_three_equal_channels(kind):
    grey = Image.fromarray(noise(2)[:, :, 0])
    data = encoded(grey, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, size=8), np.repeat(expected[:, :, None], 3, axis=2))


def test_one_bit_images_become_black_and_white():
    bits = noise(3)[:, :, 0] > 127
    assert np.array_equal(decode(encoded(Image.fromarray(bits), "PNG"), size=8)[:, :, 1], bits * np.uint8(255))


def test_palette_images_get_the_colours_of_their_palette():
    image = picture(8, 8).quantize(16)
    assert np.array_equal(decode(encoded(image, "PNG"), size=8), np.asarray(image.convert("RGB")))


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.fromarray(np.repeat(np.array([0, 1], np.uint8), 32).reshape(8, 8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    for kind in ("PNG", "GIF"):
        rgb = decode(encoded(image, kind, transparency=1), size=8)
        assert rgb[0, 0].tolist() == [255, 0, 0]
        assert rgb[7, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_transparency_is_laid_over_white(alpha):
    rgba = np.dstack([noise(4), np.full((8, 8), alpha, np.uint8)])
    expected = rgba[:, :, :3] * (alpha / 255) + 255 * (1 - alpha / 255)
    assert difference(decode(rgba, size=8), expected.round()) <= 1
    assert difference(decode(encoded(Image.fromarray(rgba), "PNG"), size=8), expected.round()) <= 1


def test_grey_with_alpha_is_laid_over_white():
    image = Image.merge("LA", [Image.new("L", (8, 8), 50), Image.new("L", (8, 8), 0)])
    assert (decode(encoded(image, "PNG"), size=8) == 255).all()


def test_cmyk_jpegs_become_the_colours_that_pillow_shows():
    data = encoded(picture(8, 8).convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(decode(data, size=8), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert difference(decode(data, size=8), picture(8, 8)) < 30


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    rgb = decode(encoded(Image.fromarray(deep), kind), size=8)
    assert np.array_equal(rgb[:, :, 0], np.round(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4)])
def test_uint16_arrays_are_scaled_like_files(shape):
    deep = np.random.default_rng(5).integers(0, 65536, shape, dtype=np.uint16)
    if shape[-1] == 4:
        deep[:, :, 3] = 65535
    expected = np.round(deep.reshape(8, 8, -1)[:, :, :3] / 257)
    assert np.array_equal(decode(deep, size=8), np.broadcast_to(expected, (8, 8, 3)).astype(np.uint8))


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, size=8)[0, 0].tolist() == [255, 0, 0]


# geometry


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = encoded(picture(), kind, exif=exif.tobytes() if kind == "WEBP" else exif, **options)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(decode(data, size=12), decode(np.asarray(shown), size=12)) <= 3
    assert (difference(decode(data, size=12), decode(np.asarray(picture()), size=12)) > 50) == (orientation != 1)


def test_broken_exif_does_not_cost_a_sound_image():
    data = encoded(Image.fromarray(noise(6)), "PNG", exif=b"Exif\0\0MM\0*garbage")
    assert np.array_equal(decode(data, size=8), noise(6))


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 64), (96, 96), (40, 32)])
def test_scaling_is_resize_of_the_shorter_side_and_centre_crop_of_torchvision(width, height):
    image = picture(width, height)
    resized = functional.resize(image, [16], interpolation=functional.InterpolationMode.BICUBIC)
    assert difference(decode(np.asarray(image), size=16), functional.center_crop(resized, [16, 16])) <= 4


def test_scaling_down_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert difference(decode(stripes, size=8), np.full((8, 8, 3), 127)) <= 2


def test_small_images_are_enlarged():
    assert decode(np.full((2, 3), 77, np.uint8), size=8).tolist() == [[[77] * 3] * 8] * 8


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_the_whole():
    data = encoded(picture(640, 480), "JPEG", quality=90)
    whole = decode(np.asarray(Image.open(io.BytesIO(data))), size=32)
    assert difference(decode(data, size=32), whole) <= 4


def test_an_extremely_long_strip_takes_no_memory_beyond_its_own():
    assert decode(np.full((1, 2_000_000), 9, np.uint8), size=64).shape == (64, 64, 3)


# what is refused


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def photo() -> Image.Image:
    return Image.fromarray(noise(7, 64))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_file_is_refused(kind, share):
    with pytest.raises(UnreadableImageError, match=r"."):
        decode(cut(encoded(photo(), kind), share), size=8)


def test_a_jpeg_whose_download_stopped_and_was_padded_is_refused():
    data = encoded(photo(), "JPEG")
    for tail in (bytes(len(data) // 2), b"\xff\xd9"):
        Image.open(io.BytesIO(cut(data, 0.5) + tail)).load()  # Pillow takes it, the lower half grey
        with pytest.raises(UnreadableImageError, match=r"truncated or damaged: .*[Pp]remature end"):
            decode(cut(data, 0.5) + tail, size=8)


def test_stray_bytes_before_the_end_of_a_jpeg_are_forgiven():
    data = encoded(photo(), "JPEG")
    assert np.array_equal(decode(data[:-2] + b"stray" + data[-2:], size=64), decode(data, size=64))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am a text", "not an image in a known format"),
        (b"\xff\xd8\xff\xe0", "not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (np.zeros((0, 5), np.uint8), "no pixels: 5 x 0"),
        (np.zeros((4, 4), np.float32), "array of float32; expected uint8 or uint16"),
        (np.zeros((4, 4, 2), np.uint8), r"array of shape \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"array of shape \(4,\)"),
        ("a.png", "a str in place of bytes, a path or an array"),
    ],
)
def test_what_is_not_an_image_is_refused_with_its_reason(image, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(image, size=8)


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(UnreadableImageError, match="floating-point pixels"):
        decode(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), size=8)
    with pytest.raises(UnreadableImageError, match="32-bit pixels"):
        decode(encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), size=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_an_image_over_the_pixel_limit_is_refused_before_it_is_decoded(kind):
    data = encoded(Image.new("RGB", (3000, 1000)), kind)
    with pytest.raises(UnreadableImageError, match="3000 x 1000 pixels, more than the limit of 2999999"):
        decode(cut(data, 0.9), size=8, max_pixels=2_999_999)  # truncated: decoding it would be another reason
    assert decode(data, size=8, max_pixels=3_000_000).max() == 0


def test_reasons_hold_neither_paths_nor_addresses(tmp_path):
    for image in (tmp_path / "missing.png", tmp_path, b"nothing"):
        with pytest.raises(UnreadableImageError) as caught:
            decode(image, size=8)
        assert str(tmp_path) not in str(caught.value)
        assert "0x" not in str(caught.value)


def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        decode(tmp_path / "pipe.png", size=8)
