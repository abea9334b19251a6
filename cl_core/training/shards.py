"""Weights, gradients and optimiser state in pieces, one per process (FSDP), and how the pieces become whole again.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) as torch's `fully_shard` has it: between steps each process keeps 1 / R
of all parameters and of what the optimiser keeps per parameter; for a step the whole of a method's weights are gathered
at once, since methods call their networks in ways of their own. Where nothing is sharded, all of this is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cl_core.distributed import world_size
from cl_core.types import Method, StepOutput, Views


def sharded(method: Method, device: torch.device) -> Callable[[Views], StepOutput]:
    """Shard the method's parameters over all processes; returns its forward pass, to be called by all of them."""
    root = _Root(method)
    fully_shard(root, mesh=init_device_mesh(device.type, (world_size(),)))
    return lambda views: StepOutput(**root(views))


def whole(state: Any) -> Any:
    """A state with every piece replaced by the whole tensor; dicts and lists of any depth. All processes call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def load_whole(method: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `whole` gave of "method" and "optimizer", whatever was sharded then or is now.

    Raises RuntimeError, ValueError or KeyError, as torch does, where it does not fit.
    """
    now = method.state_dict()
    method.load_state_dict({name: _like(now.get(name), value) for name, value in state["method"].items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {
        number: {name: _like(parameters[number], value) for name, value in values.items()}
        for number, values in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": kept})


def _like(example: Any, value: Any) -> Any:
    """A whole tensor, cut as the example of the same shape is."""
    if isinstance(example, DTensor) and isinstance(value, Tensor) and value.shape == example.shape:
        return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
    return value


class _Root(nn.Module):
    """What is sharded: FSDP looks for tensors in the output, and does not look into a StepOutput."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, views: Views) -> dict[str, Any]:
        output = self.method(views)
        return {"loss": output.loss, "metrics": dict(output.metrics), "embedding": output.embedding}
