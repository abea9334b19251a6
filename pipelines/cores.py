"""How many processor cores there are for us, and how many a stage gets where several run side by side."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use; on Linux within a container's or a scheduler's limits."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def threads(jobs: int) -> dict[str, str]:
    """Environment that gives each of `jobs` processes its share of the cores; empty where there is nothing to share.

    Each would start a thread per core, and they would take each other's. What the user has set stays.
    """
    if jobs < 2 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
