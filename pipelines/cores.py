"""How many processor cores there are for us, and how many a stage gets where several run side by side."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use; on Linux within a container's or a scheduler's limits."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def threads(jobs: int, decode: int | None = None) -> dict[str, str]:
    """Environment that gives each of `jobs` processes its share of the cores; empty where there is nothing to share.

    Each would start a thread per core, and they would take each other's. What the user has set stays. decode: threads
    that decode images in each, None for as many as compute.
    """
    shares = {} if decode is None else {"CONTRAST_DECODE_THREADS": str(decode)}
    if jobs > 1:
        shares["OMP_NUM_THREADS"] = str(max(1, cores() // jobs))
    return {name: share for name, share in shares.items() if name not in os.environ}
