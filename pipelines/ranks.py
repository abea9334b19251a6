"""The processes of one stage that train together: which of them this is, or starting them on this machine.

torchrun and srun start them and say in the environment who is who. Where nobody has, the stage's own process starts as
many as `run.devices` says, in torchrun's way, and stays above them: it holds lock and GPUs, passes each signal on once,
and ends as the first of them that failed. Each of them ends with the process that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from cl_core.errors import ConfigError
from pipelines.cores import threads

SHARED_STAGES = ("pretrain",)  # that several processes can do together
STARTED = "CONTRAST_STARTED"  # set where a stage's own process has started the others
GRACE = 10.0  # seconds that the others get once one of them has failed
PERIOD = 0.1  # seconds between looks at them


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those that train together; `devices` of them on each of `num_nodes` machines."""

    rank: int
    devices: int
    num_nodes: int
    started_by_stage: bool = False

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Place | None:
        """What torchrun or srun says, or None where neither started this process."""
        if "TORCHELASTIC_RUN_ID" in environment:
            devices = int(environment["LOCAL_WORLD_SIZE"])
            return cls(
                rank=int(environment["RANK"]),
                devices=devices,
                num_nodes=int(environment["WORLD_SIZE"]) // devices,
                started_by_stage=STARTED in environment,
            )
        # The count of the step: that of the job is also there in a batch script, which is one process.
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            nodes = int(environment["SLURM_STEP_NUM_NODES"])
            devices = int(environment["SLURM_STEP_NUM_TASKS"]) // nodes
            return cls(rank=int(environment["SLURM_PROCID"]), devices=devices, num_nodes=nodes)
        return None


def start_ranks(command: Sequence[str], devices: int, num_nodes: int) -> int:
    """Run a command in `devices` processes that can find each other and those on other machines; give the exit code.

    0 when all are complete, else the code of the first that was not. SIGINT and SIGTERM are passed on to all. With
    several machines the environment has NODE_RANK, MASTER_ADDR and MASTER_PORT; raises ConfigError where it has not.
    """
    meeting = _meeting_point(num_nodes)
    first = int(os.environ.get("NODE_RANK", "0")) * devices
    common = {
        **os.environ,
        **threads(devices),
        **meeting,
        "TORCHELASTIC_RUN_ID": "contrast",
        "WORLD_SIZE": str(devices * num_nodes),
        "LOCAL_WORLD_SIZE": str(devices),
        STARTED: "1",
    }
    places = ({"RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(devices))
    # In sessions of their own, or a Ctrl-C would reach them twice, and the second signal ends them at once.
    ranks = [subprocess.Popen(command, env=common | place, start_new_session=True) for place in places]
    _pass_signals_on(ranks)
    return _wait(ranks)


def holds_lock(place: Place | None) -> bool:
    """Whether this process keeps others from the stage: the first of those that train, or the one that starts them."""
    if place is None:
        return os.environ.get("NODE_RANK", "0") == "0"
    return place.rank == 0 and not place.started_by_stage


def require_shareable(stage: str) -> None:
    """Raise ConfigError where several processes would all do the whole of a stage."""
    if stage not in SHARED_STAGES:
        raise ConfigError(
            f"stage {stage} runs in one process, and several have been started; start it without torchrun or srun "
            f"(stages for several: {', '.join(SHARED_STAGES)})"
        )


def _meeting_point(num_nodes: int) -> dict[str, str]:
    if num_nodes == 1:
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(listener.getsockname()[1])}
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"run.num_nodes is {num_nodes}, and the environment has no {' and no '.join(missing)}; start the stage on "
            f"every machine with torchrun or srun, or set them yourself, or set run.num_nodes: 1 in params.yaml"
        )
    return {}


def _pass_signals_on(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of all; what still runs GRACE seconds after a failure waits for the one that failed, in vain."""
    failed, deadline = 0, float("inf")
    while any(process.poll() is None for process in ranks):
        failed = failed or _first_failure(ranks)
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(PERIOD)
    return failed or _first_failure(ranks)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Of those that failed at about the same time, one that was killed is the cause and the others' errors follow."""
    codes = sorted(process.returncode for process in ranks if process.returncode)
    return next((code if code > 0 else 128 - code for code in codes), 0)
