"""Accuracy against the year of publication: a point per method, marked by family, yardsticks as lines across.

Years stand side by side as far apart as the names in them need, which keeps every name readable; so distances along
the axis mean nothing, only the order does. Of experiments with the same method, encoder and loss the first listed is
drawn, the others are its variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cl_core.report.figures import MARKERS, MUTED, SERIES, STYLE, SURFACE, SWATCHES, Axis, dress, finished, new_panel
from cl_core.report.groups import percent
from cl_core.report.leaderboard import Entry, Leaderboard
from cl_core.report.plots import Plot, padded, short
from cl_core.report.records import RANDOM_INIT

HEIGHT = 420
LETTER = 5.6  # CSS pixels of an average letter at 10 px in the fonts that pages use
LINE = 13.0  # between two names below each other
SIZE = 8.0  # of a marker
GAP, MARGIN = 16.0, 48.0  # from a point to its name and beyond it; left of the first point
LONGEST = 24  # letters of a name


@dataclass(frozen=True)
class Point:
    """A method: its name, year, place of its family among the families, accuracy in [0, 1]."""

    label: str
    year: int
    family: int
    value: float


def timeline(board: Leaderboard, name: str, *, legend_inside: bool = False) -> Plot | None:
    """The figure of a leaderboard; None where fewer than two methods tell their year.

    legend_inside: also draw the legend into the figure, for a file that stands alone.
    """
    drawn = _first_of_each_kind(board)
    dated = sorted((e for e in drawn if e.facts.year is not None), key=lambda entry: entry.facts.year or 0)
    if len(dated) < 2:
        return None
    families = list(dict.fromkeys(entry.facts.family for entry in dated))
    points = [
        Point(short(e.group.label, LONGEST), e.facts.year or 0, families.index(e.facts.family), _accuracy(e))
        for e in dated
    ]
    levels = _levels(board, drawn)
    legend = tuple((_swatch(index), family or "no family given") for index, family in enumerate(families))
    words = "; ".join(
        f"{point.year} {point.label} ({families[point.family]}) {percent(point.value)} %" for point in points
    )
    lines = "; ".join(f"{label} {percent(value)} %" for label, value in levels.items())
    alt = f"Linear probe, top-1, by year of publication: {words}. Lines across: {lines or 'none'}"
    return Plot(
        "Linear probe by year of publication",
        _drawn(name, alt, points, levels, [family for _, family in legend] if legend_inside else []),
        legend,
    )


def _first_of_each_kind(board: Leaderboard) -> list[Entry]:
    first: dict[tuple[str, ...], Entry] = {}
    for entry in sorted(board.entries, key=lambda entry: entry.group.index):
        specs = (entry.group.first.spec(section) for section in ("method", "encoder", "loss"))
        if entry.linear is not None:
            first.setdefault(tuple(spec.name if spec else "" for spec in specs), entry)
    return list(first.values())


def _accuracy(entry: Entry) -> float:
    return entry.linear.mean if entry.linear else 0.0


def _levels(board: Leaderboard, drawn: Sequence[Entry]) -> dict[str, float]:
    """Yardsticks without a year; random init and raw pixels, if no experiment stands for them, from any that has them.

    An experiment on untrained weights or on pixels has no gain, and its accuracy is that of the yardstick.
    """
    levels = {e.group.label: _accuracy(e) for e in drawn if e.facts.year is None and e.facts.yardstick}
    untrained = any(e.facts.yardstick and e.facts.units == 0 for e in drawn)
    for name in () if untrained else (RANDOM_INIT, "raw_pixels"):
        found = [value for e in board.entries if (value := e.group.baseline(name))]
        if found:
            levels[name.replace("_", " ")] = found[0].mean
    return levels


def _drawn(name: str, alt: str, points: Sequence[Point], levels: dict[str, float], families: Sequence[str]) -> str:
    columns, width = _columns(points)
    right = max((_width(label) for label in levels), default=0.0) + 2 * GAP
    with style.context(["default", STYLE]):
        # Placed by hand: names are set in pixels, which a layout engine would move.
        figure, axes = new_panel(width + right, HEIGHT, None)
        figure.subplots_adjust(
            MARGIN / (width + right), 34 / HEIGHT, width / (width + right), 1 - (30 if families else 14) / HEIGHT
        )
        axes.set_xlim(0, width - MARGIN)
        ticks = {place: str(year) for year, place in columns.items()}
        values = [*(point.value for point in points), *levels.values()]
        dress(axes, "x", Axis("", ticks=ticks))
        dress(axes, "y", Axis("test top-1 in %", padded(values), percent=True))
        _draw_levels(axes, levels)
        if families:
            _draw_legend(axes, families)
        for year, place in columns.items():
            _draw_column(axes, place, [point for point in points if point.year == year])
        return finished(figure, name, alt)


def _columns(points: Sequence[Point]) -> tuple[dict[int, float], float]:
    """{year: x of its points in pixels from the axis}, and the width of the axis with its margin."""
    places, x = {}, GAP
    for year in sorted({point.year for point in points}):
        places[year] = x
        x += max(_width(point.label) for point in points if point.year == year) + 2 * SIZE + 2 * GAP
    return places, x + MARGIN


def _width(text: str) -> float:
    return LETTER * len(text)


def _draw_column(axes: Axes, x: float, points: Sequence[Point]) -> None:
    heights = [_pixels(axes, point.value) for point in points]
    asides = aside(heights, SIZE)
    for point, height, to, moved in zip(points, heights, spread(heights, LINE), asides, strict=True):
        right = GAP - 4 + (max(asides) - moved) * SIZE
        place: dict[str, Any] = {"xytext": (right, to - height), "textcoords": "offset points"}
        if abs(to - height) > 2 or moved < max(asides):
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
            place["arrowprops"] = line
        where = (x + moved * SIZE, point.value)
        axes.annotate(point.label, where, fontsize=10, gid="halo", va="center_baseline", **place)
        axes.plot(*([value] for value in where), linestyle="none", **_look(point.family))


def _look(family: int) -> dict[str, Any]:
    """Colour and marker of a family; hollow once all colours are taken."""
    colour, hollow = SERIES[family % len(SERIES)], family // len(SERIES) % 2 == 1
    edge = {"markerfacecolor": SURFACE, "markeredgecolor": colour} if hollow else {"markeredgecolor": SURFACE}
    return {"color": colour, "marker": MARKERS[family % len(MARKERS)], "markersize": SIZE, **edge}


def _swatch(family: int) -> str:
    """The marker of a family, for a legend."""
    colour = f"var(--series-{family % len(SERIES)})"
    fill = "var(--page)" if family // len(SERIES) % 2 == 1 else colour
    style_of = f"fill:{fill};stroke:{colour};stroke-width:1.5"
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="{style_of}">'
        f"{SWATCHES[family % len(SWATCHES)]}</svg>"
    )


def _draw_legend(axes: Axes, families: Sequence[str]) -> None:
    handles = [Line2D([], [], linestyle="none", label=name, **_look(index)) for index, name in enumerate(families)]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(families),
        frameon=False,
        fontsize=10,
        borderaxespad=0.2,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _draw_levels(axes: Axes, levels: dict[str, float]) -> None:
    heights = spread([_pixels(axes, value) for value in levels.values()], LINE)
    for (label, value), height in zip(levels.items(), heights, strict=True):
        axes.axhline(value, color=MUTED, linewidth=1.25, linestyle=(0, (4, 3)))
        place: dict[str, Any] = {"xytext": (6, height - _pixels(axes, value)), "textcoords": "offset points"}
        place |= {"xycoords": ("axes fraction", "data"), "va": "center_baseline"}
        axes.annotate(short(label, LONGEST), (1, value), fontsize=10, color=MUTED, **place)


def _pixels(axes: Axes, value: float) -> float:
    """Height of a value in CSS pixels, which are matplotlib's points here."""
    figure = axes.get_figure()
    return float(axes.transData.transform((0, value))[1]) * 72 / (figure.dpi if figure else 72)


def aside(heights: Sequence[float], size: float) -> list[int]:
    """Per marker 0, or 1 or 2 where it steps aside for those below, which would hide it; in the order given."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    steps = dict.fromkeys(order, 0)
    for below, above in pairwise(order):
        steps[above] = (steps[below] + 1) % 3 if heights[above] - heights[below] < size else 0
    return [steps[k] for k in range(len(heights))]


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """The heights moved as little as it takes to lie at least `distance` apart, in the order given.

    Neighbours that come too close become a block around their mean, and blocks that meet become one.
    """
    blocks: list[tuple[float, list[int]]] = []  # centre, which heights from low to high
    for index in sorted(range(len(heights)), key=lambda k: heights[k]):
        block = (heights[index], [index])
        while blocks and block[0] - blocks[-1][0] < distance * (len(block[1]) + len(blocks[-1][1])) / 2:
            members = blocks.pop()[1] + block[1]
            block = (sum(heights[k] for k in members) / len(members), members)
        blocks.append(block)
    moved = dict.fromkeys(range(len(heights)), 0.0)
    for centre, members in blocks:
        for rank, index in enumerate(members):
            moved[index] = centre + distance * (rank - (len(members) - 1) / 2)
    return [moved[k] for k in range(len(heights))]
