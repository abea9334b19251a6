"""The gradient of a batch: from one pass, or micro-batch by micro-batch where memory does not hold the whole.

A micro-batch is what `train.micro_batch` lets through the network at a time. Where samples do not meet in the loss,
gradients of micro-batches add up. Where they do, gradients are cached (GradCache, Gao et al. 2021, arXiv:2101.06983): a
pass without graph gives the embeddings of the whole batch, the loss their gradients, a second pass hands these on to
the weights. Both are the gradient of the whole batch, save that batch norm sees a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cl_core.distributed import average
from cl_core.errors import ConfigError
from cl_core.types import JointEmbedding, Method, StepOutput, Views

Check = Callable[[Tensor], None]


def backward(
    method: Method,
    forward: Callable[[Views], StepOutput],
    views: Views,
    fabric: Fabric,
    check: Check,
    *,
    micro_batch: int | None = None,
) -> StepOutput:
    """Add the gradient of a batch to that of the weights, averaged over the processes that share it.

    forward: the method's, as it is called in training. check: called with the loss before its gradient is taken.
    """
    batch = len(views.images[0])
    if micro_batch is None or micro_batch >= batch:
        return _at_once(forward, views, fabric, check)
    parts = [views.map(itemgetter(slice(at, at + micro_batch))) for at in range(0, batch, micro_batch)]
    if isinstance(method, JointEmbedding):
        output = _cached(method, views, parts, fabric, check)
    else:
        output = _accumulated(method, parts, fabric, check)
    _average_gradients(method)
    return output


def require_parts(method: Method, micro_batch: int | None, sharded: bool = False) -> None:
    """Raise ConfigError where the method, or its weights that lie in pieces, cannot take the batch in parts."""
    if micro_batch is not None and sharded:
        raise ConfigError(
            f"train.micro_batch {micro_batch} needs the weights whole in each process, and run.strategy fsdp keeps "
            f"pieces; delete one of them"
        )
    if micro_batch is not None and not (method.sample_wise or isinstance(method, JointEmbedding)):
        raise ConfigError(
            f"train.micro_batch {micro_batch} asks for a batch in parts, and method {type(method).__name__} needs it "
            f"whole; delete train.micro_batch (contrast check names the methods that can)"
        )


def _at_once(forward: Callable[[Views], StepOutput], views: Views, fabric: Fabric, check: Check) -> StepOutput:
    with fabric.autocast():
        output = forward(views)
    check(output.loss)
    fabric.backward(output.loss)
    return output


def _average_gradients(method: Method) -> None:
    """What data parallelism does in a single pass; parts go past it."""
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad = average(parameter.grad)


def _accumulated(method: Method, parts: list[Views], fabric: Fabric, check: Check) -> StepOutput:
    """One graph after the other; what is logged is the mean over samples too."""
    outputs, sizes = [], torch.tensor([float(len(part.images[0])) for part in parts])
    for part, share in zip(parts, (sizes / sizes.sum()).tolist(), strict=True):
        with fabric.autocast():
            output: StepOutput = method(part)
        check(output.loss)
        fabric.backward(output.loss * share)
        scaled = {name: value * share for name, value in output.metrics.items()}
        outputs.append(StepOutput(loss=output.loss.detach() * share, metrics=scaled, embedding=output.embedding))
    embeddings = [output.embedding for output in outputs if output.embedding is not None]
    return StepOutput(
        loss=torch.stack([output.loss for output in outputs]).sum(),
        metrics={name: torch.stack([o.metrics[name] for o in outputs]).sum() for name in outputs[0].metrics},
        embedding=torch.cat(embeddings) if embeddings else None,
    )


def _cached(method: JointEmbedding, views: Views, parts: list[Views], fabric: Fabric, check: Check) -> StepOutput:
    """Gradient caching: at no time is there a graph of more than a micro-batch."""
    seeds: list[int] = torch.randint(2**62, (len(parts),)).tolist()  # so that dropout draws the same in both passes
    with torch.no_grad(), _buffers_kept(method):
        found = [_embed(method, part, seed, fabric) for part, seed in zip(parts, seeds, strict=True)]
    whole = [torch.cat(pieces).requires_grad_() for pieces in zip(*found, strict=True)]
    with fabric.autocast():
        output = method.compare(tuple(whole), views)
    check(output.loss)
    fabric.backward(output.loss)
    slopes = [torch.zeros_like(z) if z.grad is None else z.grad for z in whole]
    start = 0
    for part, seed in zip(parts, seeds, strict=True):
        stop = start + len(part.images[0])
        pieces = _embed(method, part, seed, fabric)
        terms = [(z * slope[start:stop]).sum() for z, slope in zip(pieces, slopes, strict=True) if z.requires_grad]
        fabric.backward(torch.stack(terms).sum())
        start = stop
    return output


def _embed(method: JointEmbedding, part: Views, seed: int, fabric: Fabric) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    with fabric.autocast():
        return method.embed(part)


@contextmanager
def _buffers_kept(method: Method) -> Iterator[None]:
    """As they were: the statistics of batch norm move once per step, in the pass with a graph."""
    before = [buffer.clone() for buffer in method.buffers()]
    yield
    for buffer, value in zip(method.buffers(), before, strict=True):
        buffer.copy_(value)
