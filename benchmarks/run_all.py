"""Run every speed benchmark: `make bench` renews RESULTS.md, `make bench-smoke` (--smoke) only looks for a collapse.

A script that fails does not stop the others; the exit status says whether all went well.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "views_decoded",
    "views_encoded",
    "training_step",
    "contrastive_losses",
    "linear_probe",
    "knn",
    "ingest",
    "larger_than_memory",
    "startup",
)
FULL_ONLY = ("larger_than_memory",)  # has no ratio that could collapse


def main() -> int:
    """Run the scripts one after the other, with the options given to this one."""
    failed = []
    for name in [name for name in SCRIPTS if name not in FULL_ONLY or "--smoke" not in sys.argv]:
        print(f"== {name}.py", flush=True)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, HERE / f"{name}.py", *sys.argv[1:]], check=False)
        print(f"== {name}.py: {'ok' if done.returncode == 0 else 'FAILED'}, {time.perf_counter() - began:.0f} s")
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
