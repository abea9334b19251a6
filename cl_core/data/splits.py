"""Which example goes where: a first pass over a source that looks at names only, never at pixels.

A split that the source knows is kept. One that it does not know is carved out of train by the hash of the example's
group or key, so the outcome depends on names and not on order, count or chance: with a share, adding an image moves
no other one. The pass keeps about 30 bytes per example.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cl_core.errors import ConfigError, DataError
from cl_core.examples import Example, Source

SPLITS = ("train", "validation", "test")
_UNKNOWN = -1
_TRAIN = 0


@dataclass(frozen=True)
class SplitRule:
    """How much of train to set aside where the source has no such split.

    A float in [0, 1) is a share: an example belongs there if its hash says so. An int is a number: that many examples
    of smallest hash (whole groups, so it may be exceeded by less than a group; fewer where some are quarantined).
    Raises ConfigError for anything else, or if nothing would be left for train.
    """

    validation: float | int
    test: float | int

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            value = getattr(self, name)
            if value < 0 or (isinstance(value, float) and value >= 1):
                raise ConfigError(
                    f"the split {name} must be a share in [0, 1) or a whole number of images, got {value}; write 0.1 "
                    "for a tenth, 500 for that many images"
                )
        if self._share("validation") + self._share("test") >= 1:
            raise ConfigError(
                f"validation {self.validation} and test {self.test} leave nothing for train; make their sum less than 1"
            )

    def _share(self, name: str) -> float:
        value = getattr(self, name)
        return value if isinstance(value, float) else 0.0


@dataclass(frozen=True)
class Survey:
    """What the first pass found, one entry per example in the source's order.

    keys: (N,) uint64 hashes. labels: (N,) int32 indices into `classes`, -1 for none. splits: (N,) int8 into SPLITS.
    grouped: whether any example names a group.
    """

    keys: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: list[str]
    grouped: bool

    def __len__(self) -> int:
        return len(self.keys)


def hash_words(text: str) -> tuple[int, int, int, int]:
    """Four independent 64-bit hashes of a name: for its identity, test, validation, and subsets."""
    words: tuple[int, int, int, int] = struct.unpack(">4Q", hashlib.sha256(text.encode()).digest())
    return words


def survey(source: Source, rule: SplitRule) -> Survey:
    """Number the classes and assign the splits. Raises DataError for an invalid example or a key that comes twice."""
    keys, tests, validations = array("Q"), array("Q"), array("Q")
    labels, splits = array("i"), array("b")
    numbers: dict[str, int] = {}
    grouped = False
    for position, example in enumerate(source):
        _check(example, position)
        words = hash_words(example.key)
        keys.append(words[0])
        _, test, validation, _ = words if example.group is None else hash_words(example.group)
        grouped |= example.group is not None
        tests.append(test)
        validations.append(validation)
        labels.append(-1 if example.label is None else numbers.setdefault(example.label, len(numbers)))
        splits.append(_UNKNOWN if example.split is None else SPLITS.index(example.split))
    _check_unique(source, np.asarray(keys))
    hashes = {"test": np.asarray(tests), "validation": np.asarray(validations)}
    classes = sorted(numbers, key=_natural)
    return Survey(
        keys=np.asarray(keys),
        labels=_renumbered(np.asarray(labels), [numbers[name] for name in classes]),
        splits=_carved(np.asarray(splits), hashes, rule),
        classes=classes,
        grouped=grouped,
    )


def _carved(given: np.ndarray, hashes: dict[str, np.ndarray], rule: SplitRule) -> np.ndarray:
    splits = np.where(given == _UNKNOWN, np.int8(_TRAIN), given)
    left = 1.0  # share of the train images that is still there
    for name in ("test", "validation"):
        if SPLITS.index(name) in given:
            continue
        amount = getattr(rule, name)
        pool = np.flatnonzero(splits == _TRAIN)
        share = amount / left if isinstance(amount, float) else None
        splits[pool[_chosen(hashes[name][pool], amount if share is None else share)]] = SPLITS.index(name)
        left -= share or 0.0
    return splits


def _chosen(hashes: np.ndarray, amount: float | int) -> np.ndarray:
    """Mask of the examples below the share, or of that many of smallest hash; equal hashes are one group."""
    if isinstance(amount, float):
        return hashes < np.uint64(int(amount * 2**64))
    if amount == 0 or len(hashes) == 0:
        return np.zeros(len(hashes), dtype=bool)
    groups, counts = np.unique(hashes, return_counts=True)
    last = min(int(np.searchsorted(np.cumsum(counts), amount)), len(groups) - 1)
    mask: np.ndarray = hashes <= groups[last]
    return mask


def _check(example: Example, position: int) -> None:
    """Refuse what a source may not yield; the parts of the message are for the author of the source."""
    problem = ""
    if not isinstance(example, Example):
        problem = f"is a {type(example).__name__}; yield cl_core.types.Example"
    elif not isinstance(example.key, str) or not example.key:
        problem = f"has the key {example.key!r}; a key is a text that is not empty"
    elif not all(value is None or isinstance(value, str) for value in (example.label, example.group)):
        problem = f"({example.key!r}) has label {example.label!r} and group {example.group!r}; both are text or None"
    elif example.split is not None and example.split not in SPLITS:
        problem = f"({example.key!r}) has the split {example.split!r}; choose one of {', '.join(SPLITS)}, or None"
    elif not all(map(_is_text, (example.key, example.label or "", example.group or ""))):
        problem = f"({example.key!r}) has a name that is not valid text; decode it with errors='backslashreplace'"
    if problem:
        raise DataError(f"example {position} of the source {problem}")


def _is_text(name: str) -> bool:
    """Whether it can be written as UTF-8; file names that cannot come from the system with lone surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _check_unique(source: Source, keys: np.ndarray) -> None:
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(equal) == 0:
        return
    suspects = set(order[equal].tolist()) | set(order[equal + 1].tolist())
    first: dict[str, tuple[int, Example]] = {}
    for position, example in _at(source, suspects):
        if example.key in first:
            other, twin = first[example.key]
            raise DataError(
                f"the source gives the key {example.key!r} to two examples: number {other}{_origin(twin)} and number "
                f"{position}{_origin(example)}; rename one of them, keys must be unique"
            )
        first[example.key] = (position, example)


def _at(source: Iterable[Example], positions: set[int]) -> Iterator[tuple[int, Example]]:
    return ((position, example) for position, example in enumerate(source) if position in positions)


def _origin(example: Example) -> str:
    return "" if isinstance(example.image, bytes | np.ndarray) else f" ({example.image})"


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers first and by value, so that class "10" does not stand before "2"."""
    number = name.isascii() and name.isdigit()
    return (not number, int(name) if number else 0, name)


def _renumbered(labels: np.ndarray, order: list[int]) -> np.ndarray:
    """Labels numbered as they were met -> numbered by `order`, a list of the old numbers; -1 stays."""
    new = np.full(len(order) + 1, -1, dtype=np.int32)  # the last one is met by index -1
    new[order] = np.arange(len(order), dtype=np.int32)
    return new[labels]
