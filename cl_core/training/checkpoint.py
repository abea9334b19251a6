"""Checkpoints that are whole or absent: written beside and renamed, checksummed, never unpickled.

A file is one line (format and sha256 of the rest) followed by what torch.save wrote. Knows nothing of what is in the
state; only tensors and plain Python values are accepted back.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cl_core.data.files import sha256_bytes, write_bytes
from cl_core.errors import CheckpointError

FORMAT = b"contrast-checkpoint/1"


class Checkpoints:
    """The newest few states of one run, in a folder that belongs to this run's settings alone."""

    def __init__(self, directory: Path, *, keep: int = 2, report: Callable[[str], None] = print) -> None:
        """keep: how many to hold on to; a damaged newest one costs only the steps since the one before."""
        self.directory, self.keep, self.report = directory, keep, report

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of a step (tensors, numbers, texts, lists and dicts) and drop the oldest beyond `keep`.

        A kill at any moment leaves the earlier checkpoints as they were. Raises CheckpointError if the disk refuses.
        """
        path = self.directory / f"step-{step:010d}.ckpt"
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getvalue()
        try:
            write_bytes(path, FORMAT + b" " + sha256_bytes(payload).encode() + b"\n" + payload)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint {path}: {error}; make room and run the same command to continue from "
                f"the one before"
            ) from error
        for old in self._newest_first()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load_newest(self) -> dict[str, Any] | None:
        """The newest state that is whole, tensors on the CPU, or None. A damaged file is named in a warning."""
        for path in self._newest_first():
            try:
                return _read(path)
            except (CheckpointError, OSError) as error:
                self.report(f"warning: checkpoint {path} is damaged ({error}); trying the one before it")
        return None

    def clear(self) -> None:
        """Remove the checkpoints and what a killed writer left, and the folder if nothing else is in it."""
        for path in [*self._newest_first(), *self.directory.glob(".step-*.partial")]:
            path.unlink(missing_ok=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted(self.directory.glob("step-*.ckpt"), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    header, _, payload = path.read_bytes().partition(b"\n")
    if header != FORMAT + b" " + sha256_bytes(payload).encode():
        raise CheckpointError("its checksum does not match its content")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"torch refuses it: {str(error).partition(chr(10))[0]}") from error
    return state
