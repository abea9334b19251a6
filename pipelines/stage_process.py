"""What `contrast stage` does around a stage function, so that it behaves as a child of DVC.

One process per stage at a time (a lock that the system frees however the process ends), or as many as train together;
one per GPU; it ends when DVC ends; the first SIGINT or SIGTERM asks the stage to save and stop, the second ends it; and
unless the stage is complete the exit code is not zero, so that DVC never records a half-trained model. Knows nothing of
what a stage computes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import psutil

from cl_core.errors import ContrastError, FailedElsewhere, Interrupted
from pipelines.gpus import gpu_slots
from pipelines.locks import locked
from pipelines.planning import LOCKS, RunSettings, require_project
from pipelines.ranks import Place, holds_lock, require_shareable, start_ranks

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
    set_up_torch()
    stop = Stop()
    place: Place | None = None
    try:
        stop.listen()
        place = Place.of_environment(os.environ)
        end_with_parent(place, period)
        with ExitStack() as held:
            project, address = require_project(folder), f"{stage}@{experiment}" if experiment else stage
            if holds_lock(place):
                held.enter_context(locked(project / LOCKS / f"{address}.lock", f"stage {address}", patience))
            return _run_held(project, stage, experiment, stop, place)
    except Killed as killed:
        print(f"{killed}: {stage} stopped", file=sys.stderr)
        return killed.exit_code
    except Interrupted as interrupted:
        if place is None or place.rank == 0:
            print(f"stopped: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except FailedElsewhere:  # told there
        return 1
    except ContrastError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return CRASH


def set_up_torch() -> None:
    """What torch reads from the environment when it is imported; what the user has set stays."""
    # OpenMP's threads wait for each other by spinning, which on a busy machine takes the core from the one awaited:
    # with a second process on 2 cores, fine-tuning steps took 7 times as long without this.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Or every process would be told that no weight went without a gradient, which some methods need to be allowed.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _run_held(project: Path, stage: str, experiment: str | None, stop: Stop, place: Place | None) -> int:
    """Run a stage whose lock is held, here or in processes of its own; the exit code."""
    with ExitStack() as held:
        if place is not None:
            require_shareable(stage)
        elif stage in GPU_STAGES:
            devices, num_nodes = RunSettings.read(project).processes_of(stage)
            held.enter_context(gpu_slots(f"{stage}@{experiment}", devices))
            if devices * num_nodes > 1:
                return start_ranks([sys.executable, *sys.orig_argv[1:]], devices, num_nodes)
        from pipelines.stages import run_stage

        run_stage(project, stage, experiment, stop.requested)
    return 0


def end_with_parent(place: Place | None, period: float) -> None:
    """Send this process SIGTERM when the stage's process, DVC or torchrun above it is gone, one of which started it.

    Does nothing where a person did.
    """
    if place is None and "DVC_STAGE" not in os.environ:
        return
    parent = _nearest_that_is_no_shell(psutil.Process().parent())
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, period), daemon=True).start()


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
