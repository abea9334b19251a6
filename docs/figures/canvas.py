"""What all figures of the story share: photographs, colours, strips of pictures with arrows between, and saving.

The photographs ship with scikit-learn (china.jpg and flower.jpg, Creative Commons Attribution 2.0), so that figures can
be made anew without a network. A figure is an array (H, W, 3) of uint8; nothing here depends on the clock or on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from cl_core.data.files import write_bytes
from cl_core.data.sampling import SampleRng

INK, FAINT, BLUE, ORANGE, GREEN, RED = "#24292f", "#8c959f", "#0969da", "#e16f24", "#2da44e", "#cf222e"
DPI = 100
SIDE = 96  # pixels of a photograph; shown twice as large
PICTURE = 2 * SIDE / DPI  # inches
COLOURS = 256  # of the palette of a saved figure, which keeps files small

_CROPS = {"pagoda": (0, 28, 15), "flower": (1, 30, 116), "lake": (0, 43, 256)}  # image, top, left
_CROP = 4 * SIDE
_GAP, _MARGIN, _HEAD = 0.42, 0.08, 0.3  # inches

Draw = Callable[[Axes], None]


def photographs(*names: str) -> Tensor:
    """Squares cut from the photographs, (N, 3, 96, 96) in [0, 1]; names: pagoda, flower, lake."""
    sources = load_sample_images().images
    cut = [sources[image][top : top + _CROP, left : left + _CROP] for image, top, left in map(_CROPS.get, names)]
    blocks = np.stack(cut).reshape(len(cut), SIDE, 4, SIDE, 4, 3).mean(axis=(2, 4)) / 255
    return torch.from_numpy(blocks).permute(0, 3, 1, 2).float()


def draws(count: int = 1, *, seed: int = 0) -> SampleRng:
    """Random numbers for a batch of so many images."""
    return SampleRng(seed, 0, torch.arange(count))


def pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1], C 1 or 3 -> (H, W, 3), clipped."""
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def visible(standardised: Tensor) -> Tensor:
    """Values of mean 0 and deviation 1 moved into [0, 1], to be looked at."""
    return standardised * 0.2 + 0.5


def picture(image: Tensor, note: str = "", frame: str = "") -> Draw:
    """Draws one image (C, H, W), a note below and a coloured frame."""

    def draw(axes: Axes) -> None:
        axes.imshow(pixels(image), interpolation="nearest")
        if frame:
            outline(axes, (0, 0), image.shape[-1], frame)
        caption(axes, note)

    return draw


def outline(axes: Axes, corner: tuple[float, float], side: float, colour: str) -> None:
    """A frame around the square of pixels whose top left one is `corner` (y, x)."""
    y, x = corner
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor=colour, linewidth=2, clip_on=False))


def caption(axes: Axes, text: str) -> None:
    """A line of text below."""
    axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=INK)


def blank(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_axis_off()


def canvas(width: float, height: float) -> Figure:
    """An empty white figure; inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches, without ticks."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
    blank(axes)
    return axes


def write(figure: Figure, left: float, bottom: float, text: str, *, size: float = 10, colour: str = INK) -> None:
    """Centred text at a place given in inches."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, bottom / high, text, ha="center", va="center", fontsize=size, color=colour)


def arrow(
    figure: Figure,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    colour: str = INK,
    dashed: bool = False,
) -> None:
    """An arrow between two places given in inches."""
    size = np.array(figure.get_size_inches())
    figure.add_artist(
        FancyArrowPatch(
            tuple(start / size),
            tuple(end / size),
            transform=figure.transFigure,
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.6,
            linestyle="--" if dashed else "-",
            color=colour,
            shrinkA=0,
            shrinkB=0,
        )
    )


def strip(panels: Sequence[tuple[str, Draw]], *, between: Sequence[str] = (), foot: float = 0.06) -> np.ndarray:
    """Panels of one size side by side: (heading, what is drawn), with "->" or a text between them.

    between: one per gap; arrows where left out. foot: inches below, for notes.
    """
    width = 2 * _MARGIN + len(panels) * PICTURE + (len(panels) - 1) * _GAP
    figure = canvas(width, PICTURE + _HEAD + foot)
    for number, (heading, draw) in enumerate(panels):
        left = _MARGIN + number * (PICTURE + _GAP)
        draw(place(figure, left, foot, PICTURE, PICTURE))
        write(figure, left + PICTURE / 2, foot + PICTURE + _HEAD / 2, heading)
        if number:
            _join(figure, left, foot + PICTURE / 2, between[number - 1] if between else "->")
    return rendered(figure)


def _join(figure: Figure, right: float, middle: float, sign: str) -> None:
    if sign == "->":
        arrow(figure, (right - _GAP + 0.06, middle), (right - 0.06, middle), colour=FAINT)
    else:
        write(figure, right - _GAP / 2, middle, sign, size=13)


def rendered(figure: Figure) -> np.ndarray:
    """The pixels of a figure, (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(image: np.ndarray, path: Path) -> None:
    """Write a PNG of few colours; the same bytes for the same pixels."""
    stream = BytesIO()
    Image.fromarray(image).quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE).save(
        stream, format="PNG", optimize=True
    )
    write_bytes(path, stream.getvalue())
