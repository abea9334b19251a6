"""Keep freed memory with the process instead of handing it back to the system after every step (glibc only).

A training step on a CPU allocates and frees every activation. By default glibc returns blocks of that size to the
system, which clears each page anew when it is touched again: up to a third of a step (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LIMIT = 2**30  # bytes; larger blocks still come from the system and go back to it


@functools.cache
def keep_freed_memory() -> bool:
    """Set the allocator of this process; whether it could be done. The peak of resident memory stays what it was."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LIMIT)) and bool(mallopt(_M_TRIM_THRESHOLD, _LIMIT))
