"""Near duplicates: images that are one picture twice, resized, recompressed, brightened or slightly cropped.

A 64-bit hash of low frequencies (pHash, Zauner 2010) names candidates, the difference of the pixels confirms them. The
search is exact and never compares all with all: hashes that differ in at most 4 bits agree in two of six bands, by
which they are sorted. Finds nothing that is mirrored or turned, and knows nothing of splits or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

MAX_BITS = 4  #: bits in which the hashes of candidates may differ
MAX_DIFFERENCE = 0.4  #: of a confirmed pair; on CIFAR-10 all pairs below are one picture, above 0.6 hardly any
SIDE = 32  # of the image that is hashed and compared
_LOW = 8  # frequencies per axis
_SCALE = 512  # of the integer transform: sums stay below 2^53 for sides of up to 1,024, so float64 is exact
_GREY = np.array([77, 150, 29], dtype=np.float32)  # of 256, ITU-R BT.601
_PIXELS = 1 << 16  # at a time
_MIN_CONTRAST = 2.0  # standard deviation, of 255, of what the hash sees

_BANDS = (11, 11, 11, 11, 10, 10)  # bits; at most 4 differing bits leave at least two bands alike
_REACH = 2048  # images that one is compared with among those that agree in two bands
_PARTNERS = 16  # confirmed per image and split, after which no more are looked for
_COMPARED = 256  # pairs at a time: 12 MB
_CACHED = 4096  # reduced images of 3 KB


class Hash(NamedTuple):
    """bits: the hash, 0 where `flat`. flat: the image has too little contrast for its hash to say anything."""

    bits: int
    flat: bool


def perceptual_hashes(images: Sequence[np.ndarray]) -> list[Hash]:
    """Of each (S, S, 3) uint8 image, all of one side S: which of the 63 lowest frequencies of its grey 32 x 32 version,
    the mean left out, lie above their median.

    Computed in whole numbers, so equal images have equal hashes on any machine and in any company.
    """
    step = max(1, _PIXELS // images[0].shape[0] ** 2) if images else 1
    return [seen for start in range(0, len(images), step) for seen in _hashes(np.stack(images[start : start + step]))]


def _hashes(images: np.ndarray) -> list[Hash]:
    count, side = images.shape[:2]
    transform, unit = _transform(side)
    grey = (images.astype(np.float32) @ _GREY).astype(np.float64)
    grey -= np.rint(grey.mean(axis=(1, 2), keepdims=True))
    low = (transform @ grey @ transform.T).reshape(count, -1)[:, 1:]
    above = low > np.sort(low, axis=1)[:, low.shape[1] // 2, None]
    bits = np.packbits(above, axis=1).view(">u8")[:, 0].tolist()
    flat = ((low**2).sum(axis=1) * unit < _MIN_CONTRAST**2).tolist()
    return [Hash(0, True) if dull else Hash(number, False) for number, dull in zip(bits, flat, strict=True)]


@cache
def _transform(side: int) -> tuple[np.ndarray, float]:
    """(8, side) whole numbers: average to 32, then a cosine transform; and what squares are multiplied with.

    The sum of squared coefficients times that is their share of the variance of the 32 x 32 image.
    """
    k, x = np.arange(_LOW)[:, None], np.arange(SIDE)[None]
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE)) * np.sqrt(np.where(k == 0, 1, 2) / SIDE)
    exact = cosines @ averaging(side)
    scale = _SCALE / np.abs(exact).max()
    return np.round(exact * scale), 1 / (scale**4 * SIDE**2 * 256**2)


@cache
def averaging(side: int) -> np.ndarray:
    """(32, side): weights that average an axis of `side` pixels over 32 equal parts, parts of pixels included."""
    edges = np.arange(SIDE + 1) * side / SIDE
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: np.ndarray = overlap.clip(0) * SIDE / side
    return weights


def reduced(image: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 -> (32, 32, 3) uint8, averaged over equal parts."""
    weights = averaging(image.shape[0])
    small: np.ndarray = np.einsum("ax,xyc,by->abc", weights, image, weights, optimize=True).round().astype(np.uint8)
    return small


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference of reduced images (M, 32, 32, 3), each less its mean colour and over its contrast.

    Returns (M,): 0 for equal images and for one that is a brighter version of the other, 1 and more for unrelated ones.
    """
    apart: np.ndarray = np.abs(_standardised(one) - _standardised(other)).mean(axis=(1, 2, 3))
    return apart


def _standardised(images: np.ndarray) -> np.ndarray:
    images = images.astype(np.float32)
    images -= images.mean(axis=(1, 2), keepdims=True)
    contrast = np.abs(images).mean(axis=(1, 2, 3), keepdims=True)
    standardised: np.ndarray = images / np.maximum(contrast, 0.1)
    return standardised


def candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of at most 4 differing bits once, in blocks of positions (M,) and (M,), the smaller first.

    hashes: (N,) uint64. Memory is O(N). Of images that agree with more than _REACH others in two bands only those
    are compared that stand near one another in the order of their hashes.
    """
    masks = _two_bands()
    for number, mask in enumerate(masks):
        order = np.lexsort((np.arange(len(hashes)), hashes, hashes & mask))
        for one, other in _runs(hashes[order] & mask):
            a, b = order[one], order[other]
            differing = hashes[a] ^ hashes[b]
            near = np.bitwise_count(differing) <= MAX_BITS
            for earlier in masks[:number]:  # which have found it already
                near &= (differing & earlier) != 0
            yield np.minimum(a, b)[near], np.maximum(a, b)[near]


def _two_bands() -> list[np.uint64]:
    ends = np.cumsum(_BANDS)
    bands = [np.uint64(((1 << bits) - 1) << int(end - bits)) for bits, end in zip(_BANDS, ends, strict=True)]
    return [one | other for one, other in combinations(bands, 2)]


def _runs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places with equal keys, which are sorted, by growing distance."""
    start = np.arange(len(keys))
    for distance in range(1, _REACH + 1):
        start = start[start + distance < len(keys)]
        start = start[keys[start] == keys[start + distance]]
        if len(start) == 0:
            return
        yield start, start + distance


def _crowded(hashes: np.ndarray) -> bool:
    """Whether `candidates` leaves pairs out."""
    return any(np.unique(hashes & mask, return_counts=True)[1].max(initial=0) > _REACH + 1 for mask in _two_bands())


class Pairs(NamedTuple):
    """Confirmed pairs of positions, sorted: (K,) int64 each, first < second. bits, difference: (K,) how far apart.

    complete: false where images have so many look-alikes that not all pairs were looked at.
    """

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    difference: np.ndarray
    complete: bool


def near_duplicates(
    hashes: np.ndarray, flat: np.ndarray, splits: np.ndarray, image: Callable[[int], np.ndarray]
) -> Pairs:
    """Near duplicates among N images, in different splits or both in split 0 (train).

    hashes: (N,) uint64. flat: (N,) bool, these take no part. splits: (N,) small numbers. image: position -> its
    (S, S, 3) uint8 pixels; asked for candidates only. Every image that has a near duplicate in a split is in a pair
    with one; of more than _PARTNERS there, some may be left out.
    """
    small = lru_cache(_CACHED)(lambda position: reduced(image(position)))
    rows = np.flatnonzero(~flat)
    partners = np.zeros((len(hashes), int(splits.max(initial=0)) + 1), dtype=np.int64)
    found: list[np.ndarray] = []
    complete = not _crowded(hashes[rows])
    for one, other in candidates(hashes[rows]):
        a, b = rows[one], rows[other]
        asked = (splits[a] != splits[b]) | (splits[a] == 0)
        enough = (partners[a, splits[b]] >= _PARTNERS) & (partners[b, splits[a]] >= _PARTNERS)
        complete &= not (asked & enough).any()
        a, b = a[asked & ~enough], b[asked & ~enough]
        apart = _differences(a, b, small)
        same = apart <= MAX_DIFFERENCE
        a, b = a[same], b[same]
        np.add.at(partners, (a, splits[b]), 1)
        np.add.at(partners, (b, splits[a]), 1)
        found.append(np.stack([a, b, apart[same]]))
    return _sorted_pairs(found, hashes, complete)


def _differences(a: np.ndarray, b: np.ndarray, small: Callable[[int], np.ndarray]) -> np.ndarray:
    """Of the images at a and b, (M,) each, some at a time."""
    parts = [
        difference(*(np.stack([small(row) for row in rows[start : start + _COMPARED].tolist()]) for rows in (a, b)))
        for start in range(0, len(a), _COMPARED)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _sorted_pairs(found: list[np.ndarray], hashes: np.ndarray, complete: bool) -> Pairs:
    first, second, apart = np.concatenate(found, axis=1) if found else np.zeros((3, 0))
    order = np.lexsort((second, first))
    first, second = first[order].astype(np.int64), second[order].astype(np.int64)
    return Pairs(first, second, np.bitwise_count(hashes[first] ^ hashes[second]), apart[order], complete)
