"""Locks between processes that the system frees however their holder ends, so that none is ever stale.

The file holds the number of the process that has it, for messages; the lock itself is on the open file. One machine
only: over a network file system it is as good as that system's flock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cl_core.errors import ContrastError

PERIOD = 0.2  # seconds between tries


@contextmanager
def locked(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock. Raises ContrastError naming the process that keeps it longer than `patience` seconds."""
    with open_lock(path) as file:
        deadline = time.monotonic() + patience
        while not try_lock(file):
            if time.monotonic() > deadline:
                raise ContrastError(f"{what} already runs as pid {holder(file)}; wait for it, or stop it first")
            time.sleep(PERIOD)
        sign(file)
        yield


def held(folder: Path) -> dict[str, str]:
    """Name -> process number, for the locks of a folder that somebody holds now."""
    found = {}
    for path in sorted(folder.glob("*.lock")):
        with open_lock(path) as file:
            if not try_lock(file):
                found[path.stem] = holder(file)
    return found


@contextmanager
def open_lock(path: Path) -> Iterator[TextIO]:
    """Open the file of a lock, made if absent; closing it frees the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        yield file


def try_lock(file: TextIO) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free(file: TextIO) -> None:
    """Give the lock back before the file is closed."""
    fcntl.flock(file, fcntl.LOCK_UN)


def sign(file: TextIO) -> None:
    """Note who has the lock."""
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()


def holder(file: TextIO) -> str:
    """Number of the process that has the lock, or "unknown"."""
    file.seek(0)
    return file.read().strip() or "unknown"
