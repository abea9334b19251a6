"""Questions to the methods that predict colour: do they dare to use it, and is it kept from their input?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_core.types import Finding, Method, Sample
from plugins.methods.color import lab_to_rgb, rgb_to_lab
from plugins.methods.detectors import found, gathered

GREY = 0.3  # chroma of predictions over that of images, below which a method paints in grey
COLOURLESS = 0.1  # of the input's deviation: what interpolating in RGB may move lightness by

Colours = Callable[[Sample], tuple[Tensor, Tensor, Tensor, Tensor]]


def chroma(colours: Colours, held_out: Sample) -> Finding:
    """Chroma of the predictions over that of the images, and how many of the colours are ever found.

    colours: a part -> predicted and true (a, b), (N, 2, h, w) each, and the nearest bin of either, (N, h, w).
    """
    size = torch.zeros(2, dtype=torch.float64)
    bins = []
    for part in held_out.parts():
        predicted, true, guess, answer = colours(part)
        size += torch.stack([ab.norm(dim=1).double().sum().cpu() for ab in (predicted, true)])
        bins.append(torch.stack([guess.flatten(), answer.flatten()]).cpu())
    guess, answer = torch.cat(bins, dim=1)
    occurring = answer.unique()
    recall = torch.stack([(guess[answer == colour] == colour).double().mean() for colour in occurring])
    ratio = size[0] / size[1].clamp(min=1e-6)
    return found(
        bool(ratio < GREY),
        warning="it paints in grey: predictions have lost their chroma; lower method.rebalance",
        fine="predictions are coloured",
        figures={"chroma ratio": ratio, "mean recall": recall.mean(), "colours found": (recall > 0).double().mean()},
        against={"grey below": GREY, "one answer": 1 / len(occurring)},
    )


def colour_in_input(method: Method, held_out: Sample) -> Finding:
    """How much the first view, which should be lightness, changes where images lose their colours.

    Each image is compared with the grey one of equal lightness, which always lies inside sRGB, unlike an image with the
    colours of another.
    """
    lab = rgb_to_lab(held_out.images)
    grey = Sample(
        images=lab_to_rgb(torch.cat([lab[:, :1], 0 * lab[:, 1:]], dim=1)), labels=held_out.labels, rng=held_out.rng
    )
    seen, without = (
        gathered(sample, lambda part: method.make_views(part.images, part.rng).images[0]) for sample in (held_out, grey)
    )
    change = (seen - without).square().mean().sqrt() / seen.std().clamp(min=1e-6)
    return found(
        bool(change > COLOURLESS),
        warning="the input carries the colours that are to be predicted",
        fine="the input carries no colour",
        figures={"change of input": change},
        against={"leak above": COLOURLESS},
    )
