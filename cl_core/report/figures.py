"""Figures as inline SVG that follow the page's light and dark colours.

Every figure is one small panel, drawn at the size at which it is shown, so that its text is readable on a phone; the
page lays panels out side by side. Colours are placeholders here and CSS variables in the SVG. Takes plain numbers,
knows neither files nor experiments, and gives the same bytes for the same numbers.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

WIDTH, HEIGHT = 360, 232  #: CSS pixels of a panel; matplotlib's SVG unit at 72 dpi
SMALL = 280, 190  #: of a panel among many
MAX_POINTS = 240  #: a longer curve is averaged over equal windows

# Colours that no palette has, so that they can be replaced by CSS variables in the finished SVG.
INK, MUTED, GRID, SURFACE = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0202{index:02x}" for index in range(6))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    colour: f"series-{index}" for index, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")  # shape as well as colour tells lines apart
SWATCHES = (
    '<circle cx="14" cy="6" r="4"/>',
    '<rect x="10.5" y="2.5" width="7" height="7"/>',
    '<path d="M14 1.5 18.5 10h-9z"/>',
    '<path d="M14 .8 19 6l-5 5.2L9 6z"/>',
    '<path d="M14 10.5 18.5 2h-9z"/>',
    '<path d="M12.3 1.5h3.4v2.8H19v3.4h-3.3v2.8h-3.4V7.7H9V4.3h3.3z"/>',
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the page's own font
    "text.parse_math": False,  # a "$" in somebody's name is a dollar sign
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """A curve; None leaves a gap. series: which colour and marker; yardstick: its name instead, drawn in grey.

    hollow: markers are outlines and the line is dotted, for a second curve of the same series. low, high: ends of the
    interval at each x.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    series: int = 0
    yardstick: str = ""
    markers: bool = False
    hollow: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line across the panel, with its name above it."""

    value: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One line of the overview: a mean with the ends of its interval, and yardsticks {name: value}."""

    label: str
    series: int
    value: float
    low: float
    high: float
    yardsticks: dict[str, float]


@dataclass(frozen=True)
class Axis:
    """label and limits of an axis; ticks are {position: text} for categories.

    percent: tick labels times 100. whole: tick labels with thousands separators.
    """

    label: str
    limits: tuple[float, float] | None = None
    ticks: dict[float, str] | None = None
    percent: bool = False
    log: bool = False
    whole: bool = False


YARDSTICK_MARKERS = {"random init": "D", "raw pixels": "s", "supervised, same labels": "^"}


def line_panel(
    name: str, alt: str, lines: Sequence[Line], *, x: Axis, y: Axis, levels: Sequence[Level] = (), small: bool = False
) -> str:
    """One panel of curves. name: unique on the page. alt: what a reader who cannot see the figure is told."""
    with style.context(["default", STYLE]):
        figure, axes = new_panel(*(SMALL if small else (WIDTH, HEIGHT)))
        for line in lines:
            _draw(axes, line)
        for level in levels:
            _draw_level(axes, level)
        dress(axes, "x", x)
        dress(axes, "y", y)
        return finished(figure, name, alt)


def overview(name: str, alt: str, bars: Sequence[Bar], label: str) -> str:
    """Mean and interval of every group on one axis of percent, with hollow markers for the yardsticks."""
    with style.context(["default", STYLE, {"axes.grid.axis": "x"}]):
        figure, axes = new_panel(WIDTH, 62 + 44 * len(bars))
        for row, bar in enumerate(bars):
            _draw_bar(axes, -row, bar)
        axes.set_ylim(0.5 - len(bars), 0.75)
        axes.set_yticks([])
        axes.margins(x=0.06)
        dress(axes, "x", Axis(label, percent=True))
        return finished(figure, name, alt)


def swatch(series: int, *, hollow: bool = False) -> str:
    """The line and marker of a series, for a legend."""
    index = series % len(SERIES)
    dots = ' stroke-dasharray="2 2"' if hollow else ""
    shape = f'<path d="M1 6h26" fill="none" stroke-width="2"{dots}/>{SWATCHES[index]}'
    paint = f"fill:var(--{'surface' if hollow else f'series-{index}'});stroke:var(--series-{index})"
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="{paint}">{shape}</svg>'


def yardstick_swatch(name: str, *, lined: bool = False) -> str:
    """The hollow marker of a yardstick, on its dashed line if it has one, for a legend."""
    shape = SWATCHES[MARKERS.index(YARDSTICK_MARKERS.get(name, "D"))]
    line = '<path d="M1 6h26" fill="none" stroke-dasharray="4 3"/>'
    return f'<svg class="swatch hollow" viewBox="0 0 28 12" aria-hidden="true">{line if lined else ""}{shape}</svg>'


def thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """A curve of at most MAX_POINTS points: empty cells left out, then means over equal windows."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    window = -(-len(known) // MAX_POINTS) or 1
    pieces = [known[k : k + window] for k in range(0, len(known), window)]
    return (
        [sum(a for a, _ in piece) / len(piece) for piece in pieces],
        [sum(b for _, b in piece) / len(piece) for piece in pieces],
    )


def standalone(svg: str) -> str:
    """A figure of the page as a file of its own, with the page's colours for light and for dark surroundings."""
    css = resources.files("cl_core.report").joinpath("style.css").read_text(encoding="utf-8")
    rules = re.findall(
        r"^:root \{.*?\n\}|^@media \(prefers-color-scheme: dark\) \{.*?\n\}", css, re.DOTALL | re.MULTILINE
    )
    rules.append("text { font-family: var(--sans); }")
    rules.append("svg .halo text { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }")
    rules.append("svg { background: var(--page); }")
    head, _, body = svg.partition(">")
    namespace = 'xmlns="http://www.w3.org/2000/svg"'
    return f"{head} {namespace}><style>\n{chr(10).join(rules)}\n</style>{body}\n"


def new_panel(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> tuple[Figure, Axes]:
    """An empty panel; width and height in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), layout=layout)
    return figure, figure.subplots()


def _draw(axes: Axes, line: Line) -> None:
    y = [float("nan") if value is None else value for value in line.y]
    if line.yardstick:
        marker = YARDSTICK_MARKERS.get(line.yardstick, "D")
        hollow: dict[str, Any] = {"markerfacecolor": SURFACE, "markeredgecolor": MUTED}
        axes.plot(line.x, y, marker, color=MUTED, linewidth=1.25, linestyle=(0, (4, 3)), **hollow)
        return
    colour, marker = SERIES[line.series % len(SERIES)], MARKERS[line.series % len(MARKERS)]
    if line.low:
        axes.vlines(line.x, line.low, line.high, colors=colour, linewidth=1.5, alpha=0.55)
    lonely = len(y) == 1
    look: dict[str, Any] = {"marker": marker, "markeredgecolor": SURFACE} if line.markers or lonely else {}
    if line.hollow:
        look |= {"markeredgecolor": colour, "markerfacecolor": SURFACE, "linestyle": (0, (1, 1.5))}
    axes.plot(line.x, y, color=colour, **look)


def _draw_level(axes: Axes, level: Level) -> None:
    axes.axhline(level.value, color=MUTED, linewidth=1.25, linestyle=(0, (4, 3)))
    axes.annotate(
        level.label,
        (1, level.value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=10,
        color=MUTED,
        gid="halo",
    )


def _draw_bar(axes: Axes, row: float, bar: Bar) -> None:
    colour, marker = SERIES[bar.series % len(SERIES)], MARKERS[bar.series % len(MARKERS)]
    for name, value in bar.yardsticks.items():
        shape = YARDSTICK_MARKERS.get(name, "D")
        axes.plot([value], [row], shape, markersize=6, markerfacecolor=SURFACE, markeredgecolor=MUTED)
    axes.hlines(row, bar.low, bar.high, colors=colour, linewidth=2)
    axes.plot([bar.value], [row], marker, color=colour, markersize=8, markeredgecolor=SURFACE)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 10), "textcoords": "offset points"}
    axes.annotate(bar.label, (0, row), gid="halo", **place)


def dress(axes: Axes, which: str, axis: Axis) -> None:
    """Give one axis ("x" or "y") its label, limits and ticks."""
    axes.set(**{f"{which}label": axis.label})
    target = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        axes.set(**{f"{which}scale": "log"})
        target.set_minor_locator(NullLocator())
    if axis.limits:
        axes.set(**{f"{which}lim": axis.limits})
    if axis.ticks is not None:
        target.set_ticks(list(axis.ticks), labels=list(axis.ticks.values()))
    elif not axis.log:
        target.set_major_locator(MaxNLocator(5 if which == "y" else 4))
    if axis.percent:
        target.set_major_formatter(PercentFormatter(xmax=1, symbol=None))
    if axis.whole:
        target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def finished(figure: Figure, name: str, alt: str) -> str:
    """The panel as an element of a page. name: unique on the page. alt: its description."""
    buffer = io.StringIO()
    with style.context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, so a glyph that matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue(), name, alt)


def _inlined(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page: no prolog, no style of its own, ids that are unique, the page's colours."""
    view_box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for block in (r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        body = re.sub(block, "", body, flags=re.DOTALL)
    body = re.sub(r"""font-family: [^;"]*;?|font: ([0-9.]+px) [^;"]*;?""", _font_size, body)
    body = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match.group(1)}{name}-", body)
    body = body.replace(f'id="{name}-halo"', 'class="halo"').replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", " ", body)
    return (
        f'<svg class="plot" role="img" aria-label="{html.escape(alt)}" {view_box and view_box.group()}>{body.strip()}'
    )


def _font_size(match: re.Match[str]) -> str:
    return f"font-size: {match.group(1)};" if match.group(1) else ""
