"""Figures that show a collapsing embedding while its loss still looks good.

Computes numbers from embeddings; sets no thresholds and stops nothing (an observer such as `plugins.monitors` does).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 1024  # rows of a batch that are looked at, evenly spread; bounds the singular value decomposition


@torch.no_grad()
def collapse_figures(embedding: Tensor) -> dict[str, float]:
    """Spread of a batch of embeddings: (N, D), any scale and float type, normalised inside.

    feature_std: mean over dimensions of the standard deviation of the unit vectors, times sqrt(D); 1 where they are
        spread evenly over the sphere, 0 where all are equal (SimSiam, Chen & He 2021, arXiv:2011.10566, section 4.1).
    effective_rank: between 1 and min(N, D), see `effective_rank`, of the unit vectors.
    mean_cosine: mean cosine over pairs of different rows, 0 for evenly spread vectors, 1 where all are equal.
    Figures of a single row are those of a collapse; of embeddings that are not finite, NaN.
    """
    unit = F.normalize(_thinned(embedding).to(torch.float64), dim=1)
    n, dim = unit.shape
    pairs = max(n * (n - 1), 1)
    cosines = float(unit.sum(dim=0).square().sum() - unit.square().sum()) if n > 1 else 1.0
    return {
        "feature_std": float(unit.std(dim=0, correction=0).mean()) * dim**0.5,
        "effective_rank": effective_rank(unit),
        "mean_cosine": cosines / pairs,
    }


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (N, D), in [1, min(N, D)] (Roy & Vetterli 2007).

    Not centred, as in RankMe (Garrido et al. 2023, arXiv:2210.02885): rows that all point one way have rank 1 however
    much noise they carry. A matrix of zeros has rank 1; one that is not finite, NaN.
    """
    if not torch.isfinite(features).all():
        return float("nan")
    return entropy_rank(torch.linalg.svdvals(features.to(torch.float64)))


def entropy_rank(spectrum: Tensor) -> float:
    """exp of the entropy of values (K,) >= 0 over their sum: K where all are equal, 1 for a single one and for none."""
    total = spectrum.sum()
    return 1.0 if total == 0 else float(torch.special.entr(spectrum / total).sum().exp())


@torch.no_grad()
def alignment_uniformity(z_a: Tensor, z_b: Tensor) -> dict[str, float]:
    """Wang & Isola 2020 (arXiv:2005.10242, section 4.1) on two views of the same samples, each (N, D), N >= 2.

    alignment: mean squared distance between the views of a sample (alpha = 2), in [0, 4], lower is better.
    uniformity: log of the mean of exp(-2 * squared distance) over pairs of different samples, averaged over the two
        views; 0 where all are equal, about -4 at best, lower is better. Rows are normalised inside.
    """
    unit_a, unit_b = (F.normalize(z.to(torch.float64), dim=1) for z in (z_a, z_b))
    return {
        "alignment": float((unit_a - unit_b).square().sum(dim=1).mean()),
        "uniformity": (log_mean_potential(unit_a) + log_mean_potential(unit_b)) / 2,
    }


def log_mean_potential(unit: Tensor) -> float:
    """log of the mean of exp(-2 * squared distance) over pairs of rows (N, D) of unit length; 0 without pairs."""
    if len(unit) < 2:
        return 0.0
    # |a - b|^2 = |a|^2 + |b|^2 - 2 ab is a product of matrices, where distances one by one take seconds.
    squared = unit.square().sum(dim=1)
    distances = squared[:, None] + squared - 2 * unit @ unit.T
    return float(distances.mul(-2).exp().triu(diagonal=1).sum().div(math.comb(len(unit), 2)).log())


def _thinned(embedding: Tensor) -> Tensor:
    step = -(-len(embedding) // MAX_ROWS)
    return embedding[:: max(step, 1)]
