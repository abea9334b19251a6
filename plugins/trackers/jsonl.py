"""A tracker that needs no other program: one JSON object per logged step, in a file below the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from cl_core.types import RunInfo, RunSummary


class JsonLines:
    """Append {"step": ..., metric: value, ...} per logged step to log.jsonl; figures that are not finite are null.

    Each line is on disk as soon as it is logged, so the file can be followed (`tail -f`) while training runs.
    """

    def start(self, run: RunInfo) -> None:
        """Go on with the file of an earlier sitting, if there is one."""
        run.directory.mkdir(parents=True, exist_ok=True)
        self._path = run.directory / "log.jsonl"
        self._continued = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line. A resumed run makes the steps after its checkpoint again: their old lines go first."""
        if not self._continued:
            _drop_from(self._path, step)
            self._continued = True
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def end(self, summary: RunSummary) -> None:
        """Nothing to close."""


def _drop_from(path: Path, step: int) -> None:
    """Keep the lines of steps before `step`; a line that a kill cut short is dropped too."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) < step]
    path.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
