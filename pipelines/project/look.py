"""What the images say of themselves: how many, of which classes, how large, and of what kind.

Reads all names, the headers of a sample, and decodes some of that small. Whatever the folder holds (pipes, devices,
broken files, headers that promise billions of pixels), what cannot be used is counted and passed over. Writes nothing.
"""

from __future__ import annotations

import stat
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from cl_core.data.decode import MAX_PIXELS, Picture, UnreadableImageError, quiet_pillow, read, reasons, upright
from cl_core.data.splits import SPLITS, SplitRule, Survey, survey
from cl_core.errors import DataError
from cl_core.examples import Example, Source
from pipelines.cores import cores

SAMPLE = 200  # images whose headers are read
PICTURES = 100  # of them decoded
PIXELS = 400_000_000  # decoded at most, in files: a hundred phone photographs would take half a minute
FEW = 300  # images below which sets for choosing and testing are counted, not drawn by chance
SHARES = SplitRule(validation=0.1, test=0.2)

_SIDE = 128  # of a decoded picture, at most; thin lines of drawings survive it
_TINY = 32
_ELONGATED = 2.0
_GRID = 16  # side of the squares that show whether there is an "up"

Kind = Literal["photographs", "drawings", "microscope"]


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of a set of images.

    count: all that the source lists. looked_at, unreadable: size of the sample, and how many of it cannot be used.
    train, validation, test: what is left for each split. rule: how those are drawn where the folders have none.
    classes: number of labels. largest, smallest: the class with most and with fewest images, and its share of the
    labelled. side: median of the shorter sides in pixels. aspect: median of longer by shorter side. pixels: median of a
    file. is_grey: whether hardly one has a colour. background: of the border.
    """

    count: int
    looked_at: int = SAMPLE
    unreadable: int = 0
    train: int
    validation: int
    test: int
    rule: SplitRule = SHARES
    has_splits: bool = False
    classes: int = 0
    largest: tuple[str, float] = ("", 0.0)
    smallest: tuple[str, float] = ("", 0.0)
    side: int
    aspect: float = 1.0
    pixels: int = 0
    kind: Kind = "photographs"
    is_grey: bool = False
    background: Literal["bright", "dark", "mixed"] = "mixed"

    @property
    def is_tiny(self) -> bool:
        """Whether half of the images have a shorter side of less than 32 pixels."""
        return self.side < _TINY

    @property
    def is_elongated(self) -> bool:
        """Whether the square in the middle leaves out most of half of the images."""
        return self.aspect > _ELONGATED

    @property
    def is_unbalanced(self) -> bool:
        """Whether the largest class has at least three times as many images as the smallest."""
        return self.classes > 1 and self.largest[1] >= 3 * self.smallest[1]

    @property
    def look(self) -> str:
        """Their kind in words."""
        words = {"drawings": "line drawings", "microscope": "crops that have no up, as from a microscope"}
        return ("grey " if self.is_grey else "") + words.get(self.kind, self.kind)

    def told(self) -> list[str]:
        """Lines for the screen: what was seen."""
        labels = f"in {self.classes} classes" if self.classes else "without labels (so the evaluation will be skipped)"
        shape = f", {self.aspect:.1f} times as long as wide" if self.is_elongated else ""
        images = "1 image" if self.count == 1 else f"{self.count:,} images"
        lines = [f"{images} {labels}, shorter side {self.side} pixels{shape}; {self.look}"]
        if self.unreadable:
            lines.append(f"{self.unreadable} of {self.looked_at} looked at cannot be read; `contrast run` lists them")
        if self.is_unbalanced:
            (most, share), (least, rest) = self.largest, self.smallest
            lines.append(
                f"unbalanced: {most!r} is {share:.0%} of the images, the accuracy of always answering it; {least!r} is "
                f"{rest:.1%}"
            )
        return lines


def look(source: Source, where: Path) -> Images:
    """Look at the images of a source. Raises DataError where none of those looked at can be read."""
    plan, rule = survey(source, SHARES), SHARES
    if len(plan) < FEW:
        rule = SplitRule(validation=max(1, len(plan) // 10), test=max(1, len(plan) // 5))
        plan = survey(source, rule)
    with quiet_pillow():
        sample = _Sample(spread(source, len(plan), SAMPLE))
    if not sample.seen:
        raise DataError(f"{where}: none of the images looked at can be read as an image; are they images?")
    largest, smallest = _balance(plan)
    return Images(
        count=len(plan),
        looked_at=len(sample.examples),
        unreadable=len(sample.examples) - len(sample.shapes),
        **_split_counts(plan, sample),
        rule=rule,
        has_splits=sample.examples[0].split is not None,
        classes=len(plan.classes),
        largest=largest,
        smallest=smallest,
        side=int(statistics.median(min(shape) for shape in sample.shapes)),
        aspect=statistics.median(max(shape) / min(shape) for shape in sample.shapes),
        pixels=int(statistics.median(width * height for width, height in sample.shapes)),
        kind=_kind(sample),
        is_grey=bool(np.mean([seen.colour < 0.02 for seen in sample.seen]) >= 0.95),
        background=_background(sample.seen),
    )


def spread(source: Source, count: int, wanted: int) -> list[Example]:
    """Up to `wanted` of the source's `count` examples, evenly over its order."""
    step = max(1, count // wanted)
    return [example for number, example in enumerate(source) if number % step == 0][:wanted]


class _Sample:
    """Some examples. readable: which of them can be read. shapes: width and height of those. seen: of those decoded."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        sizes = {number: _size(example.image) for number, example in enumerate(examples)}
        shapes = {number: size for number, size in sizes.items() if size is not None}
        looks = _looks(examples, shapes)
        self.readable = [number for number in shapes if looks.get(number, True) is not None]
        self.shapes = [shapes[number] for number in self.readable]
        self.seen = [seen for seen in looks.values() if seen is not None]


def _split_counts(plan: Survey, sample: _Sample) -> dict[str, int]:
    """Images per split without those that cannot be read: counted where all were looked at, else by their share."""
    if len(sample.examples) == len(plan):
        splits, share = plan.splits[sample.readable], 1.0
    else:
        splits, share = plan.splits, len(sample.readable) / len(sample.examples)
    return {name: round(int((splits == number).sum()) * share) for number, name in enumerate(SPLITS)}


def _balance(plan: Survey) -> tuple[tuple[str, float], tuple[str, float]]:
    """The largest and the smallest class with its share of all labelled images."""
    labels = plan.labels[plan.labels >= 0]
    if len(labels) == 0:
        return ("", 0.0), ("", 0.0)
    counts = np.bincount(labels, minlength=len(plan.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    shares = counts / counts.sum()
    return (plan.classes[most], float(shares[most])), (plan.classes[least], float(shares[least]))


def _size(image: bytes | Path | np.ndarray) -> tuple[int, int] | None:
    """Width and height by the header alone; None where there is none, or where it promises too much."""
    if not isinstance(image, Path):
        return None
    try:
        with reasons():
            if not stat.S_ISREG(image.stat().st_mode):  # a pipe would be waited for
                return None
            with Image.open(image) as opened:
                width, height = opened.size
    except UnreadableImageError:
        return None
    return (width, height) if 0 < width * height <= MAX_PIXELS else None


class _Look(NamedTuple):
    """One picture, values in [0, 1]. colour: mean spread of channels. rgb: mean colour. edge: median grey at its edge.

    two_valued: whether nearly all pixels are nearly as dark or as bright as any. square: (16, 16) standardised grey.
    """

    colour: float
    rgb: np.ndarray
    edge: float
    two_valued: bool
    square: np.ndarray


def _looks(examples: Sequence[Example], shapes: Mapping[int, tuple[int, int]]) -> dict[int, _Look | None]:
    """Decode as many as the limits allow, in threads; None where that fails. Keys and shapes by number of example."""
    chosen, pixels = list[int](), 0
    for number in list(shapes)[:: max(1, len(shapes) // PICTURES)][:PICTURES]:
        pixels += shapes[number][0] * shapes[number][1]
        if pixels > PIXELS and len(chosen) >= cores():
            break
        chosen.append(number)
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(chosen, pool.map(_look, [examples[number] for number in chosen]), strict=True))


def _look(example: Example) -> _Look | None:
    try:
        return _measured(read(example.image, _small, side=_SIDE))
    except UnreadableImageError:
        return None


def _small(picture: Picture, turn: int) -> np.ndarray:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return upright(np.asarray(image), turn)


def _measured(rgb: np.ndarray) -> _Look:
    """rgb: (H, W, 3) uint8."""
    pixels = rgb.astype(np.float32) / 255
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    square = np.asarray(Image.fromarray(rgb).resize((_GRID, _GRID)).convert("L"), dtype=np.float32)
    return _Look(
        colour=float((pixels.max(axis=2) - pixels.min(axis=2)).mean()),
        rgb=pixels.mean(axis=(0, 1)),
        edge=float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))),
        two_valued=_is_two_valued(grey),
        square=(square - square.mean()) / (square.std() + 1e-6),
    )


def _is_two_valued(grey: np.ndarray) -> bool:
    """Whether 85 % lie near an extreme, and so do half of those that are not background.

    On photographs before white paper the first may hold, but what stands before it has shades.
    """
    low, high = grey.min(), grey.max()
    near = 0.15 * (high - low)
    shares = sorted([float((grey <= low + near).mean()), float((grey >= high - near).mean())])
    return bool(high - low > 0.3 and sum(shares) >= 0.85 and shares[0] >= 0.5 * (1 - shares[1]))


def _kind(sample: _Sample) -> Kind:
    """Told from a hundred pictures each of `hands`, `cells`, `letters` and CIFAR-10."""
    if np.mean([seen.two_valued for seen in sample.seen]) >= 0.8:
        return "drawings"
    few_colours = float(np.std([seen.rgb for seen in sample.seen], axis=0).mean()) < 0.08
    small = statistics.median(max(shape) for shape in sample.shapes) <= 256
    return "microscope" if small and few_colours and _has_no_up(sample.seen) else "photographs"


def _has_no_up(pictures: Sequence[_Look]) -> bool:
    """Whether the mean picture stays what it is when it is turned by 90 or 180 degrees, but for chance.

    Its change, in units of what chance alone would give, was 1.6 and 1.8 for blood cells; 3.0 and 4.7 for letters, 5
    and 10 for CIFAR-10, 72 and 84 for hands (100 pictures each). Says nothing of fewer than 50.
    """
    if len(pictures) < 50:
        return False
    squares = np.stack([seen.square for seen in pictures])
    mean, chance = squares.mean(axis=0), squares.var(axis=0).mean() / len(squares)
    changes = [float(np.square(mean - np.rot90(mean, turns)).mean() / (2 * chance)) for turns in (1, 2)]
    return max(changes) < 2.5


def _background(pictures: Sequence[_Look]) -> Literal["bright", "dark", "mixed"]:
    edges = np.array([seen.edge for seen in pictures])
    if np.mean(edges > 0.8) >= 0.8:
        return "bright"
    return "dark" if np.mean(edges < 0.2) >= 0.8 else "mixed"
