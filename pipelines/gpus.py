"""The GPUs of this machine, shared out among stages: each is held by one stage at a time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from cl_core.errors import ConfigError
from pipelines.locks import free, holder, open_lock, sign, try_lock

PERIOD = 0.5  # seconds between tries


@contextmanager
def gpu_slots(
    address: str, wanted: int = 1, count: Callable[[], int] | None = None, folder: Path | None = None
) -> Iterator[list[int]]:
    """Hold some GPUs of this machine for as long as the stage runs, and make them the only visible ones.

    Yields their positions among the visible ones; none where there is no GPU. Waits until enough are free. All projects
    of a user share the slots. count and folder are for tests. Raises ConfigError where there are not as many.
    """
    devices = _visible_devices(count or _count_gpus)
    if not devices:
        yield []
        return
    if wanted > len(devices):
        raise ConfigError(f"run.devices is {wanted}, and this machine shows {len(devices)} GPUs; lower it")
    folder = folder or Path(tempfile.gettempdir()) / f"contrast-gpus-{os.getuid()}"
    with ExitStack() as stack:
        files = [stack.enter_context(open_lock(folder / f"{device.replace('/', '-')}.lock")) for device in devices]
        positions = _wait_for(files, wanted, address)
        for position in positions:
            sign(files[position])
        # Read when CUDA is first used, which is later.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[position] for position in positions)
        yield positions


def _wait_for(files: Sequence[TextIO], wanted: int, address: str) -> list[int]:
    told = False
    while True:
        taken = _take(files, wanted)
        if len(taken) == wanted:
            return taken
        for position in taken:  # or two stages might each wait for what the other holds
            free(files[position])
        if not told:
            holders = ", ".join(holder(file) for file in files)
            print(f"{address} waits for a GPU; in use by pid {holders}", flush=True)
            told = True
        time.sleep(PERIOD)


def _take(files: Sequence[TextIO], wanted: int) -> list[int]:
    taken: list[int] = []
    for position, file in enumerate(files):
        if len(taken) < wanted and try_lock(file):
            taken.append(position)
    return taken


def _visible_devices(count: Callable[[], int]) -> list[str]:
    found = count()
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return listed[:found] if listed else [str(number) for number in range(found)]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
