"""How long commands take where there is nothing to compute: `contrast run` again, `contrast check`, `contrast --help`.

A project of the embedded digits is made by `contrast init`, with tiny sizes, and run once with one experiment and once
with ten (which differ in their seed). Then the unchanged project is run again, each time as a new process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

BIN = Path(sys.executable).parent
TINY = {"epochs: 30": "epochs: 1", "warmup_epochs: 3": "warmup_epochs: 0", "max_steps: 100": "max_steps: 4"}
TINY |= {"l2: [1e-4, 1e-3, 1e-2]": "l2: [1e-2]", "width: 16": "width: 4", "knn_every: 5": "knn_every: 0"}
TINY |= {"batch_size: 64": "batch_size: 64\n    min_steps: 1"}


def contrast(*words: str, folder: Path) -> float:
    """Seconds that a command takes; raises where it fails."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(harness.ROOT)}
    command = [sys.executable, "-m", "pipelines.cli", *words]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return time.perf_counter() - began


def make_project(folder: Path) -> None:
    """A project with one experiment of a few seconds."""
    contrast("init", str(folder), folder=folder.parent)
    for path in (folder / "params.yaml", folder / "experiments" / "simclr.yaml"):
        text = path.read_text()
        for size, tiny in TINY.items():
            text = text.replace(size, tiny)
        path.write_text(text)


def add_experiments(folder: Path, count: int) -> None:
    """Further experiments, which are the first with another seed."""
    names = [f"seed{number}" for number in range(1, count)]
    for number, name in enumerate(names, start=1):
        (folder / "experiments" / f"{name}.yaml").write_text(f"extends: simclr\nseed: {number}\n")
    params = (folder / "params.yaml").read_text()
    listed = "".join(f"  - {name}\n" for name in names)
    (folder / "params.yaml").write_text(params.replace("  - simclr\n", "  - simclr\n" + listed))


def repeated(*words: str, folder: Path, rounds: int) -> list[float]:
    """Seconds per call, after one that fills the file cache."""
    contrast(*words, folder=folder)
    found = [contrast(*words, folder=folder) for _ in range(rounds)]
    print(f"contrast {' '.join(words)}: median {statistics.median(found):.2f} s of {[round(x, 2) for x in found]}")
    return found


def main() -> None:
    """Measure with one experiment, then with ten; a smoke run measures what needs no run before."""
    args = harness.arguments(__doc__)
    rounds = args.rounds(7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        make_project(folder)
        shown = repeated("--help", folder=folder, rounds=rounds)
        rows = [harness.within("contrast --help", shown, 0.3, unit="s", digits=2)]
        for count in () if args.smoke else (1, 10):
            add_experiments(folder, count)
            contrast("run", "--jobs", "2", folder=folder)  # a minute per experiment goes into starting its stages
            found = repeated("run", folder=folder, rounds=rounds)
            limit = 5 if count == 1 else 8
            rows.append(harness.within(f"unchanged run, experiments: {count}", found, limit, unit="s"))
            checked = repeated("check", folder=folder, rounds=rounds)
            rows.append(harness.within(f"contrast check, experiments: {count}", checked, 5, unit="s"))
    harness.finish(__file__, __doc__ or "", rows, args)


if __name__ == "__main__":
    main()
