"""Training from a store that is larger than the memory that the process may use, held back by the kernel.

400,000 JPEG files of 32 x 32 pixels (under ever new keys) are ingested, 1.2 GB of pixels, and dropped from the file
cache. SimCLR then trains on random batches of 250 in a process of its own: freely, and in a control group that may
use 640 MiB, file cache included. Needs Linux, control groups of version 1 or 2, and the right to make one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import torch
from ingest import Repeated
from inputs import specs

from cl_core.assembly import build_method
from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.registry import load_registry
from cl_core.training.precision import Choice
from cl_core.training.processes import Devices
from cl_core.training.trainer import Run
from plugins.augmentations.recipes import simclr_cifar

COUNT, SIDE, BATCH, STEPS = 400_000, 32, 250, 80
LIMIT = 640 * 2**20
GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited() -> Iterator[Path]:
    """A control group with LIMIT bytes of memory. Raises OSError where this machine gives none."""
    first = (GROUPS / "memory").is_dir()  # version 1
    group = (GROUPS / "memory" if first else GROUPS) / f"contrast-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(LIMIT))
        yield group
    finally:
        group.rmdir()


def train(store: Path, steps: int) -> float:
    """Seconds of so many steps of SimCLR."""
    split = Store.open(store).split("train")
    experiment = {
        "method": {"name": "simclr", "options": {"hidden_dim": 64, "out_dim": 32}},
        "encoder": {"name": "resnet8", "options": {"width": 4}},
        "loss": {"name": "nt_xent", "options": {"temperature": 0.5}},
        "score": None,
        "chains": {"augment": specs(simclr_cifar()["augment"], interpolation="bilinear")},
        "image_size": SIDE,
    }
    run = Run(
        method=build_method(load_registry(), experiment, seed=0),
        split=split,
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
        schedule=ScheduleConfig(epochs=1, warmup_epochs=0),
        train=TrainConfig(batch_size=BATCH, knn_every=0),
        seed=0,
        device=torch.device("cpu"),
        devices=Devices(),
    )
    update = run.updater(Choice(precision="fp32", channels_last=False))
    began = time.perf_counter()
    for batch in run.loader(0, steps):
        update(run.views(batch), batch.step)
    return time.perf_counter() - began


def child(store: Path, steps: int, group: Path | None) -> float:
    """Training in a process of its own, which enters the group first and finds nothing of the store in the cache."""
    os.sync()
    for path in store.rglob("*.arrow"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = [sys.executable, __file__, "--child", str(store), str(steps), "" if group is None else str(group)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Ingest, train twice, compare."""
    args = harness.arguments(__doc__)
    try:
        with tempfile.TemporaryDirectory() as name, limited() as group:
            store = Path(name) / "store"
            ingest(Repeated(COUNT), store, size=SIDE, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
            size = sum(path.stat().st_size for path in store.rglob("*.arrow"))
            free = [child(store, STEPS, None) for _ in range(args.rounds(3))]
            held = [child(store, STEPS, group) for _ in range(args.rounds(3))]
    except OSError as error:  # no control groups, or none for us
        print(f"not measured: {error}")
        return
    times = {"contrast": held, "contrast, with all memory": free}
    shown = f"a store of {size / 2**20:,.0f} MiB in {LIMIT / 2**20:,.0f} MiB of memory"
    rows = [harness.faster(f"training from {shown}", times, per="images", count=BATCH * STEPS)]
    harness.finish(__file__, " ".join((__doc__ or "").split()), rows, args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[4]:
            (Path(sys.argv[4]) / "cgroup.procs").write_text(str(os.getpid()))
        torch.set_num_threads(2)
        print(json.dumps(train(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
