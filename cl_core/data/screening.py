"""What ingest does about near duplicates across splits: count and list them, remove them, or stop.

The list is near_duplicates.csv of the store, the counts are in its manifest. Images of one colour are all alike to the
hash; they are counted and named, and compared with nothing.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cl_core.data.duplicates import Hash, near_duplicates
from cl_core.data.files import write_bytes
from cl_core.data.readback import Readback
from cl_core.data.splits import SPLITS
from cl_core.errors import DataError

Policy = Literal["report", "drop", "fail"]
FILE = "near_duplicates.csv"
#: Pairs of splits, each the one that gives way first; two images of train are no leak.
LEAKS = ("train/validation", "train/test", "validation/test")
WITHIN = "train/train"
_LISTED = 100  # copies named in the manifest; the count is always whole
_NAMED = 10  # pairs in the error, images of one colour in the manifest


class Kept:
    """What is remembered of every image kept, 26 bytes each: split, hash of its pixels, hash of what it looks like."""

    def __init__(self) -> None:
        self._splits, self._flat, self._digests, self._hashes = bytearray(), bytearray(), bytearray(), array("Q")

    def __len__(self) -> int:
        return len(self._splits)

    def add(self, split: int, digest: bytes, seen: Hash) -> None:
        """Append an image. digest: 16 bytes."""
        self._splits.append(split)
        self._digests += digest
        self._hashes.append(seen.bits)
        self._flat.append(seen.flat)

    @property
    def splits(self) -> np.ndarray:
        """(N,) uint8 into SPLITS."""
        return np.frombuffer(self._splits, dtype=np.uint8)

    @property
    def digests(self) -> np.ndarray:
        """(N, 2) words."""
        return np.frombuffer(self._digests, dtype="<u8").reshape(-1, 2)

    @property
    def hashes(self) -> np.ndarray:
        """(N,) uint64."""
        return np.frombuffer(self._hashes, dtype=np.uint64)

    @property
    def flat(self) -> np.ndarray:
        """(N,) bool."""
        return np.frombuffer(self._flat, dtype=bool)


class Pair(NamedTuple):
    """Two pictures of one thing.

    kind: of LEAKS, or WITHIN; `key` is in the split named first, `other` in the second. bits: in which the hashes
    differ. difference: of the pixels, see `duplicates.difference`. dropped: one of the two was removed.
    """

    kind: str
    key: str
    other: str
    bits: int
    difference: float
    dropped: bool = False

    def __str__(self) -> str:
        return f"{self.key} = {self.other} ({self.kind})"


@dataclass(frozen=True)
class Screening:
    """What was found. dropped: (N,) bool, the images to leave out. flat: names of some images of one colour."""

    policy: Policy
    pairs: list[Pair]
    dropped: np.ndarray
    flat: list[str]
    flat_count: int
    complete: bool

    @property
    def reasons(self) -> dict[str, str]:
        """Why images were dropped, by name; the closest of their near duplicates last, which counts."""
        return {
            pair.key: f"near duplicate of {pair.other!r} in {pair.kind.split('/')[1]} (data.duplicates: drop)"
            for pair in reversed(self.pairs)
            if pair.dropped and pair.kind in LEAKS
        }

    def summary(self) -> dict[str, Any]:
        """For the manifest. pairs: by kind, of the images that are left; complete: false makes that "at least"."""
        counts = Counter(pair.kind for pair in self.pairs if not pair.dropped)
        return {
            "policy": self.policy,
            "pairs": {kind: counts[kind] for kind in (*LEAKS, WITHIN)},
            "complete": self.complete,
            "dropped": int(self.dropped.sum()),
            "flat": {"count": self.flat_count, "first": self.flat},
        }

    def write(self, folder: Path) -> None:
        """Write near_duplicates.csv: leaks first, the most alike first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Pair._fields)
        for pair in self.pairs:
            writer.writerow([*pair[:4], f"{pair.difference:.3f}", "yes" if pair.dropped else "no"])
        write_bytes(folder / FILE, text.getvalue().encode())


def screen(kept: Kept, stored: Readback, policy: Policy) -> Screening:
    """Look for near duplicates across splits and within train.

    Raises DataError where there are some across splits and the policy is fail.
    """
    found = near_duplicates(kept.hashes, kept.flat, kept.splits, stored.square)
    swapped = kept.splits[found.first] > kept.splits[found.second]
    first, second = np.where(swapped, (found.second, found.first), (found.first, found.second))
    leaks = kept.splits[first] != kept.splits[second]
    dropped = np.zeros(len(kept), dtype=bool)
    if policy == "drop":
        dropped[first[leaks]] = True
    gone = dropped[first] | dropped[second]
    pairs = [
        Pair(f"{SPLITS[kept.splits[a]]}/{SPLITS[kept.splits[b]]}", stored.key(a), stored.key(b), *rest)
        for a, b, *rest in zip(
            *(each.tolist() for each in (first, second, found.bits, found.difference, gone)), strict=True
        )
    ]
    pairs.sort(key=lambda pair: ((*LEAKS, WITHIN).index(pair.kind), pair.difference))
    if policy == "fail" and leaks.any():
        raise _leaking(pairs[: int(leaks.sum())])
    flat = np.flatnonzero(kept.flat)
    return Screening(policy, pairs, dropped, [stored.key(int(row)) for row in flat[:_NAMED]], len(flat), found.complete)


def exact_copies(kept: Kept, stored: Readback, found: Screening) -> dict[str, Any]:
    """Images left whose stored pixels also occur in an earlier split: [[key there, key here], ...], and how many.

    Images of one colour are left out here too.
    """
    rows = np.flatnonzero(~(found.dropped | kept.flat))
    pairs = rows[_repeated_later(kept.digests[rows], kept.splits[rows])]
    listed = [[stored.key(int(first)), stored.key(int(again))] for first, again in pairs[:_LISTED]]
    return {"across_splits": listed, "count": len(pairs)}


def _repeated_later(digests: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Positions (first, again) of equal digests in different splits, `first` in the earliest split that has it.

    digests: (N, 2) words. splits: (N,) numbers, train first. Returns (K, 2), sorted by `again`.
    """
    order = np.lexsort((splits, digests[:, 1], digests[:, 0]))
    in_order = digests[order]
    starts = np.concatenate([[True], (in_order[1:] != in_order[:-1]).any(axis=1)])
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    later = splits[order] > splits[first]
    pairs = np.stack([first[later], order[later]], axis=1)
    sorted_pairs: np.ndarray = pairs[np.argsort(pairs[:, 1], kind="stable")]
    return sorted_pairs


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs that `Screening.write` left in a store. Raises DataError where the file is missing or damaged."""
    try:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            Pair(
                row["kind"],
                row["key"],
                row["other"],
                int(row["bits"]),
                float(row["difference"]),
                row["dropped"] == "yes",
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / FILE} cannot be read ({error!r}); run `contrast run` to ingest the images again"
        ) from error


def _leaking(pairs: list[Pair]) -> DataError:
    listed = "; ".join(map(str, pairs[:_NAMED])) + (" ..." if len(pairs) > _NAMED else "")
    return DataError(
        f"{len(pairs):,} pairs of near duplicates lie in different splits: {listed}. Remove one image of each pair or "
        "give both the same group; or set data.duplicates to drop, which leaves out those of train (and those of "
        "validation that are in test), or to report"
    )


def told(summary: dict[str, Any], pairs: list[Pair]) -> Iterator[str]:
    """Lines for the log about what was found."""
    leaks = {kind: summary["pairs"][kind] for kind in LEAKS if summary["pairs"][kind]}
    least = "" if summary["complete"] else "at least "
    if leaks:
        yield (
            f"leakage: {least}{sum(leaks.values()):,} pairs of near duplicates across splits "
            f"({', '.join(f'{kind} {count:,}' for kind, count in leaks.items())}; all in {FILE}): "
            f"{'; '.join(map(str, pairs[:3]))}"
        )
    if summary["pairs"][WITHIN]:
        yield f"{least}{summary['pairs'][WITHIN]:,} pairs of near duplicates within train, which only give them weight"
    if summary["dropped"]:
        yield f"dropped {summary['dropped']:,} near duplicates of images in a later split (all in quarantine.csv)"
    if summary["flat"]["count"]:
        first = "; ".join(summary["flat"]["first"][:3])
        yield f"{summary['flat']['count']:,} images of one colour were not looked at for near duplicates: {first}"
