"""Charts of the story: many images and few labels, published figures, and our own (benchmarks/story/results.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from canvas import BLUE, FAINT, GREEN, INK, ORANGE, RED, canvas, outline, place, rendered
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from sklearn.datasets import load_digits

from cl_core.evaluation.draws import Drawing

RESULTS = Path(__file__).parents[2] / "benchmarks" / "story" / "results.json"

# ImageNet top-1 in percent of a linear probe on ResNet-50, from VISSL's MODEL_ZOO.md (commit 66a1f19), save for BYOL,
# whose abstract says it, and context prediction, which MMSelfSup's page of it gives for the best stage.
PUBLISHED = (
    ("context prediction, 2015", 51.2, ORANGE),
    ("colorization, 2016", 40.1, ORANGE),
    ("jigsaw, 2016", 48.6, ORANGE),
    ("rotation, 2018", 48.2, ORANGE),
    ("instance discrimination, 2018", 55.0, BLUE),
    ("SimCLR, 2020", 69.7, BLUE),
    ("MoCo v2, 2020", 66.4, BLUE),
    ("BYOL, 2020", 74.3, GREEN),
    ("SwAV, 2020", 74.9, GREEN),
    ("Barlow Twins, 2021", 71.8, GREEN),
)
SUPERVISED = 76.1

# The same by stage, stem first, from MMSelfSup's pages of each method (configs/selfsup/*/README.md).
STAGES = (
    ("context prediction", (15.11, 30.47, 42.83, 51.20, 40.96), ORANGE),
    ("rotation", (12.15, 31.99, 44.57, 54.20, 45.94), RED),
    ("BYOL", (15.59, 35.16, 47.37, 62.86, 71.62), GREEN),
)
# Colours of our experiments by what they learn from; contrast with negatives is blue.
FAMILIES = {
    ORANGE: [
        "denoising_autoencoder",
        "context_prediction",
        "jigsaw",
        "context_encoder",
        "colorization",
        "split_brain",
        "counting",
        "rotation",
        "mae",
    ],
    GREEN: ["byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino"],
    FAINT: ["supervised", "supcon"],
}
_ROWS, _COLUMNS, _CELL = 20, 50, 9  # of digits, 8 pixels wide and 1 apart


def problem() -> np.ndarray:
    """A thousand digits, of which the ten that have a label are marked: the same that fine-tuning on 1 % would take."""
    digits = load_digits()
    count = _ROWS * _COLUMNS
    labels = digits.target[:count]
    rows = Drawing([str(number) for number in range(count)], labels).per_class(1)
    paper = np.pad(1 - digits.images[:count] / 16, ((0, 0), (0, 1), (0, 1)), constant_values=1)
    pixels = np.repeat(paper[..., None], 3, axis=3) * 0.4 + 0.6
    pixels[rows] = 1 - (1 - paper[rows][..., None]) * (1 - np.array(to_rgb(ORANGE)))
    sheet = pixels.reshape(_ROWS, _COLUMNS, _CELL, _CELL, 3).swapaxes(1, 2).reshape(_ROWS * _CELL, -1, 3)
    figure = canvas(2 * _COLUMNS * _CELL / 100, 2 * _ROWS * _CELL / 100)
    axes = place(figure, 0, 0, *figure.get_size_inches())
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    for row in rows.tolist():
        y, x = divmod(row, _COLUMNS)
        outline(axes, (y * _CELL - 0.5, x * _CELL - 0.5), _CELL, ORANGE)
    return rendered(figure)


def stages() -> np.ndarray:
    """Published accuracy of a linear probe at each stage: pretext features peak before the end."""
    figure = canvas(6.4, 3.2)
    axes = figure.add_axes((0.1, 0.16, 0.66, 0.8))
    for name, values, colour in STAGES:
        axes.plot(range(1, 6), values, color=colour, marker="o", markersize=5, linewidth=2)
        axes.text(5.15, values[-1], name, color=colour, fontsize=9.5, va="center")
    axes.set_xticks(range(1, 6), ["stem", "1", "2", "3", "4"])
    axes.set_xlabel("stage of a ResNet-50", fontsize=9.5)
    axes.set_ylabel("ImageNet top-1, %", fontsize=9.5)
    _plain(axes)
    return rendered(figure)


def published() -> np.ndarray:
    """Published linear probes of one encoder against supervised training."""
    figure = canvas(7.2, 3.3)
    axes = figure.add_axes((0.31, 0.13, 0.66, 0.8))
    names, values, colours = zip(*PUBLISHED, strict=True)
    _bars(axes, names, values, colours)
    for number, value in enumerate(values):
        axes.text(value - 0.8, number, f"{value:.1f}", ha="right", va="center", fontsize=8.5, color="white")
    axes.axvline(SUPERVISED, color=INK, linewidth=1.4)
    axes.text(SUPERVISED, -0.9, f"supervised {SUPERVISED}", ha="center", fontsize=9, color=INK)
    axes.set_xlim(0, 85)
    axes.set_xlabel("ImageNet top-1 of a linear probe on ResNet-50, %", fontsize=9.5)
    return rendered(figure)


def ours() -> np.ndarray:
    """Our own: linear probe of every measured experiment, beside random init."""
    return measured(json.loads(RESULTS.read_text()))


def measured(results: dict[str, dict[str, Any]]) -> np.ndarray:
    """Bars of the results, best first, with their interval, and the untrained encoder of the same input as a mark."""
    names = sorted(results, key=lambda name: results[name]["linear"], reverse=True)
    figure = canvas(7.2, 1.0 + 0.24 * max(len(names), 2))
    axes = figure.add_axes((0.31, 0.55 / figure.get_figheight(), 0.66, 1 - 0.7 / figure.get_figheight()))
    _bars(axes, names, [100 * results[name]["linear"] for name in names], [_colour(name) for name in names])
    for number, name in enumerate(names):
        low, high = (100 * end for end in results[name]["linear_ci95"])
        axes.text(high + 1, number, f"{100 * results[name]['linear']:.1f}", va="center", fontsize=8.5, color=INK)
        axes.plot([low, high], [number, number], color=INK, linewidth=1.2)
        axes.plot([100 * results[name]["random_init"]] * 2, [number - 0.4, number + 0.4], color=INK, linewidth=2)
    if not names:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color=FAINT)
    axes.set_xlim(0, 100)
    axes.set_xlabel("CIFAR-10 top-1 of a linear probe, %; black mark: the same encoder, untrained", fontsize=9.5)
    return rendered(figure)


def _colour(name: str) -> str:
    return next((colour for colour, family in FAMILIES.items() if name in family), BLUE)


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    axes.barh(range(len(names)), values, color=colours, height=0.66)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


__all__ = ["ours", "problem", "published", "stages"]
