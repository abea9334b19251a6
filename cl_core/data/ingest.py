"""From a source of images to a store: every file verified, converted, put into a split, and accounted for.

Two passes. The first reads names (`data.splits`), the second decodes in threads (`data.decode`) and writes shards
(`data.shards`) in the order of the source, so the same images give the same bytes for any number of threads. An image
that cannot be used goes to quarantine.csv with its reason; nothing is dropped in silence, nothing half-read is kept.
Near duplicates across splits are `data.screening`'s. Memory stays flat: under 100 bytes per image, and what is in
flight. The folder appears whole or not at all.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cl_core.data.decode import MAX_PIXELS, quiet_pillow
from cl_core.data.files import write_json
from cl_core.data.form import Form, Stored
from cl_core.data.readback import Readback
from cl_core.data.screening import FILE, Kept, Pair, Policy, Screening, exact_copies, screen, told
from cl_core.data.shards import CHANNELS, FORMAT, ShardWriter
from cl_core.data.splits import SPLITS, SplitRule, Survey, hash_words, survey
from cl_core.errors import DataError
from cl_core.examples import Example, Source

__all__ = ["SplitRule", "ingest"]

_CHUNK = 32  # examples per task: handing over single small images would cost more than decoding them
_TOLD = 3  # examples of each kind in the summary
_PROGRESS = 10_000  # images between two progress lines, at least

_OWN_FILES = {"manifest.json", "quarantine.csv", FILE}


def ingest(
    source: Source,
    out: Path,
    *,
    size: int,
    splits: SplitRule,
    source_spec: Mapping[str, Any],
    max_shorter_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    duplicates: Policy = "report",
    workers: int | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the store `out`, images (size, size, 3) uint8, and return its manifest.

    source_spec: {"name", "options"} for the manifest. max_shorter_side: makes the layout `encoded`, JPEG files whose
    shorter side has at most that many pixels, at least `size`. max_pixels: larger images are quarantined unread.
    duplicates: what is done about near duplicates in different splits. workers: threads, None for one per core.
    report: gets a few lines of summary.
    Raises DataError where keys come twice, an example is invalid, no image is left for train, the source changes
    meanwhile, `out` holds other files than a store's, or `duplicates` is fail and there are some.
    """
    _check_target(out)
    plan = survey(source, splits)
    if len(plan) == 0:
        raise DataError(
            f"the source {source_spec.get('name', '')!r} gives no image; point it at a place that holds some"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        form = Form(size, max_shorter_side, max_pixels)
        with quiet_pillow(), _StoreWriter(partial, plan, form) as store:
            for position, image in enumerate(_decoded(source, plan, form, workers or _cores())):
                store.add(position, image)
                if (position + 1) % max(_PROGRESS, len(plan) // 10) == 0:
                    report(f"{position + 1:,} of {len(plan):,} images read")
            manifest = store.finish(source_spec, splits, duplicates)
        write_json(partial / "manifest.json", manifest)
        _publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for line in (*_summary(manifest, store.first_reasons), *told(manifest["near_duplicates"], store.leaks)):
        report(line)
    return manifest


def _decoded(source: Source, plan: Survey, form: Form, workers: int) -> Iterator[Stored]:
    """The second pass: every example of the source, decoded in threads, in order, a bounded number in flight."""
    pending: deque[Future[list[Stored]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for chunk in _chunks(_unchanged(source, plan)):
                pending.append(pool.submit(form.convert, chunk))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _unchanged(source: Source, plan: Survey) -> Iterator[Example]:
    """The examples of the source, as long as they are those of the first pass."""
    count = 0
    for example in source:
        if count == len(plan) or hash_words(example.key)[0] != int(plan.keys[count]):
            break
        yield example
        count += 1
    else:
        if count == len(plan):
            return
    raise DataError(f"the source changed while it was read (at example {count}); run the same command again")


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


class _StoreWriter:
    """The shards, the quarantine list and the counts of a store in the making."""

    def __init__(self, folder: Path, plan: Survey, form: Form) -> None:
        self._folder, self._plan, self._form = folder, plan, form
        self._writers: dict[int, ShardWriter] = {}
        self._quarantine_file = (folder / "quarantine.csv").open("w", newline="", encoding="utf-8")
        self._quarantine = csv.writer(self._quarantine_file, lineterminator="\n")
        self._quarantine.writerow(["key", "reason"])
        self._quarantined = 0
        self._kept = Kept()
        # Row: split. Column: class, the last one for images without a label.
        self._counts = np.zeros((len(SPLITS), len(plan.classes) + 1), dtype=np.int64)
        self.first_reasons: list[str] = []
        self.leaks: list[Pair] = []

    def __enter__(self) -> _StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._quarantine_file.close()
        for writer in self._writers.values():
            writer.abort()

    def add(self, position: int, decoded: Stored) -> None:
        """Store the image, or its reason; `position` is its place in the plan."""
        if decoded.image is None:
            self._quarantine.writerow([decoded.key, decoded.reason])
            self._quarantined += 1
            if len(self.first_reasons) < _TOLD:
                self.first_reasons.append(f"{decoded.key} ({decoded.reason})")
            return
        split, label = int(self._plan.splits[position]), int(self._plan.labels[position])
        if split not in self._writers:
            self._writers[split] = self._form.writer(self._folder, SPLITS[split], grouped=self._plan.grouped)
        self._writers[split].add(decoded.key, label, decoded.image, decoded.group)
        self._counts[split, label] += 1
        self._kept.add(split, decoded.digest, decoded.seen)

    def finish(self, source_spec: Mapping[str, Any], rule: SplitRule, policy: Policy) -> dict[str, Any]:
        """Close all files and describe them. Raises DataError where nothing is left to train on."""
        self._check_enough(rule)
        shards = {split: writer.close() for split, writer in self._writers.items()}
        stored = Readback(self._folder, self._form, shards, self._kept.splits)
        found = screen(self._kept, stored, policy)
        found.write(self._folder)
        self.leaks = found.pairs[:_TOLD]
        copies = exact_copies(self._kept, stored, found)
        if found.dropped.any():
            shards |= self._drop(stored, found)
        self._quarantine_file.flush()
        os.fsync(self._quarantine_file.fileno())
        return {
            "format": FORMAT,
            "layout": self._form.layout,
            "image_size": self._form.size,
            "channels": CHANNELS,
            "classes": self._plan.classes,
            "splits": {name: self._describe(split, shards.get(split, [])) for split, name in enumerate(SPLITS)},
            "source": dict(source_spec),
            "quarantined": self._quarantined,
            "duplicates": copies,
            "near_duplicates": found.summary(),
        }

    def _check_enough(self, rule: SplitRule) -> None:
        if len(self._kept) == 0:
            raise DataError(
                f"none of the {self._quarantined:,} files can be used as an image: {'; '.join(self.first_reasons)}; "
                "check that the source points at intact image files"
            )
        if self._counts[0].sum() == 0:
            raise DataError(
                f"no image is left for train: validation {rule.validation} and test {rule.test} take all "
                f"{len(self._kept):,} of them; set smaller splits, or add images"
            )

    def _describe(self, split: int, shards: list[dict[str, Any]]) -> dict[str, Any]:
        counts = self._counts[split].tolist()
        return {
            "count": sum(counts),
            "class_counts": dict(zip(self._plan.classes, counts[:-1], strict=True)),
            "shards": shards,
        }

    def _drop(self, stored: Readback, found: Screening) -> dict[int, list[dict[str, Any]]]:
        """Account for what was dropped as for what cannot be read; returns the shards of the splits it was in."""
        for position in np.flatnonzero(found.dropped).tolist():
            row = stored.row(position)
            self._counts[self._kept.splits[position], row.label] -= 1
            self._quarantine.writerow([row.key, found.reasons[row.key]])
        if self._counts[0].sum() == 0:
            raise DataError(
                "no image is left for train: all are near duplicates of images in validation or test; set "
                "data.duplicates to report, or check that the splits hold different images"
            )
        splits = np.unique(self._kept.splits[found.dropped]).tolist()
        return {split: self._rewritten(split, stored, found) for split in splits}

    def _rewritten(self, split: int, stored: Readback, found: Screening) -> list[dict[str, Any]]:
        """Write the split again without what was dropped; returns its shards."""
        apart = self._folder / "kept"
        apart.mkdir()
        writer = self._form.writer(apart, SPLITS[split], grouped=self._plan.grouped)
        for row in stored.rows(split, without=found.dropped):
            writer.add(*row)
        shards = writer.close()
        for old in self._folder.glob(f"{SPLITS[split]}-*.arrow"):
            old.unlink()
        for new in apart.iterdir():
            new.rename(self._folder / new.name)
        apart.rmdir()
        return shards


def _summary(manifest: Mapping[str, Any], reasons: list[str]) -> Iterator[str]:
    splits = manifest["splits"]
    total = sum(split["count"] for split in splits.values())
    classes = f"{len(manifest['classes'])} classes" if manifest["classes"] else "no labels"
    parts = ", ".join(f"{name} {split['count']:,}" for name, split in splits.items())
    yield f"{total:,} images, {classes}: {parts}"
    missing = [name for name, count in splits["train"]["class_counts"].items() if count == 0]
    if missing:
        yield f"no image in train of {len(missing)} classes: {_listed(missing)}"
    if manifest["quarantined"]:
        yield f"quarantined {manifest['quarantined']:,} (all in quarantine.csv): {_listed(reasons)}"
    if manifest["duplicates"]["count"]:
        pairs = [f"{again} = {first}" for first, again in manifest["duplicates"]["across_splits"]]
        yield (
            f"leakage: {manifest['duplicates']['count']:,} images of validation or test have the very pixels of an "
            f"image in an earlier split: {_listed(pairs)}"
        )


def _listed(items: list[str]) -> str:
    return "; ".join(items[:_TOLD]) + (" ..." if len(items) > _TOLD else "")


def _cores() -> int:
    """Cores this process may use; macOS cannot tell, and then all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_target(out: Path) -> None:
    """Refuse to replace anything that is not a store: the path may be mistyped."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; the store is a folder, choose another name for it")
    if out.is_dir():
        strange = [path.name for path in out.iterdir() if path.name not in _OWN_FILES and path.suffix != ".arrow"]
        if strange:
            raise DataError(
                f"the folder {out} is not a store (it holds {strange[0]!r}) and would be replaced; choose another "
                "folder for the store, or empty this one"
            )


def _publish(partial: Path, out: Path) -> None:
    """Put the finished folder in place; a kill between the two renames leaves no store rather than half of one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
