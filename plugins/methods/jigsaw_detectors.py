"""Questions to jigsaw: are puzzles solved by what tiles show, or by evidence that its guards are to withhold?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_core.measures.logistic import fit_classifier
from cl_core.types import Finding, Sample
from plugins.methods.detectors import (
    SOLVED,
    UNSOLVED,
    along_borders,
    beyond,
    each,
    found,
    gathered,
    mean_figures,
    place,
    twin,
)

if TYPE_CHECKING:
    from plugins.methods.jigsaw import Jigsaw

LEAK = 0.1  # of the puzzles beyond chance: more than trivial statistics may solve


def jigsaw_statistics(method: Jigsaw, fit: Sample, held_out: Sample) -> Finding:
    """Whether puzzles can be solved without looking at what tiles show.

    statistics: a linear classifier of a tile's cell from its colour means, deviations and means along its four borders,
    its scores added up over the slots of each permutation. borders: the permutation whose facing borders differ least.
    """
    table, cells = method.permutations.cpu(), method.grid**2
    tiles, labels = _puzzles(method, fit)
    classifier = fit_classifier(tile_statistics(tiles).flatten(0, 1), table[labels].flatten(), cells)
    tiles, labels = _puzzles(method, held_out)
    scores = classifier.scores(tile_statistics(tiles).flatten(0, 1)).log_softmax(dim=1).unflatten(0, (-1, cells))
    by_statistics = scores.gather(2, table.T.expand(len(tiles), -1, -1)).sum(dim=1)  # slot k shows cell table[p, k]
    chance = 1 / len(table)
    figures = {
        "statistics": _accuracy(by_statistics, labels),
        "borders": _accuracy(-border_costs(tiles, table), labels),
        "network": _puzzle_accuracy(method, held_out),
    }
    return found(
        max(beyond(figures["statistics"], chance), beyond(figures["borders"], chance)) > LEAK,
        warning="trivial statistics of the tiles solve puzzles, so the guards leak; widen the gap, standardise tiles",
        fine="trivial statistics of the tiles solve few puzzles",
        figures=figures,
        against={"chance": chance},
    )


def jigsaw_guards(method: Jigsaw, held_out: Sample) -> Finding:
    """Puzzle accuracy with guards taken away, one at a time and together, and with all of them on.

    Standardised tiles stay as they were trained: without, the network would see inputs of another scale. A gap is
    closed by cutting the same tiles from a smaller image.
    """
    closed, colours, whole = {"tile_share": 1.0}, {"gray_prob": 0.0, "channel_shift": 0}, {"min_crop": 1.0}
    on = {"tile_share": 0.75, "jitter": True, "gray_prob": 0.3, "channel_shift": 1, "min_crop": 0.75}
    near = _without_gap(method, held_out)
    figures = {
        "as trained": _puzzle_accuracy(method, held_out),
        "gap closed": _puzzle_accuracy(twin(method, **closed), near),
        "own colours": _puzzle_accuracy(twin(method, **colours), held_out),
        "whole image": _puzzle_accuracy(twin(method, **whole), held_out),
        "guards off": _puzzle_accuracy(twin(method, **closed, **colours, **whole), near),
        "guards on": _puzzle_accuracy(twin(method, **on), held_out),
    }
    chance = 1 / len(method.permutations)
    trained, guarded = (beyond(figures[name], chance) for name in ("as trained", "guards on"))
    return found(
        guarded < trained / 2 or trained < SOLVED,
        warning="most of the puzzles are solved by evidence that the default guards withhold; switch them on"
        if trained >= SOLVED
        else UNSOLVED,
        fine="the network solves puzzles under the default guards too",
        figures=figures,
        against={"chance": chance},
    )


def tile_place(method: Jigsaw, fit: Sample, held_out: Sample) -> Finding:
    """How well the encoder's features of a single tile tell its cell."""

    def seen(sample: Sample) -> tuple[Tensor, Tensor]:
        def look(part: Sample) -> Tensor:
            views = method.make_views(part.images, part.rng)
            cells = method.permutations[views.targets]
            return torch.cat([each(method, views.images[0]), cells[..., None].float()], dim=2)

        both = gathered(sample, look).flatten(0, 1)
        return both[:, :-1], both[:, -1].long().cpu()

    return place(*seen(fit), *seen(held_out), cells=method.grid**2)


def tile_statistics(tiles: Tensor) -> Tensor:
    """Means and deviations of the channels, and their means along each border: (N, T, C, t, t) -> (N, T, 6 C)."""
    deviation, mean = torch.std_mean(tiles, dim=(-2, -1), correction=0)
    return torch.cat([mean, deviation, along_borders(tiles, torch.mean)], dim=2)


def border_costs(tiles: Tensor, table: Tensor) -> Tensor:
    """Mean difference of facing borders if the tiles were shuffled by each row: (N, T, C, t, t), (P, T) -> (N, P).

    table: gather form, slot k shows cell table[p, k].
    """
    side = round(table.shape[1] ** 0.5)
    beside = _facing(tiles[..., :, -1], tiles[..., :, 0])  # (N, T, T): first left of second
    above = _facing(tiles[..., -1, :], tiles[..., 0, :])
    slots = table.argsort(dim=1).unflatten(1, (side, side))  # which slot holds each cell
    across = beside[:, slots[:, :, :-1], slots[:, :, 1:]].flatten(2).sum(dim=2)
    down = above[:, slots[:, :-1], slots[:, 1:]].flatten(2).sum(dim=2)
    return across + down


def _facing(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of each border to each: (N, T, C, t) twice -> (N, T, T)."""
    return torch.cdist(first.flatten(2), second.flatten(2), p=1)


def _puzzles(method: Jigsaw, sample: Sample) -> tuple[Tensor, Tensor]:
    """The tiles that the network would see, and which permutation it was; on the CPU."""
    views = method.make_views(sample.images, sample.rng)
    return views.images[0].cpu(), views.targets.cpu()


def _puzzle_accuracy(method: Jigsaw, sample: Sample) -> float:
    return mean_figures(method, sample)["accuracy"]


def _without_gap(method: Jigsaw, sample: Sample) -> Sample:
    """The middle of each image, so small that tiles of the trained size fill their cells."""
    side = method.grid * method.tile_side(sample.images)
    top, left = ((size - side) // 2 for size in sample.images.shape[-2:])
    middle = sample.images[..., top : top + side, left : left + side]
    return Sample(images=middle, labels=sample.labels, rng=sample.rng)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(dim=1) == labels).double().mean())
