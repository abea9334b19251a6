"""Near duplicates across splits, counted and shown as pairs: what ingest found in the pixels, then what encoders say.

Reads the dataset and look_alikes.json of each experiment; searches nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cl_core.data.files import read_json
from cl_core.data.screening import LEAKS, WITHIN, Pair, read_pairs
from cl_core.data.store import Store
from cl_core.errors import DataError
from cl_core.evaluation.look_alikes import MIN_COSINE
from cl_core.report.retrieval import Picture, png

SHOWN = 6  # pairs per kind


@dataclass(frozen=True)
class ShownPair:
    """Two pictures side by side. splits: where each lies. figure: how alike they are."""

    one: Picture
    other: Picture
    splits: tuple[str, str]
    figure: str


@dataclass(frozen=True)
class Leakage:
    """across: pairs in different splits. counts: (splits, pairs) of each kind. lines: sentences without full stop.

    warning: what leaks and what to do, "" where nothing does.
    """

    across: str
    counts: list[tuple[str, str]]
    lines: list[str]
    warning: str
    pairs: list[ShownPair]


@dataclass(frozen=True)
class SecondLook:
    """What an encoder finds alike across splits. text: a sentence without full stop."""

    text: str
    pairs: list[ShownPair]


def leakage(store: Store) -> Leakage:
    """What ingest found. Raises DataError for a store of an earlier version."""
    summary = _summary(store)
    pairs = [pair for pair in read_pairs(store.path) if not pair.dropped]
    least = "" if summary["complete"] else "at least "
    pictures = _Pictures(store)
    return Leakage(
        across=f"{least}{sum(summary['pairs'][kind] for kind in LEAKS):,}",
        counts=[(_arrow(kind), f"{least}{summary['pairs'][kind]:,}") for kind in (*LEAKS, WITHIN)],
        lines=list(_lines(summary)),
        warning=_warning(summary, store.manifest["duplicates"]["count"], least),
        pairs=[
            pictures.pair(pair.kind, pair.key, pair.other, f"pixels differ by {pair.difference:.2f}")
            for kind in (*LEAKS, WITHIN)
            for pair in _spread([pair for pair in pairs if pair.kind == kind])
        ],
    )


def second_look(store: Store, embed: Path, remake: str) -> SecondLook | None:
    """What `embed` found with an encoder; None where it has not run. Raises DataError for a damaged file."""
    path = embed / "look_alikes.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        if "skipped" in found:
            return SecondLook(f"cannot tell copies from other images: {found['skipped']}", [])
        kinds = {kind: (each["count"], each["first"]) for kind, each in found["pairs"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); make it again with `{remake}`") from error
    counts = ", ".join(f"{_arrow(kind)} {count:,}" for kind, (count, _) in kinds.items())
    pictures = _Pictures(store)
    shown = [
        pictures.pair(kind, key, other, f"cosine {cosine:.3f}")
        for kind, (_, first) in kinds.items()
        for key, other, cosine in first[:SHOWN]
    ]
    return SecondLook(f"pairs with a cosine above {MIN_COSINE}: {counts}", shown)


def _summary(store: Store) -> Mapping[str, Any]:
    if "near_duplicates" not in store.manifest:
        raise DataError(f"{store.path} was written before near duplicates were looked for; run `contrast run`")
    summary: Mapping[str, Any] = store.manifest["near_duplicates"]
    return summary


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["dropped"]:
        yield (
            f"{summary['dropped']:,} near duplicates of images in a later split were left out "
            "(`data.duplicates: drop`); `artifacts/dataset/quarantine.csv` names them"
        )
    flat = summary["flat"]
    if flat["count"]:
        yield f"{flat['count']:,} images of one colour, for example `{flat['first'][0]}`, were compared with nothing"


def _warning(summary: Mapping[str, Any], exact: int, least: str) -> str:
    leaks = sum(summary["pairs"][kind] for kind in LEAKS)
    if not leaks:
        return ""
    lie = "1 pair of near duplicates lies" if leaks == 1 else f"{leaks:,} pairs of near duplicates lie"
    copies = f", {exact:,} of the images an exact copy" if exact else ""
    return (
        f"{least.capitalize()}{lie} in different splits{copies}, so test figures may be optimistic. They are shown "
        "under Leakage; `data.duplicates: drop` leaves them out of training."
    )


def _arrow(kind: str) -> str:
    one, other = kind.split("/")
    return f"within {one}" if one == other else f"{one} and {other}"


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """Some of them, from the most to the least alike, so that a threshold that is too wide would show."""
    if len(pairs) <= SHOWN:
        return list(pairs)
    return [pairs[round(k * (len(pairs) - 1) / (SHOWN - 1))] for k in range(SHOWN)]


class _Pictures:
    """Images of a store by split and key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _rows(self) -> dict[str, dict[str, int]]:
        names = self._store.manifest["splits"]
        return {name: {key: row for row, key in enumerate(self._store.split(name).keys)} for name in names}

    def pair(self, kind: str, key: str, other: str, figure: str) -> ShownPair:
        """Raises DataError where the store holds no such images."""
        one, two = kind.split("/")
        return ShownPair(self._picture(one, key), self._picture(two, other), (one, two), figure)

    def _picture(self, name: str, key: str) -> Picture:
        row = self._rows[name].get(key)
        if row is None:
            raise DataError(f"{key!r} is no {name} image of the store; run `contrast run` to bring all up to date")
        split = self._store.split(name)
        image = split.images(torch.tensor([row]))[0].permute(1, 2, 0).numpy()
        label = int(split.labels[row])
        return Picture(key, self._store.classes[label] if label >= 0 else "", png(image))
