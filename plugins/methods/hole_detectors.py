"""Questions to a method that paints holes: better than by rule, and also far from the border?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.types import Finding, Sample
from plugins.methods.detectors import BETTER, found

if TYPE_CHECKING:
    from plugins.methods.context_encoder import ContextEncoder

INTERIOR = 0.9  # of the variance: an interior painted no better than this has not been understood


def inpainting(method: ContextEncoder, held_out: Sample) -> Finding:
    """Squared error in the hole against painting it in the mean colour around it, and from its border inwards."""
    painted, mean, border, _, _ = _holes(method, held_out)
    figures = {"network": painted.mean(), "mean fill": mean.mean(), "border fill": border.mean()}
    return found(
        bool(figures["network"] >= BETTER * min(figures["mean fill"], figures["border fill"])),
        warning="filling the hole by rule is as good as the network",
        fine="the network paints better than either rule",
        figures={"network": figures["network"]},
        against={name: value for name, value in figures.items() if name != "network"},
    )


def interior(method: ContextEncoder, held_out: Sample) -> Finding:
    """Squared error by distance to the nearest known pixel, as a share of the variance there."""
    painted, _, _, variance, distance = _holes(method, held_out)
    deepest = int(distance.quantile(0.9))  # the last ring that is not a few pixels of a few images
    rings = sorted({1, max(1, (1 + deepest) // 2), deepest})
    shares = [
        float(painted[ring].mean() / variance[ring].mean().clamp(min=1e-9))
        for ring in ((distance >= depth) if depth == deepest else (distance == depth) for depth in rings)
    ]
    return found(
        shares[-1] >= INTERIOR,
        warning="deep inside it paints no better than the mean: it only continues what crosses the border",
        fine="it paints the inside too",
        figures={f"{depth} px inside": share for depth, share in zip(rings, shares, strict=True)},
        against={"only the border above": INTERIOR, "mean": 1.0},
    )


def filled_from_border(images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Holes filled ring by ring, each pixel with the mean of its known neighbours, and how deep each lies.

    images: (N, C, H, W). hidden: (N, 1, H, W) bool, not everywhere. Returns the images and (N, 1, H, W) int64, 0
    outside the holes, 1 for their pixels with a known neighbour among the eight around them.
    """
    known, depth = (~hidden).float(), torch.zeros_like(hidden, dtype=torch.int64)
    filled, ring = images * known, 0
    while bool((known == 0).any()):
        ring += 1
        total, count = (9 * F.avg_pool2d(x, 3, stride=1, padding=1) for x in (filled, known))
        reached = (known == 0) & (count > 0.5)
        filled = torch.where(reached, total / count.clamp(min=1), filled)
        depth[reached] = ring
        known = known + reached.float()
    return filled, depth


def _holes(method: ContextEncoder, held_out: Sample) -> tuple[Tensor, ...]:
    """For every hidden pixel of the sample, (P,) each: the network's squared error, that of both rules, the squared
    distance to the mean image of the sample, and how deep it lies."""
    found_in: list[tuple[Tensor, ...]] = []
    for part in held_out.parts():
        views = method.make_views(part.images, part.rng)
        whole, hidden = views.images[1], method.hidden(views)
        painted = method.filled(views)
        known = (~hidden).float()
        mean = (whole * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        border, depth = filled_from_border(whole, hidden)
        errors = [((fill - whole) ** 2).mean(dim=1)[hidden[:, 0]] for fill in (painted, mean, border)]
        found_in.append((*errors, whole.movedim(1, -1)[hidden[:, 0]], depth[hidden]))
    painted, mean, border, pixels, depth = (torch.cat(parts) for parts in zip(*found_in, strict=True))
    return painted, mean, border, (pixels - pixels.mean(dim=0)).square().mean(dim=1), depth.float()
