"""What `contrast stage` does around a stage function, so that it behaves as a child of DVC.

One process per stage at a time (a lock that the system frees however the process ends); one per GPU; it ends when DVC
ends; the first SIGINT or SIGTERM asks the stage to save and stop, the second ends it; and unless the stage is complete
the exit code is not zero, so that DVC never records a half-trained model. Knows nothing of what a stage computes.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from cl_core.errors import ContrastError, Interrupted
from pipelines.locks import holder, locked, open_lock, sign, try_lock
from pipelines.planning import LOCKS, require_project

CRASH = 70  # EX_SOFTWARE of sysexits.h: not the user's to fix, so the flow tries again
GPU_STAGES = ("pretrain", "embed", "linear_eval", "finetune", "diagnose", "distil")
LOCK_PATIENCE = 20.0  # seconds in which a stage that was told to stop has saved and gone
SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh")
WATCH_PERIOD = 1.0  # seconds


class Killed(KeyboardInterrupt):
    """A signal ended a stage that does not know how to stop; passes through `except Exception` and plugin loading."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stop:
    """The wish to stop, set by the first SIGINT or SIGTERM.

    A stage that polls `requested` finishes its step, saves and raises Interrupted. One that never has is interrupted
    where it is, since it has nothing to save. The second signal ends either at once.
    """

    def __init__(self) -> None:
        self._requested = False
        self._polled = False

    def requested(self) -> bool:
        """Whether to save and stop now."""
        self._polled = True
        return self._requested

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM from here on; main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._requested:
            os._exit(128 + number)
        self._requested = True
        if not self._polled:
            raise Killed(number)


def run(
    folder: Path,
    stage: str,
    experiment: str | None,
    *,
    patience: float = LOCK_PATIENCE,
    period: float = WATCH_PERIOD,
) -> int:
    """Run a stage of a project; returns the exit code.

    patience: seconds to wait for the stage's lock. period: seconds between looks at DVC.

    0: complete. 75: interrupted, the same command continues. 130, 143: ended by SIGINT, SIGTERM. 1: an error that is
    the user's to fix, printed without traceback. 70: any other error, with its traceback.
    """
    # OpenMP's threads wait for each other by spinning, which on a busy machine takes the core from the one awaited:
    # with a second process on 2 cores, fine-tuning steps took 7 times as long without this. Read as torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    stop = Stop()
    try:
        stop.listen()
        end_with_dvc(period)
        project = require_project(folder)
        address = f"{stage}@{experiment}" if experiment else stage
        with ExitStack() as held:
            held.enter_context(locked(project / LOCKS / f"{address}.lock", f"stage {address}", patience))
            if stage in GPU_STAGES:
                held.enter_context(gpu_slot(address))
            from pipelines.stages import run_stage

            run_stage(project, stage, experiment, stop.requested)
    except Killed as killed:
        print(f"{killed}: {stage} stopped", file=sys.stderr)
        return killed.exit_code
    except Interrupted as interrupted:
        print(f"stopped: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except ContrastError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return CRASH
    return 0


@contextmanager
def gpu_slot(address: str, count: Callable[[], int] | None = None, folder: Path | None = None) -> Iterator[int | None]:
    """Hold one GPU of this machine for as long as the stage runs, and make it the only visible one.

    Yields its position among the visible ones, or None where there is none. Waits for the next one to be free. All
    projects of a user share the slots. count and folder are for tests.
    """
    devices = _visible_devices(count or _count_gpus)
    if not devices:
        yield None
        return
    folder = folder or Path(tempfile.gettempdir()) / f"contrast-gpus-{os.getuid()}"
    with ExitStack() as stack:
        files = [stack.enter_context(open_lock(folder / f"{device.replace('/', '-')}.lock")) for device in devices]
        position = _wait_for_one(files, address)
        sign(files[position])
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[position]  # read when CUDA is first used, which is later
        yield position


def end_with_dvc(period: float) -> None:
    """Send this process SIGTERM when the DVC above it is gone; does nothing where DVC did not start it."""
    if "DVC_STAGE" not in os.environ:
        return
    dvc = _nearest_that_is_no_shell(psutil.Process().parent())
    if dvc is not None:
        threading.Thread(target=_watch, args=(dvc, period), daemon=True).start()


def _nearest_that_is_no_shell(process: psutil.Process | None) -> psutil.Process | None:
    """DVC starts its command through a shell; bash replaces itself by the command, dash stays in between."""
    try:
        while process is not None and process.name().lstrip("-") in SHELLS:
            process = process.parent()
    except psutil.NoSuchProcess:
        return None
    return process


def _watch(process: psutil.Process, period: float) -> None:
    while _alive(process):
        time.sleep(period)
    os.kill(os.getpid(), signal.SIGTERM)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for_one(files: Sequence[TextIO], address: str) -> int:
    told = False
    while True:
        for position, file in enumerate(files):
            if try_lock(file):
                return position
        if not told:
            holders = ", ".join(holder(file) for file in files)
            print(f"{address} waits for a GPU; in use by pid {holders}", flush=True)
            told = True
        time.sleep(0.5)


def _visible_devices(count: Callable[[], int]) -> list[str]:
    found = count()
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return listed[:found] if listed else [str(number) for number in range(found)]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
