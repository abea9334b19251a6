"""The costly augmentations once more, compiled for CPUs: one pass over an image while it lies in the cache.

What torch runs as 30 operations over a whole batch is here one loop, made machine code by numba. Parameters are drawn
as always; pixels agree with the torch version, which GPUs run and the tests compare with, within 1e-5, and depend
neither on the batch nor on the number of threads. All arrays are float32, (N, C, H, W) unless said otherwise.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

_NOTHING = 1e-8  # weights of a filter below this are left out: all together they move a pixel by less than 1e-7
_MIN_PER_THREAD = 8  # images; fewer are not worth handing to another thread

# Sums may be reordered and products fused into them, or loops would not become vector instructions. NaNs stay NaNs.
_compile = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


def takes(images: Tensor) -> bool:
    """Whether the functions of this module work on these images: float32 on the CPU, without a gradient to follow."""
    return images.device.type == "cpu" and images.dtype == torch.float32 and not images.requires_grad


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int], *, cubic: bool) -> Tensor:
    """Resize boxes (N, 4) of top, left, height, width, int64, antialiased, to (N, C, *size), clipped to [0, 1].

    cubic: Keys' cubic with a = -0.5, else bilinear.
    """
    out = torch.empty(len(images), images.shape[1], *size)
    # Channels-last pixels are one plane of rows of W * C values in which a step to the right is C values.
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    planes = images.permute(0, 2, 3, 1).flatten(2)[:, None] if last else images.contiguous()
    step = images.shape[1] if last else 1
    _run(functools.partial(_crop, step=step, cubic=cubic), planes, boxes, out)
    return out


def flip_(images: Tensor, hit: Tensor) -> Tensor:
    """Mirror left and right where hit (N,) is true."""
    return _run(_flip, images, hit)


def jitter_(images: Tensor, hit: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in the order (N, 4) of 0 .. 3, where hit (N,) is true; C is 1 or 3.

    factors: (N, 4), the hue's a shift in turns.
    """
    return _run(_jitter, images, hit, order, factors)


def gray_(images: Tensor, hit: Tensor) -> Tensor:
    """Luma on all 3 channels where hit (N,) is true."""
    return _run(_gray, images, hit)


def blur_(images: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    """Filter rows and columns with symmetric weights (N, 2r + 1), r < H, W, borders reflected, where hit is true."""
    return _run(_blur, images, hit, weights)


def _run(kernel: Callable[..., None], images: Tensor, *parameters: Tensor) -> Tensor:
    """Call a kernel on arrays, the rows spread over as many threads as torch uses; returns the images."""
    arrays = [tensor.numpy() for tensor in (images, *parameters)]
    parts = max(1, min(torch.get_num_threads(), len(arrays[0]) // _MIN_PER_THREAD))
    bounds = np.linspace(0, len(arrays[0]), parts + 1).astype(int).tolist()
    slices = [[array[a:b] for array in arrays] for a, b in itertools.pairwise(bounds)]
    if parts == 1:
        kernel(*slices[0])
        return images
    others = [_threads().submit(kernel, *part) for part in slices[1:]]
    kernel(*slices[0])
    for other in others:
        other.result()
    return images


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="views")


@_compile
def _crop(planes: Any, boxes: Any, out: Any, step: int, cubic: bool) -> None:
    """planes: (N, P, H, W * step), P * step = C. boxes: (N, 4) top, left, height, width.

    Columns come first: they are read one by one, and most boxes have fewer rows than the output.
    """
    rows, columns = out.shape[2], out.shape[3]
    narrow = np.empty((step, planes.shape[2], columns), np.float32)
    for n in range(len(planes)):
        top, left, height, width = boxes[n]
        first_y, weights_y = _taps(height, rows, cubic)
        first_x, weights_x = _taps(width, columns, cubic)
        for plane in range(planes.shape[1]):
            box = planes[n, plane, top : top + height, left * step : (left + width) * step]
            for channel in range(step):
                for y in range(height):
                    _mix_columns(box[y, channel:], first_x, weights_x, step, narrow[channel, y])
                for y in range(rows):
                    source = narrow[channel, first_y[y] : first_y[y] + len(weights_y)]
                    _mix_rows(source, weights_y[:, y], out[n, plane * step + channel, y])


@_compile
def _mix_columns(line: Any, first: Any, weights: Any, step: int, out: Any) -> None:
    """out[x] = sum over t of weights[t, x] * line[(first[x] + t) * step]."""
    stride = np.uint64(step)  # unsigned: a signed index could be negative, and looking for that costs the vectors
    if len(weights) == 1:
        for x in range(len(out)):
            out[x] = line[first[x] * stride]
    elif len(weights) == 2:
        for x in range(len(out)):
            position = first[x] * stride
            out[x] = weights[0, x] * line[position] + weights[1, x] * line[position + stride]
    elif len(weights) == 4:
        for x in range(len(out)):
            position = first[x] * stride
            near = weights[1, x] * line[position + stride] + weights[2, x] * line[position + np.uint64(2) * stride]
            far = weights[0, x] * line[position] + weights[3, x] * line[position + np.uint64(3) * stride]
            out[x] = near + far
    else:
        for x in range(len(out)):
            total = np.float32(0)
            position = first[x] * stride
            for t in range(len(weights)):
                total += weights[t, x] * line[position]
                position += stride
            out[x] = total


@_compile
def _mix_rows(rows: Any, weights: Any, out: Any) -> None:
    """out[x] = sum over t of weights[t] * rows[t, x], clipped to [0, 1]."""
    if len(weights) == 1:
        out[:] = rows[0]
    elif len(weights) == 2:
        for x in range(len(out)):
            out[x] = _clipped(weights[0] * rows[0, x] + weights[1] * rows[1, x])
    elif len(weights) == 4:
        for x in range(len(out)):
            near = weights[1] * rows[1, x] + weights[2] * rows[2, x]
            out[x] = _clipped(near + weights[0] * rows[0, x] + weights[3] * rows[3, x])
    else:
        out[:] = np.float32(0)
        for t in range(len(weights)):
            for x in range(len(out)):
                out[x] += weights[t] * rows[t, x]
        for x in range(len(out)):
            out[x] = _clipped(out[x])


@_compile
def _taps(length: int, target: int, cubic: bool) -> tuple[Any, Any]:
    """Which of `length` pixels each of `target` ones is mixed of: first (target,), and weights (T, target)."""
    scale = np.float32(length) / np.float32(target)  # in single precision, as torch has it
    stretch = max(scale, np.float32(1))
    reach = np.float32(2 if cubic else 1) * stretch
    count = min(length, math.ceil(2 * reach))
    first, weights = np.empty(target, np.uint64), np.empty((count, target), np.float32)
    for i in range(target):
        centre = scale * (np.float32(i) + np.float32(0.5))
        begin = min(max(math.floor(centre - reach - np.float32(0.5)) + 1, 0), length - count)
        first[i] = begin
        total = np.float32(0)
        for t in range(count):
            distance = abs((np.float32(begin + t) + np.float32(0.5) - centre) / stretch)
            weights[t, i] = _weight(distance, cubic)
            total += weights[t, i]
        for t in range(count):
            weights[t, i] /= total
    return first, weights


@_compile
def _weight(distance: Any, cubic: bool) -> Any:
    """As plugins.augmentations.resampling has it."""
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    if not cubic:
        return max(one - distance, zero)
    u, v = max(two - distance, zero), max(one - distance, zero)
    return np.float32(0.5) * u * u * (u - one) + v * v * (one - two * v)


@_compile
def _flip(images: Any, hit: Any) -> None:
    last = np.uint64(images.shape[3] - 1)
    for n in range(len(images)):
        if hit[n]:
            for channel in range(images.shape[1]):
                for y in range(images.shape[2]):
                    row = images[n, channel, y]
                    for x in range(np.uint64(len(row) // 2)):
                        row[x], row[last - x] = row[last - x], row[x]


@_compile
def _jitter(images: Any, hit: Any, order: Any, factors: Any) -> None:
    channels, pixels = images.shape[1], images.shape[2] * images.shape[3]
    for n in range(len(images)):
        if not hit[n]:
            continue
        image = images[n].reshape(channels, pixels)
        for step in order[n]:
            factor = factors[n, step]
            if step == 0:
                _brighten(image, factor)
            elif step == 1:
                _contrast(image, factor)
            elif step == 2 and channels == 3:
                _saturate(image, factor)
            elif step == 3 and channels == 3 and factor != 0:
                _turn_hue(image, factor)


@_compile
def _clipped(value: Any) -> Any:
    return min(max(value, np.float32(0)), np.float32(1))


@_compile
def _luma(red: Any, green: Any, blue: Any) -> Any:
    """torchvision's weights (ITU-R 601)."""
    return np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue


@_compile
def _brighten(image: Any, factor: Any) -> None:
    for channel in range(len(image)):
        plane = image[channel]
        for i in range(len(plane)):
            plane[i] = _clipped(plane[i] * factor)


@_compile
def _contrast(image: Any, factor: Any) -> None:
    total = 0.0
    if len(image) == 3:
        red, green, blue = image[0], image[1], image[2]
        for i in range(len(red)):
            total += _luma(red[i], green[i], blue[i])
    else:
        for i in range(image.shape[1]):
            total += image[0, i]
    added = np.float32((1 - factor) * total / image.shape[1])
    for channel in range(len(image)):
        plane = image[channel]
        for i in range(len(plane)):
            plane[i] = _clipped(plane[i] * factor + added)


@_compile
def _saturate(image: Any, factor: Any) -> None:
    red, green, blue = image[0], image[1], image[2]
    for i in range(len(red)):
        added = (np.float32(1) - factor) * _luma(red[i], green[i], blue[i])
        red[i] = _clipped(red[i] * factor + added)
        green[i] = _clipped(green[i] * factor + added)
        blue[i] = _clipped(blue[i] * factor + added)


@_compile
def _turn_hue(image: Any, shift: Any) -> None:
    """See `_shift_hue` in plugins.augmentations.colour."""
    one, two, four, six = np.float32(1), np.float32(2), np.float32(4), np.float32(6)
    red, green, blue = image[0], image[1], image[2]
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        high, low = max(r, g, b), min(r, g, b)
        chroma = high - low
        slope = g - b if r == high else (b - r if g == high else r - g)
        corner = np.float32(0) if r == high else (two if g == high else four)
        hexagon = slope / max(chroma, np.float32(1e-12)) + corner
        turned = hexagon / six + (one + shift)
        turned = (turned - np.floor(turned)) * six
        red[i] = _clipped(low + chroma * _clipped(abs(turned - np.float32(3)) - one))
        green[i] = _clipped(low + chroma * _clipped(two - abs(turned - two)))
        blue[i] = _clipped(low + chroma * _clipped(two - abs(turned - four)))


@_compile
def _gray(images: Any, hit: Any) -> None:
    for n in range(len(images)):
        if hit[n]:
            for y in range(images.shape[2]):
                red, green, blue = images[n, 0, y], images[n, 1, y], images[n, 2, y]
                for x in range(len(red)):
                    luma = _luma(red[x], green[x], blue[x])
                    red[x], green[x], blue[x] = luma, luma, luma


@_compile
def _blur(images: Any, hit: Any, weights: Any) -> None:
    _, channels, height, width = images.shape
    radius = weights.shape[1] // 2
    mixed = np.empty((height, width + 2 * radius), np.float32)
    for n in range(len(images)):
        if hit[n]:
            reach = radius
            while reach > 0 and weights[n, radius + reach] < _NOTHING:
                reach -= 1
            taps = weights[n, radius - reach : radius + reach + 1]
            for channel in range(channels):
                plane = images[n, channel]
                for y in range(height):
                    _mix_reflected(plane, y, taps, mixed[y, reach : reach + width])
                for y in range(height):
                    _reflect(mixed[y], reach, width)
                    _filter(mixed[y], taps, plane[y])


@_compile
def _mix_reflected(plane: Any, y: int, weights: Any, line: Any) -> None:
    """line[x] = sum over k of weights[k] * plane[y + k - r, x], rows beyond the border reflected; weights symmetric."""
    last, radius = len(plane) - 1, len(weights) // 2
    weight, row = weights[radius], plane[y]
    for x in range(len(line)):
        line[x] = weight * row[x]
    for k in range(1, radius + 1):
        weight, above, below = weights[radius + k], plane[abs(y - k)], plane[last - abs(last - y - k)]
        for x in range(len(line)):
            line[x] += weight * (above[x] + below[x])


@_compile
def _reflect(line: Any, radius: int, width: int) -> None:
    """Fill the `radius` values on either side of the row."""
    for k in range(1, radius + 1):
        line[radius - k] = line[radius + k]
        line[radius + width - 1 + k] = line[radius + width - 1 - k]


@_compile
def _filter(line: Any, weights: Any, out: Any) -> None:
    """out[x] = sum over k of weights[k] * line[x + k], clipped to [0, 1]; weights symmetric."""
    radius = len(weights) // 2
    weight, centre = weights[radius], line[radius:]
    for x in range(len(out)):
        out[x] = weight * centre[x]
    for k in range(1, radius + 1):
        weight, left, right = weights[radius + k], line[radius - k :], line[radius + k :]
        for x in range(len(out)):
            out[x] += weight * (left[x] + right[x])
    for x in range(len(out)):
        out[x] = _clipped(out[x])
