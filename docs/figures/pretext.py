"""Figures of the pretext tasks: what the network gets and must answer, made by the methods' own `make_views`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PICTURE,
    SIDE,
    arrow,
    canvas,
    caption,
    draws,
    outline,
    photographs,
    picture,
    place,
    rendered,
    strip,
    visible,
    write,
)
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from cl_core.data.views import Chain
from plugins.encoders import resnet8
from plugins.methods import (
    Colorization,
    ContextEncoder,
    ContextPrediction,
    Counting,
    DenoisingAutoencoder,
    Jigsaw,
    Rotation,
    SplitBrain,
)
from plugins.methods.color import lab_to_rgb
from plugins.methods.context_prediction import STEPS, PatchGeometry
from plugins.methods.tiles import mosaic

AS_IT_IS = Chain([])  # no augmentation, so that pictures can be compared
GETS, ANSWERS = "the network gets", "it must answer"
DAMAGE = {"masking": f"{GETS}: masking", "gaussian": "Gaussian noise", "salt_and_pepper": "salt and pepper"}
_MIDDLE_LIGHTNESS = 62.0  # at which colours are shown without their own


def small_encoder(**overrides: float) -> torch.nn.Module:
    """Views do not depend on it."""
    return resnet8(width=4, **overrides)


def denoising_autoencoder() -> np.ndarray:
    """The same photograph under three kinds of damage, and the clean one."""
    image, panels = photographs("pagoda"), []
    for corruption, title in DAMAGE.items():
        method = DenoisingAutoencoder(small_encoder(), AS_IT_IS, SIDE, mode="joint", corruption=corruption)
        damaged, clean = method.make_views(image, draws()).images
        panels.append((title, picture(damaged[0])))
    return strip([*panels, (ANSWERS, picture(clean[0]))], between=["or", "or", "->"])


def context_prediction() -> np.ndarray:
    """Two patches of a photograph, as prepared, and the compass of eight sides."""
    image, seed = photographs("pagoda"), 3
    method = ContextPrediction(small_encoder(), mode="pair", min_crop=1)
    views = method.make_views(image, draws(seed=seed))
    geometry = PatchGeometry.of(image, "pair", None, None, None)
    corners, _ = geometry.pair(draws(seed=seed).child(0))  # where the method cut, by the same draws
    first, second = visible(views.images[0][0])

    def marked(axes: Axes) -> None:
        picture(image[0])(axes)
        for corner, colour in zip(corners[0].tolist(), (BLUE, ORANGE), strict=True):
            outline(axes, corner, geometry.patch, colour)

    def pair(axes: Axes) -> None:
        for number, (patch, colour) in enumerate(((first, BLUE), (second, ORANGE))):
            inset = axes.inset_axes((0.02 + 0.53 * number, 0.28, 0.44, 0.44))
            picture(patch, frame=colour)(inset)
            inset.set_axis_off()

    compass = partial(_compass, right=int(views.targets[0]))
    return strip([("the image", marked), (GETS, pair), (f"{ANSWERS}: which side?", compass)])


def _compass(axes: Axes, right: int) -> None:
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(1.6, -1.6)
    axes.add_patch(Rectangle((-0.44, -0.44), 0.88, 0.88, color=BLUE))
    for side, (down, along) in enumerate(STEPS):
        ground, ink = (ORANGE, "white") if side == right else ("#eaeef2", INK)
        axes.add_patch(Rectangle((along - 0.44, down - 0.44), 0.88, 0.88, color=ground))
        axes.text(along, down, str(side), ha="center", va="center", fontsize=12, color=ink)


def jigsaw() -> np.ndarray:
    """A photograph, its tiles shuffled and standardised, and the same tiles put back in the order that is asked for."""
    image = photographs("pagoda")
    method = Jigsaw(small_encoder(), min_crop=1, gray_prob=0)
    views = method.make_views(image, draws(seed=1))
    tiles, label = visible(views.images[0]), int(views.targets[0])
    order = method.permutations[label]
    back = tiles[:, order.argsort()]
    shuffled, ordered = (_with_gaps(shown) for shown in (tiles, back))
    text = f"row {label} of {len(method.permutations)}:  " + " ".join(str(int(cell)) for cell in order)
    answer = picture(ordered, text)
    return strip([("the image", picture(image[0])), (GETS, picture(shuffled)), (ANSWERS, answer)], foot=0.3)


def _with_gaps(tiles: Tensor) -> Tensor:
    """Nine tiles (1, 9, 3, t, t) in a white square as large as a photograph."""
    gap = SIDE // 3 - tiles.shape[-1]
    half = gap // 2
    return F.pad(mosaic(tiles, gap=gap)[0], (half, -half, half, -half), value=1.0)


def context_encoder() -> np.ndarray:
    """A photograph with random regions cut out, and what was there."""
    method = ContextEncoder(small_encoder(), AS_IT_IS, SIDE)
    views = method.make_views(photographs("flower"), draws(seed=2))
    (holed,), (whole,) = views.images
    answer = torch.where(views.extras["mask"][0] > 0, whole, torch.ones_like(whole))
    return strip([("the image", picture(whole)), (GETS, picture(holed)), (ANSWERS, picture(answer))])


def colorization() -> np.ndarray:
    """A photograph, its lightness, and the plane of 77 quantised colours with the target of one pixel."""
    image = photographs("flower")
    method = Colorization(small_encoder, AS_IT_IS, stride=1)
    views = method.make_views(image, draws())
    spot = (58, 60)
    soft = method.bins.encode(views.extras["ab"])[0, :, spot[0], spot[1]]

    def asked(axes: Axes) -> None:
        picture(views.images[0][0] + 0.5)(axes)
        outline(axes, (spot[0] - 2, spot[1] - 2), 5, ORANGE)

    def plane(axes: Axes) -> None:
        _bins(axes, method.bins.centers, soft)
        caption(axes, f"which of {len(method.bins)} colours, per pixel")

    return strip([("the image", picture(image[0])), (f"{GETS}: lightness", asked), (ANSWERS, plane)], foot=0.3)


def _bins(axes: Axes, centers: Tensor, soft: Tensor) -> None:
    lab = torch.cat([torch.full((len(centers), 1), _MIDDLE_LIGHTNESS), centers], dim=1)
    colours = lab_to_rgb(lab[:, :, None, None])[:, :, 0, 0].numpy()
    axes.scatter(*centers.numpy().T, s=62, c=colours, marker="s", linewidths=0)
    shown, share = centers[soft > 0].numpy(), soft[soft > 0].numpy()
    axes.scatter(*shown.T, s=20 + 150 * share, facecolors="none", edgecolors=INK, linewidths=1.4)
    axes.set_aspect("equal")
    axes.set_xlim(-125, 125)
    axes.set_ylim(-125, 125)


def split_brain() -> np.ndarray:
    """A photograph, its lightness, and its colours without lightness: each half gets one and answers the other."""
    image = photographs("flower")
    method = SplitBrain(small_encoder, AS_IT_IS, stride=1)
    views = method.make_views(image, draws())
    lightness = views.images[0][0] + 0.5
    lab = views.extras["lab"].clone()
    lab[:, 0] = _MIDDLE_LIGHTNESS
    figure = canvas(3 * PICTURE + 2.1, PICTURE + 0.36)
    shown = (image[0], lightness, lab_to_rgb(lab)[0])
    lefts = (0.08, PICTURE + 0.5, 2 * PICTURE + 2.02)
    headings = ("the image", "lightness L", "colours a, b")
    for left, heading, content in zip(lefts, headings, shown, strict=True):
        picture(content)(place(figure, left, 0.06, PICTURE, PICTURE))
        write(figure, left + PICTURE / 2, PICTURE + 0.21, heading)
    near, far = lefts[1] + PICTURE + 0.08, lefts[2] - 0.08
    for height, text, colour, start, end in (
        (1.42, "half 1 predicts", BLUE, near, far),
        (0.62, "half 2 predicts", GREEN, far, near),
    ):
        arrow(figure, (start, height), (end, height), colour=colour)
        write(figure, (near + far) / 2, height + 0.15, text, size=9.5, colour=colour)
    return rendered(figure)


def counting() -> np.ndarray:
    """The halved photograph, its four tiles, and another photograph, as terms of an equation."""
    method = Counting(small_encoder(), AS_IT_IS, gray_prob=0, standardize=False)
    images = photographs("pagoda", "flower")
    halves, tiles = method.make_views(images, draws(2)).images
    side, gap, first = PICTURE / 2, 0.42, 1.7
    upper, lower = side + 0.3, 0.08
    figure = canvas(first + 5 * side + 4 * gap + 0.1, upper + side + 0.08)
    for bottom, text, half, sign in (
        (upper, "counts in the halved\nimage, $\\phi(Dx)$", halves[0], "$=$"),
        (lower, "and in another\nhalved one, $\\phi(Dy)$", halves[1], "$\\neq$"),
    ):
        write(figure, first / 2, bottom + side / 2, text)
        picture(half)(place(figure, first, bottom, side, side))
        write(figure, first + side + gap / 2, bottom + side / 2, sign, size=16)
    for number, tile in enumerate(tiles[0], start=1):
        left = first + number * (side + gap)
        picture(tile)(place(figure, left, upper, side, side))
        if number > 1:
            write(figure, left - gap / 2, upper + side / 2, "$+$", size=16)
    summed = "$+$".join(f"$\\phi(T_{number}x)$" for number in range(1, 5))
    write(figure, first + 3 * side + 2.5 * gap, lower + side / 2, summed, size=12)
    return rendered(figure)


def rotation() -> np.ndarray:
    """The four rotations of a photograph, each with its answer."""
    method = Rotation(small_encoder(), AS_IT_IS)
    (turned,) = method.make_views(photographs("pagoda"), draws()).images
    panels = []
    for turns, view in enumerate(turned[0]):
        heading = f"{90 * turns} degrees" if turns else f"{GETS}: 0 degrees"
        panels.append((heading, picture(view, str(turns) if turns else f"{ANSWERS}: 0")))
    return strip(panels, between=["", "", ""], foot=0.3)


__all__ = [
    "colorization",
    "context_encoder",
    "context_prediction",
    "counting",
    "denoising_autoencoder",
    "jigsaw",
    "rotation",
    "split_brain",
]
