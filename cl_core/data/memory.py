"""Memory and files mapped into it: how much this process may use, and how the system should read what is mapped."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

_GROUPS = Path("/sys/fs/cgroup")


def usable_memory() -> int:
    """Bytes that may be used at most: the machine's, or what a control group (a container, a batch job) leaves."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limit_files():
        with suppress(OSError, ValueError):  # of version 2 it may say "max"
            limits.append(int(path.read_text()))
    return min(limits)


def expect_random_reads(mapped: np.ndarray) -> None:
    """Keep the system from reading around each access to a mapped file, where it can be told so; see `fetch`."""
    if hasattr(mmap, "MADV_RANDOM"):
        _advise(mapped, mmap.MADV_RANDOM)


def fetch(mapped: np.ndarray) -> None:
    """Have the system read these bytes of a mapped file whole, while others are asked for; does not wait."""
    if hasattr(mmap, "MADV_WILLNEED"):
        _advise(mapped, mmap.MADV_WILLNEED)


def _advise(mapped: np.ndarray, advice: int) -> None:
    """mapped: (M,) or (rows, M) uint8, contiguous. Advice that the system does not take is lost, nothing else."""
    first = mapped.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    size = mapped.ctypes.data + mapped.nbytes - first
    _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _limit_files() -> Iterator[Path]:
    """Of the groups that this process is in, which inside a container are shown as the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()  # Linux
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            yield from (_GROUPS / place / "memory.max" for place in ("", group.lstrip("/")))
        if controllers == "memory":  # version 1
            yield from (_GROUPS / "memory" / place / "memory.limit_in_bytes" for place in ("", group.lstrip("/")))
