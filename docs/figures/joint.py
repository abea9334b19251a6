"""Figures of the principle and of the methods that follow it: circles of embeddings, views, and BYOL's two networks."""

from __future__ import annotations

import math

import numpy as np
import torch
from canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    arrow,
    canvas,
    draws,
    photographs,
    picture,
    place,
    rendered,
    write,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from cl_core.assembly import build_chain
from cl_core.data.views import Chain
from cl_core.registry import load_registry
from plugins.augmentations import byol as byol_recipe
from plugins.augmentations import simclr as simclr_recipe
from plugins.encoders import resnet8
from plugins.losses import Cosine, InfoNCE
from plugins.methods import BYOL, SimCLR
from plugins.methods.info_nce import information_bound

TEMPERATURE = 0.5
_ANCHOR, _POSITIVE = 90.0, 58.0  # degrees on the circle
_NEGATIVES = (128.0, 172.0, 214.0, 262.0, 318.0, 12.0)
_ONLINE, _TARGET = 2.15, 0.85  # heights of BYOL's networks, inches
_CORRELATION = 0.9  # of each pair of coordinates of the Gaussian toy


def on_circle(degrees: Tensor) -> Tensor:
    """Unit vectors (N, 2)."""
    radians = torch.deg2rad(degrees)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def principle() -> np.ndarray:
    """An anchor, its positive and negatives on the circle, and the softmax of their scores."""
    candidates = torch.tensor([_POSITIVE, *_NEGATIVES])
    scores = Cosine(TEMPERATURE)(on_circle(torch.tensor([_ANCHOR])), on_circle(candidates))
    shares = scores.softmax(dim=1)[0].numpy()
    figure = canvas(8.4, 3.3)
    _circle(place(figure, 0.1, 0.1, 3.1, 3.1), on_circle(candidates).numpy(), shares)
    formula = r"$\mathcal{L}=-\log\frac{e^{s(x,\,x^{+})}}{e^{s(x,\,x^{+})}+\sum_{j=1}^{N-1}e^{s(x,\,x^{-}_{j})}}$"
    write(figure, 5.8, 2.8, formula, size=16)
    axes = place(figure, 3.9, 0.45, 4.2, 1.6)
    colours = [GREEN, *[RED] * len(_NEGATIVES)]
    axes.bar(range(len(shares)), shares, color=colours, width=0.62)
    names = ["$x^{+}$", *(f"$x^{{-}}_{number}$" for number in range(1, len(_NEGATIVES) + 1))]
    for number, (share, name) in enumerate(zip(shares.tolist(), names, strict=True)):
        axes.text(number, share + 0.012, f"{share:.2f}", ha="center", fontsize=9, color=INK)
        axes.text(number, -0.03, name, ha="center", va="top", fontsize=11, color=INK)
    axes.set_ylim(0, float(shares.max()) * 1.15)
    loss = f"$-\\log {shares[0]:.2f} = {-math.log(shares[0]):.2f}$"
    text = f"softmax of $s = \\cos / {TEMPERATURE}$;  the loss is {loss}"
    write(figure, 6.0, 2.2, text, size=10)
    return rendered(figure)


def _circle(axes: Axes, points: np.ndarray, shares: np.ndarray) -> None:
    axes.set_xlim(-1.35, 1.35)
    axes.set_ylim(-1.35, 1.35)
    angles = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angles), np.sin(angles), color="#d0d7de", linewidth=1.5, zorder=0)
    anchor = _direction(_ANCHOR)
    names = ["$x^{+}$", *(f"$x^{{-}}_{number}$" for number in range(1, len(points)))]
    for number, (point, share, name) in enumerate(zip(points, shares.tolist(), names, strict=True)):
        colour = RED if number else GREEN
        axes.plot(*np.stack([anchor, point]).T, color=colour, linewidth=0.6 + 9 * share, alpha=0.35, zorder=1)
        axes.scatter(*point, s=70, color=colour, zorder=2)
        axes.text(*(point * 1.2), name, ha="center", va="center", fontsize=12, color=colour)
    axes.scatter(*anchor, s=110, color=BLUE, zorder=3)
    axes.text(*(anchor * 1.2), "$x$", ha="center", va="center", fontsize=13, color=BLUE)


def log_density_ratio(anchors: Tensor, candidates: Tensor) -> Tensor:
    """log p(b | a) / p(b) of coordinates that correlate pairwise, the best score there is; (N, D), (M, D) -> (N, M)."""
    spread = 1 - _CORRELATION**2
    residual = candidates[None] - _CORRELATION * anchors[:, None]
    each = candidates.square()[None] / 2 - residual.square() / (2 * spread) - math.log(spread) / 2
    return each.sum(dim=2)


def gaussian_bound(dimensions: int, candidates: int, repeats: int) -> float:
    """The bound that InfoNCE with the best score gives, averaged over batches of so many pairs, in nats."""
    loss = InfoNCE(log_density_ratio)
    bounds = []
    for number in range(repeats):
        noise = draws(candidates, seed=number).normal(shape=(2, dimensions)).double()
        first = noise[:, 0]
        second = _CORRELATION * first + math.sqrt(1 - _CORRELATION**2) * noise[:, 1]
        bounds.append(information_bound(loss(first, second), candidates))
    return float(torch.stack(bounds).mean())


def bound() -> np.ndarray:
    """log N - L over the true mutual information of Gaussians, for several N."""
    per_dimension = -math.log(1 - _CORRELATION**2) / 2
    information = [per_dimension * dimensions for dimensions in range(1, 11)]
    figure = canvas(6.4, 3.5)
    axes = figure.add_axes((0.1, 0.15, 0.86, 0.8))
    axes.plot([0, 8.6], [0, 8.6], color=FAINT, linestyle="--", linewidth=1.2)
    axes.text(6.15, 6.4, "all there is", color=FAINT, fontsize=9.5, ha="right")
    for candidates, colour in ((4, RED), (16, ORANGE), (64, GREEN), (256, BLUE)):
        found = [gaussian_bound(dimensions, candidates, 2048 // candidates) for dimensions in range(1, 11)]
        axes.plot(information, found, color=colour, marker="o", markersize=4, linewidth=1.8)
        axes.hlines(math.log(candidates), 0, 9, color=colour, linewidth=0.8, linestyle=":")
        axes.text(9.1, math.log(candidates), f"N = {candidates}", color=colour, fontsize=9.5, va="center")
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 7)
    axes.set_xlabel("true mutual information of the two views, nats", fontsize=9.5)
    axes.set_ylabel(r"$\log N - \mathcal{L}$, nats", fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    return rendered(figure)


def simclr() -> np.ndarray:
    """Two views of each of three photographs: siblings attract, everything else repels."""
    images = photographs("pagoda", "flower", "lake")
    method = SimCLR(resnet8(width=4), _chain("augment", simclr_recipe(min_scale=0.2)), InfoNCE(Cosine()))
    views = torch.stack(method.make_views(images, draws(3, seed=6)).images, dim=1)  # (3, 2, 3, S, S)
    figure = canvas(8.0, 4.4)
    centre, radius, size = np.array([5.75, 2.2]), 1.62, 0.96
    corners = [centre + radius * _direction(120 - 60 * number) for number in range(6)]  # siblings side by side
    for number, image in enumerate(images):
        picture(image)(place(figure, 0.15, 3.05 - 1.42 * number, 1.2, 1.2))
    for view, (x, y) in zip(views.flatten(0, 1), corners, strict=True):
        picture(view)(place(figure, x - size / 2, y - size / 2, size, size))
    _forces(figure, corners)
    write(figure, 2.4, 2.65, "two views\nof each image,\ndrawn at random", size=10)
    arrow(figure, (1.5, 2.2), (3.3, 2.2), colour=FAINT)
    write(figure, centre[0], centre[1] + 0.16, "siblings attract,", size=10, colour=GREEN)
    write(figure, centre[0], centre[1] - 0.1, "all others repel", size=10, colour=RED)
    return rendered(figure)


def _forces(figure: Figure, corners: list[np.ndarray]) -> None:
    for number, corner in enumerate(corners):
        other = corners[(number + 1) % len(corners)]
        middle, along = (corner + other) / 2, (other - corner) / np.linalg.norm(other - corner)
        near, far = 0.03 * along, 0.27 * along
        siblings = number % 2 == 0
        for side in (-1, 1):
            start, end = (
                (middle + side * far, middle + side * near) if siblings else (middle + side * near, middle + side * far)
            )
            arrow(figure, tuple(start), tuple(end), colour=GREEN if siblings else RED)


def temperature() -> np.ndarray:
    """How the push is shared among negatives of different similarity, by temperature."""
    cosines = torch.linspace(-1, 1, 81)
    figure = canvas(6.4, 3.0)
    axes = figure.add_axes((0.1, 0.17, 0.86, 0.77))
    anchor, others = torch.tensor([[1.0, 0.0]]), torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    for value, colour in ((0.1, RED), (0.2, ORANGE), (0.5, GREEN), (1.0, BLUE)):
        share = Cosine(value)(anchor, others)[0].softmax(dim=0).numpy()
        axes.plot(cosines.numpy(), share / share.max(), color=colour, linewidth=1.9, label=f"$\\tau$ = {value:g}")
    axes.set_xlabel("cosine of a negative with the anchor", fontsize=9.5)
    axes.set_ylabel("its push, over that of the nearest", fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9.5)
    return rendered(figure)


def byol() -> np.ndarray:
    """Both networks, what flows between them, and where the gradient stops."""
    recipe = byol_recipe(min_scale=0.3)
    chains = [_chain(side, recipe) for side in ("augment_a", "augment_b")]
    image = photographs("pagoda")
    views = BYOL(resnet8(width=4), *chains).make_views(image, draws(seed=5)).images
    figure = canvas(8.6, 3.0)
    picture(image[0])(place(figure, 0.1, 1.0, 0.98, 0.98))
    for view, middle in zip(views, (_ONLINE, _TARGET), strict=True):
        picture(view[0])(place(figure, 1.75, middle - 0.48, 0.96, 0.96))
        arrow(figure, (1.12, 1.49), (1.7, middle), colour=FAINT)
    _network(figure, _ONLINE, ("encoder", "projector", "predictor"), "$p$", BLUE)
    _network(figure, _TARGET, ("encoder", "projector"), "$z'$", FAINT)
    write(figure, 4.3, _ONLINE + 0.46, r"online network, weights $\theta$", colour=BLUE)
    write(figure, 4.3, _TARGET - 0.46, r"target network, weights $\xi$", colour=FAINT)
    arrow(figure, (3.63, 1.85), (3.63, 1.15), colour=ORANGE, dashed=True)
    write(figure, 5.3, 1.5, r"moving average:  $\xi \leftarrow \tau\,\xi + (1-\tau)\,\theta$", size=10.5, colour=ORANGE)
    write(figure, 6.35, _TARGET, "//", size=15, colour=RED)
    write(figure, 6.35, _TARGET - 0.23, "no gradient", size=9.5, colour=RED)
    arrow(figure, (7.45, 1.75), (7.45, 1.98))
    arrow(figure, (7.45, 1.25), (7.45, 1.02))
    write(figure, 7.72, 1.5, r"$2-2\cos(p,z')$", size=12)
    return rendered(figure)


def _network(figure: Figure, middle: float, boxes: tuple[str, ...], output: str, colour: str) -> None:
    left = 2.78
    for box in boxes:
        arrow(figure, (left, middle), (left + 0.3, middle), colour=colour)
        _box(figure, left + 0.32, middle, box, colour)
        left += 1.38
    arrow(figure, (left, middle), (7.25, middle), colour=colour)
    write(figure, 7.45, middle, output, size=14, colour=colour)


def _box(figure: Figure, left: float, middle: float, text: str, colour: str) -> None:
    wide, high = figure.get_size_inches()
    box = FancyBboxPatch(
        (left / wide, (middle - 0.24) / high),
        1.02 / wide,
        0.48 / high,
        boxstyle="round,pad=0,rounding_size=0.01",
        transform=figure.transFigure,
        facecolor="white",
        edgecolor=colour,
        linewidth=1.6,
    )
    figure.add_artist(box)
    write(figure, left + 0.51, middle, text, size=10, colour=INK)


def _direction(degrees: float) -> np.ndarray:
    return on_circle(torch.tensor([degrees]))[0].numpy()


def _chain(argument: str, recipe: dict[str, list[dict[str, object]]]) -> Chain:
    options = [dict(spec) for spec in recipe[argument]]
    return build_chain(load_registry(), [{"name": spec.pop("name"), "options": spec} for spec in options])


__all__ = ["bound", "byol", "principle", "simclr", "temperature"]
