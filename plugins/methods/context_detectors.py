"""Questions to context prediction: does a patch betray its place, and do lines across the gap give the side away?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_core.errors import ConfigError
from cl_core.types import Finding, Sample
from plugins.methods.detectors import SOLVED, UNSOLVED, beyond, each, found, gathered, mean_figures, place, twin

if TYPE_CHECKING:
    from plugins.methods.context_prediction import ContextPrediction

GAPS = (0, 2, 4)  # px


def single_patch(method: ContextPrediction, held_out: Sample) -> Finding:
    """Accuracy where the mean features stand in for the second patch, against that with both.

    In a grid the guess for each patch can be right for at most 9 of the 40 pairs, so that is what `most` says.
    """
    figures = mean_figures(method, held_out)
    both, alone = figures["accuracy"], figures["single_patch_accuracy"]
    chance = method.trivial()["accuracy"]
    most = 1.0 if method.sides is None else 9 / len(method.sides)
    reached, solved = (alone - chance) / (most - chance), beyond(both, chance)
    return found(
        reached > 0.5 or solved < SOLVED,
        warning="a single patch betrays its own place; strengthen the guard of colours"
        if solved >= SOLVED
        else UNSOLVED,
        fine="a single patch tells little of where it lies",
        figures={"both patches": both, "single patch": alone},
        against={"chance": chance, "most": most},
    )


def gap_cliff(method: ContextPrediction, held_out: Sample) -> Finding:
    """Accuracy by the gap between patches, nothing else moved; those gaps that fit into the image."""
    by_gap: dict[int, float] = {}
    for gap in GAPS:
        try:
            by_gap[gap] = mean_figures(twin(method, gap=gap, jitter=0), held_out)["accuracy"]
        except ConfigError:  # the patches do not fit
            break
    chance = method.trivial()["accuracy"]
    near, far = (beyond(by_gap[gap], chance) for gap in (min(by_gap), max(by_gap)))
    return found(
        far < near / 2,
        warning="most of the accuracy is lost when patches move apart: the network follows lines across the border",
        fine="accuracy hardly depends on how near the patches lie",
        figures={f"gap {gap} px": accuracy for gap, accuracy in by_gap.items()},
        against={"chance": chance},
    )


def patch_place(method: ContextPrediction, fit: Sample, held_out: Sample) -> Finding:
    """How well the encoder's features of a single patch of the grid tell its cell."""

    def seen(sample: Sample) -> tuple[Tensor, Tensor]:
        features = gathered(sample, lambda part: each(method, method.make_views(part.images, part.rng).images[0]))
        return features.flatten(0, 1), torch.arange(features.shape[1]).repeat(len(features))

    return place(*seen(fit), *seen(held_out), cells=9)
