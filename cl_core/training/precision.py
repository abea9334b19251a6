"""Whether bf16, channels-last and torch.compile pay: measured once per machine, network and batch, then remembered.

Times steps that the trainer hands over; builds no model itself. A choice changes the rounding of every step, so it is
recorded (`.contrast/decisions.json`, the checkpoint, encoder.json) and equal bytes are claimed for one choice only.
"""

from __future__ import annotations

import fcntl
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cl_core.config import TrainConfig
from cl_core.data.files import read_json, sha256_bytes, write_json
from cl_core.errors import CollapseError

MARGIN = 0.1  # a plainer choice is kept unless another is at least this share faster: timings differ by that much
REPEATS = 3
WORTH_COMPILING = 600  # seconds a run takes from which it may be compiled; compiling and trying takes about one minute
HOPELESS = 4  # times the best so far: a second step that slow ends the trial of a choice

Attempt = Callable[["Choice"], Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the arithmetic is done. bf16 means mixed: weights and optimiser stay in float32."""

    precision: Literal["fp32", "bf16"]
    channels_last: bool
    compiled: bool = False

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{self.precision}, {layout}{', compiled' if self.compiled else ''}"

    @property
    def fabric_precision(self) -> Literal["32-true", "bf16-mixed"]:
        """Lightning Fabric's name of the precision."""
        return "32-true" if self.precision == "fp32" else "bf16-mixed"

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and views."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def emulates_bf16(device: torch.device) -> bool:
    """Whether it is certain that bf16 is slower there: x86 processors without AVX-512 convert every number back."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


def choices(train: TrainConfig, *, bf16: bool = True) -> list[Choice]:
    """What the configuration leaves open, the plainest first; whether to compile is decided after these.

    bf16: whether it is worth trying where nobody asks for it.
    """
    tried: list[Literal["fp32", "bf16"]] = ["fp32", "bf16"] if bf16 else ["fp32"]
    precisions = tried if train.precision == "auto" else [train.precision]
    layouts = [False, True] if train.channels_last == "auto" else [train.channels_last]
    compiled = train.compile is True
    return [
        Choice(precision=precision, channels_last=layout, compiled=compiled)
        for precision in precisions
        for layout in layouts
    ]


def decision_key(method: nn.Module, shape: Sequence[int], device: torch.device, options: Sequence[Choice]) -> str:
    """Machine, network, batch shape and what is open: whatever a timing depends on, readable."""
    weights = json.dumps([[name, list(tensor.shape)] for name, tensor in method.state_dict().items()])
    network = f"{type(method).__name__} {sha256_bytes(weights.encode())[:12]}"
    batch = "x".join(str(size) for size in shape)
    return "; ".join([_machine(device), f"torch {torch.__version__}", network, f"batch {batch}", *map(str, options)])


def decide(
    options: Sequence[Choice],
    attempt: Attempt,
    *,
    key: str,
    path: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> Choice:
    """The fastest of the options, from the record at `path` or by trying each.

    attempt: builds what a choice needs (on a copy of the model) and returns a function that does one training step.
    A choice whose trial fails (an operation without bf16, a loss that is not finite, no memory) is passed over; if
    every trial fails, the plainest is returned unrecorded, and training will show the error.
    """
    if len(options) == 1:
        return options[0]
    known = _recall(path, key, options)
    if known is not None:
        report(f"precision: {known} (measured before, {path})")
        return known
    report(f"precision: measuring {len(options)} choices, once for this machine, network and batch")
    seconds = _measure_all(options, attempt, device, report)
    if not seconds:
        return options[0]
    choice = _remember(path, key, options, pick(seconds), seconds)
    timings = ", ".join(f"{option}: {1000 * value:.0f} ms" for option, value in seconds.items())
    report(f"precision: {choice} ({timings} per step of the trial)")
    return choice


def decide_compiled(
    choice: Choice,
    attempt: Attempt,
    *,
    steps: int,
    key: str,
    path: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> Choice:
    """The choice, or the same compiled, if the run is long enough for compiling to pay and it then is faster.

    steps: of the whole run. attempt, key, path: as for `decide`, but at the full batch size. The answer is recorded for
    runs of this length, so that the same run gets it again.
    """
    options, key = [choice, replace(choice, compiled=True)], f"{key}; {steps} steps"
    known = _recall(path, key, options)
    if known is not None:
        return known
    with _own_random_numbers(device):
        seconds = {choice: _least_seconds(attempt(choice), device, 0.0)}
    if steps * seconds[choice] > WORTH_COMPILING:
        report(f"compile: measuring, as the run will take about {steps * seconds[choice] / 60:.0f} min")
        seconds = _measure_all(options, attempt, device, report)
    return _remember(path, key, options, pick(seconds), seconds)


def pick(seconds: Mapping[Choice, float]) -> Choice:
    """The first choice, or a later one that beats the best before it by MARGIN."""
    best, *others = seconds
    for other in others:
        if seconds[other] < (1 - MARGIN) * seconds[best]:
            best = other
    return best


def _measure_all(
    options: Sequence[Choice], attempt: Attempt, device: torch.device, report: Callable[[str], None]
) -> dict[Choice, float]:
    seconds: dict[Choice, float] = {}
    for option in options:
        try:
            with _own_random_numbers(device):
                limit = HOPELESS * min(seconds.values(), default=float("inf"))
                seconds[option] = _least_seconds(attempt(option), device, limit)
        except (RuntimeError, CollapseError) as error:
            report(f"precision: {option} does not work here: {str(error).partition(chr(10))[0]}")
    return seconds


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _least_seconds(step: Callable[[], object], device: torch.device, limit: float) -> float:
    """Of a few steps the fastest: whatever else the machine does can only make a step slower."""
    step()  # pays for kernel selection, which can take a hundred times as long as the step
    second = _seconds(step, device)
    if second > limit:
        return second
    return min(second, *(_seconds(step, device) for _ in range(REPEATS - 1)))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - began


def _recall(path: Path, key: str, options: Sequence[Choice]) -> Choice | None:
    record = _records(path).get(key, {})
    return next((option for option in options if record.get("choice") == asdict(option)), None)


def _remember(
    path: Path, key: str, options: Sequence[Choice], choice: Choice, seconds: Mapping[Choice, float]
) -> Choice:
    """Add a decision; where another run has decided meanwhile, that one holds."""
    with _locked(path):
        known = _recall(path, key, options)
        if known is not None:
            return known
        milliseconds = {str(option): round(1000 * value, 2) for option, value in seconds.items()}
        write_json(path, {**_records(path), key: {"choice": asdict(choice), "milliseconds": milliseconds}})
    return choice


def _records(path: Path) -> dict[str, Any]:
    """All decisions; a file that cannot be read holds none, they are only timings."""
    try:
        records = read_json(path)
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by closing, also when the process is killed
        yield


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # Linux; platform.processor() says nothing there
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
