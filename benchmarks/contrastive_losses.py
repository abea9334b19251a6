"""NT-Xent on large batches against lightly: time and extra memory of a loss with its gradients, on a CPU.

Memory is the peak growth of resident memory in a fresh process per side (VmHWM of Linux).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import harness

harness.with_peers("lightly==1.6.0")

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in the stages: threads that spin stall where another process runs

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

PAIRS, DIM, TEMPERATURE, THREADS = 8192, 128, 0.5, 2
HUGE, HUGE_LIMIT = 65536, 2048  # pairs, MiB
SMOKE_PAIRS = 2048


def embeddings(pairs: int) -> tuple[Tensor, Tensor]:
    """Two views as they leave a head in the middle of training: siblings are alike."""
    generator = torch.Generator().manual_seed(0)
    z_a, noise = torch.randn(2, pairs, DIM, generator=generator)
    return z_a.requires_grad_(), (z_a.detach() + noise).requires_grad_()


def loss_of(side: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss part of either side."""
    if side == "contrast":
        from plugins.losses import NTXent

        return NTXent(TEMPERATURE)
    from lightly.loss import NTXentLoss

    return NTXentLoss(TEMPERATURE)


def step(side: str, pairs: int) -> Callable[[], list[Tensor]]:
    """What is measured: the loss and the gradients of both views."""
    loss, views = loss_of(side), embeddings(pairs)

    def run() -> list[Tensor]:
        value = loss(*views)
        return [value.detach(), *torch.autograd.grad(value, views)]

    return run


def require_the_same(pairs: int) -> None:
    """Both sides compute one loss and one gradient."""
    (value, *ours), (other, *theirs) = (step(side, pairs)() for side in ("contrast", "lightly"))
    torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm(), "the gradients differ"


def memory(side: str, pairs: int) -> float:
    """MiB by which a fresh process grows; a small step before has loaded what is needed."""
    command = [sys.executable, __file__, "--memory-of", side, str(pairs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    args = harness.arguments(__doc__)
    torch.set_num_threads(THREADS)
    pairs = SMOKE_PAIRS if args.smoke else PAIRS
    require_the_same(1000)
    sides = ("contrast", "lightly")
    times = harness.side_by_side({side: step(side, pairs) for side in sides}, rounds=args.rounds(5))
    grown = {side: [memory(side, pairs) for _ in range(1 if args.smoke else 3)] for side in sides}
    name = f"NT-Xent with gradients, {pairs:,} pairs x {DIM}"
    rows = [
        harness.faster(name, times, per="pairs", count=pairs, target=1 / 0.35),
        harness.less(f"extra memory of {name}", grown, unit="MiB", target=14, digits=0),
    ]
    if not args.smoke:
        limit = f"extra memory of NT-Xent with gradients, {HUGE:,} pairs x {DIM}"
        rows.append(harness.within(limit, [memory("contrast", HUGE)], HUGE_LIMIT, unit="MiB", digits=0))
    protocol = f"""Forward and backward in float32 on {THREADS} threads, temperature {TEMPERATURE}, equal values and
        gradients checked on 1,000 pairs. Memory: peak growth of resident memory (VmHWM) in a fresh process per figure,
        inputs and libraries loaded before."""
    harness.finish(__file__, protocol, rows, args)


if __name__ == "__main__":
    if "--memory-of" in sys.argv:
        side, pairs = sys.argv[2], int(sys.argv[3])
        torch.set_num_threads(THREADS)
        step(side, 600)()
        print(harness.memory_growth(step(side, pairs)))
    else:
        main()
