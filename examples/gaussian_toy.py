"""What a contrastive loss measures, on data of which everything is known: `python examples/gaussian_toy.py`.

Two correlated Gaussians share a known amount of information. The loss `info_nce` bounds it from below by log N - L (van
den Oord et al. 2018, arXiv:1807.03748), never above log N, and the nearer the more candidates N there are. The best
score is the density ratio; a small network learns it from samples alone. Takes a few seconds on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plugins.losses import MLP, InfoNCE

DIM, RHO, CANDIDATES = 2, 0.9, 16
STEPS, BATCH = 1200, 64


def correlated(count: int, dim: int, rho: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs (a, b), each (count, dim) of unit variance, with correlation rho in every dimension."""
    a, noise = (torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return a, rho * a + math.sqrt(1 - rho**2) * noise


def information(dim: int, rho: float) -> float:
    """Mutual information of such a pair, in nats."""
    return -0.5 * dim * math.log(1 - rho**2)


class DensityRatio(nn.Module):
    """log p(b | a) / p(b): the best score there is."""

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.rho = rho

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        given = (b[None] - self.rho * a[:, None]).square() / (1 - self.rho**2)
        return (-0.5 * (given - b.square()[None]) - 0.5 * math.log(1 - self.rho**2)).sum(dim=-1)


@torch.no_grad()
def bound(score: nn.Module, count: int, dim: int, rho: float, *, batches: int = 1500, seed: int = 0) -> float:
    """log N - L of a score on fresh batches of N = count pairs, in nats."""
    generator = torch.Generator().manual_seed(seed)
    loss = InfoNCE(score, symmetric=False)
    losses = [loss(*correlated(count, dim, rho, generator)) for _ in range(batches)]
    return math.log(loss.candidates(count)) - float(torch.stack(losses).mean())


def learned(dim: int, rho: float) -> nn.Module:
    """A network that has learned to score pairs by telling them from other pairs of the batch."""
    torch.manual_seed(0)
    score, generator = MLP(dim, hidden_dim=64), torch.Generator().manual_seed(1)
    loss = InfoNCE(score, symmetric=False)
    optimizer = torch.optim.AdamW(score.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        a, b = (side.float() for side in correlated(BATCH, dim, rho, generator))
        optimizer.zero_grad()
        loss(a, b).backward()
        optimizer.step()
        schedule.step()
    return score.double()


def main() -> None:
    """Print what is there to be found, what the best score proves of it, and what the learned one does."""
    print(f"mutual information of {DIM}-dimensional Gaussians with correlation {RHO}: {information(DIM, RHO):.3f} nats")
    best = DensityRatio(RHO)
    for count in (4, CANDIDATES, 64):
        proved, most = bound(best, count, DIM, RHO, batches=20000 // count), math.log(count)
        print(f"bound by the best score among {count} candidates: {proved:.3f} nats, of at most {most:.3f}")
    score = learned(DIM, RHO)
    print(f"bound by the learned score among {CANDIDATES} candidates: {bound(score, CANDIDATES, DIM, RHO):.3f} nats")


if __name__ == "__main__":
    main()
