"""The processes that train together: Fabric's devices, and how the processes agree with each other.

One process writes, all decide alike: whether to stop, whether the loss is finite, what went wrong. Everything here is
called by all of them, and in one process does nothing but its work. Messages go over gloo, so that no GPU waits.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from cl_core.distributed import alone, rank, world_size
from cl_core.errors import ConfigError, FailedElsewhere
from cl_core.training.precision import Choice
from cl_core.training.shards import sharded
from cl_core.types import Method, StepOutput, Views

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Which devices train: `devices` of each of `num_nodes` machines, a process each, started by whoever calls.

    strategy: how several processes keep weights. "ddp", which "auto" is: whole in each. "fsdp": each a piece of them.
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"

    @property
    def count(self) -> int:
        """Of all machines."""
        return self.devices * self.num_nodes

    def fabric(self, choice: Choice | None = None) -> Fabric:
        """At the chosen precision (fp32 where none is chosen yet); joins the other processes, where there are any."""
        # It would announce bf16 on stderr, once per trial, and every process; the trainer says what was chosen.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        precision = choice.fabric_precision if choice else "32-true"
        if self.count == 1:
            return Fabric(accelerator="auto", devices=1, precision=precision)
        fabric = Fabric(
            accelerator="auto",
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=precision,
            # Buffers are the same everywhere, being computed from the whole batch. Some weights rest for a while, as
            # prototypes do at first, and a gradient of 0 is not the same as none.
            strategy=DDPStrategy(broadcast_buffers=False, find_unused_parameters=True),
        )
        fabric.launch()
        return fabric

    @property
    def shards(self) -> bool:
        """Whether weights lie in pieces."""
        return self.strategy == "fsdp" and self.count > 1

    def forward_of(self, method: Method, fabric: Fabric) -> Callable[[Views], StepOutput]:
        """The method's forward pass as it is called in training: gradients are averaged over all processes."""
        if world_size() == 1:
            return method
        if self.shards:
            return sharded(method, fabric.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers, 2.11 cannot
            forward: Callable[[Views], StepOutput] = fabric.strategy.setup_module(method)
        return forward

    def require_even(self, batch_size: int) -> None:
        """Raise ConfigError where the processes cannot share a batch evenly."""
        if batch_size % self.count:
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be shared evenly by {self.count} processes; set it to a "
                f"multiple of {self.count}, or run.devices to a divisor of {batch_size}"
            )


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def anywhere(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_messages())
    return bool(flags)


def means(figures: Mapping[str, float]) -> dict[str, float]:
    """Each figure's mean over the processes; all have to have the same names."""
    if world_size() == 1:
        return dict(figures)
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    dist.all_reduce(values, group=_messages())
    return dict(zip(figures, (values / world_size()).tolist(), strict=True))


def on_main(action: Callable[[], Result]) -> Result:
    """What the action gives in process 0, the only one that does it, for all of them.

    Its error is raised there; the others raise FailedElsewhere, so that none waits for one that is gone.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, True]
    error: BaseException | None = None
    if is_main():
        with alone():
            try:
                outcome = [action(), False]
            except BaseException as caught:
                error = caught
    dist.broadcast_object_list(outcome, src=0, group=_messages())
    if error is not None:
        raise error
    if outcome[1]:
        raise FailedElsewhere("process 0 has failed")
    result: Result = outcome[0]
    return result


@functools.cache
def _messages() -> Any:
    """The group for messages, whose tensors lie on the CPU; None is the one that gradients use too."""
    group: Any = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return group
