"""Ingest against its limits: 60,000 small JPEG files, the growth with the number of images, and reading the store.

CL_CIFAR10 names a folder of JPEG files; without it files of 32 x 32 pixels are made. The growth is measured with a
source that yields the same JPEG files, held in memory, under other keys. Each measurement is a process of its own that
states its seconds without imports, the peak of its resident memory, and the peak of the anonymous part of it: memory
that is neither a file's nor shared, and so cannot be dropped.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image

SIZE = 32
MIB = 2**20


class Repeated:
    """A source of `count` images: a few JPEG files in memory under ever new keys."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.files = [jpeg(seed) for seed in range(500)]

    def fingerprint(self) -> dict[str, Any]:
        """Of no consequence here."""
        return {"count": self.count}

    def __iter__(self) -> Iterator[Any]:
        """Yield every example."""
        from cl_core.examples import Example

        for index in range(self.count):
            yield Example(key=f"{index:09d}", image=self.files[index % 500], label=str(index % 10))


def jpeg(seed: int) -> bytes:
    """A JPEG file of 32 x 32 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE, SIZE)).save(file, "JPEG")
    return file.getvalue()


def status(name: str) -> int:
    """Bytes that the kernel states for this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


class AnonymousPeak:
    """Context manager; `bytes` is by how much anonymous memory rose inside, looked at every 20 ms."""

    def __enter__(self) -> AnonymousPeak:
        self.before, self.bytes, self._done = status("RssAnon"), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, status("RssAnon") - self.before)


def ingest(source: Any, out: Path) -> dict[str, float]:
    """Ingest on two threads: seconds, and MiB of memory."""
    from cl_core.data.ingest import SplitRule
    from cl_core.data.ingest import ingest as run

    with AnonymousPeak() as peak:
        began = time.perf_counter()
        spec = {"name": "benchmark", "options": {}}
        quiet = {"workers": 2, "report": lambda line: None}
        run(source, out, size=SIZE, splits=SplitRule(0.1, 0.1), source_spec=spec, **quiet)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "resident": status("VmHWM") / MIB, "anonymous": peak.bytes / MIB}


def child(kind: str, argument: str, out: str) -> dict[str, float]:
    """One measurement, in the process that was started for it."""
    if kind == "folder":
        from plugins.sources.image_folder import ImageFolder

        return ingest(ImageFolder(Path(argument)), Path(out))
    if kind == "repeated":
        return ingest(Repeated(int(argument)), Path(out))
    from cl_core.data.store import Store

    split = Store.open(Path(argument)).split("train")
    split.images(np.arange(500))
    with AnonymousPeak() as peak:
        began = time.perf_counter()
        for rows in np.array_split(np.random.default_rng(0).permutation(len(split)), len(split) // 500):
            split.images(rows)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "anonymous": peak.bytes / MIB, "images": len(split)}


def measured(kind: str, argument: object, out: Path) -> dict[str, Any]:
    """What a child process states of itself."""
    words = [sys.executable, __file__, "--child", kind, str(argument), str(out)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def files(folder: Path, count: int) -> Path:
    """The folder that CL_CIFAR10 names, or `count` files made here."""
    if "CL_CIFAR10" in os.environ:
        return Path(os.environ["CL_CIFAR10"])
    contents = [jpeg(seed) for seed in range(500)]
    for index in range(count):
        path = folder / "files" / str(index % 10) / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[index % 500])
    return folder / "files"


def main() -> None:
    """Measure all three."""
    args = harness.arguments(__doc__)
    counts = [10_000, 30_000] if args.smoke else [10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = files(folder, 2_000 if args.smoke else 60_000)
        runs = [measured("folder", images, folder / "store") for _ in range(args.rounds(3))]
        growth = [measured("repeated", count, folder / f"store-{count}") for count in counts]
        read = measured("read", folder / f"store-{counts[-1]}", folder)
    each = [found["seconds"] / count for found, count in zip(growth, counts, strict=True)]
    for count, found in zip(counts, growth, strict=True):
        print(f"{count:>9,} images: {1e6 * found['seconds'] / count:.0f} us each, {found['resident']:.0f} MiB resident")
    state = (growth[-1]["anonymous"] - growth[-2]["anonymous"]) * MIB / (counts[-1] - counts[-2])
    stored = read["images"] * SIZE * SIZE * 3 / MIB
    rows = [
        harness.within(
            f"ingest of {'the' if not args.smoke else 'a few'} JPEG files", [r["seconds"] for r in runs], 30, unit="s"
        ),
        harness.within(
            "its resident memory, imports included", [r["resident"] for r in runs], 600, unit="MiB", digits=0
        ),
        harness.within(f"time per image at {counts[-1]:,} over {counts[0]:,}", [each[-1] / each[0]], 1.3, unit="times"),
        harness.within(
            f"anonymous memory while {stored:,.0f} MiB are read in batches",
            [max(read["anonymous"], 0.1)],
            64,
            unit="MiB",
        ),
    ]
    if not args.smoke:  # too few images to tell
        rows.append(harness.within("memory per image added", [max(state, 1)], 200, unit="bytes", digits=0))
    shown = "; ".join(f"{n:,}: {1e6 * t:.0f} us" for n, t in zip(counts, each, strict=True))
    harness.finish(__file__, f"{' '.join((__doc__ or '').split())} Time per image: {shown}.", rows, args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*sys.argv[2:])))
    else:
        main()
