"""Rotation: tell by how many quarter turns an image was rotated (Gidaris et al. 2018, arXiv:1803.07728, "RotNet").

Quarter turns move pixels and interpolate none, so that they leave no trace to answer from. The chain of augmentations
comes before the rotation: bars that a padded crop leaves then fall on all four sides alike. Where images have no "up"
(from above, through a microscope) the question has no answer, and accuracy stays at chance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.measures.logistic import linear_accuracy
from cl_core.types import Augmentation, Diagnosis, Finding, Method, Panel, Sample, StepOutput, Views
from plugins.methods.detectors import SOLVED, UNSOLVED, along_borders, beyond, found, gathered, mean_figures
from plugins.methods.panels import SHOWN, contact_sheet, framed, judging

TURNS = 4
SINGLE_COLOUR = 0.004  # deviation along a border, one level of 8-bit pixels
LEAK = 0.1  # of the turns beyond chance: more than bars may give away


class Rotation(Method):
    """RotNet (Gidaris et al. 2018, arXiv:1803.07728): classify the quarter turns of an image, all four in each step.

    encoder: images (4N, C, H, W) -> (4N, out_dim); a step costs four passes per image. augment: the chain before the
    rotation; the paper crops after padding by 4 px, and flips.

    The classifier is linear on the pooled features, so that what solves the task lies in the encoder. The paper's best
    features come from the second of four blocks: look at the probes of early stages. Raises ConfigError where the chain
    gives images that are not square.
    """

    sample_wise = True
    year = 2018
    family = "pretext"

    def __init__(self, encoder: nn.Module, augment: Augmentation) -> None:
        super().__init__()
        self.encoder = encoder
        self.augment = augment
        self.classifier = nn.Linear(encoder.out_dim, TURNS)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> each augmented once and shown in four rotations, (N, 4, C, S, S); 0 turns first."""
        augmented = self.augment(images, rng.child(0))
        height, width = augmented.shape[-2:]
        if height != width:
            raise ConfigError(
                f"method rotation needs square images, since a quarter turn swaps height and width, but its chain "
                f"gives {height}x{width} px; set data.size, or end the chain with a crop to a square `size`"
            )
        return Views(images=(rotations(augmented),))

    def forward(self, views: Views) -> StepOutput:
        """Cross-entropy of the turns. Nothing to collapse: a constant encoder stays at log(4)."""
        rotated = views.images[0]  # (N, 4, C, S, S)
        logits = self.classifier(self.encoder(rotated.flatten(0, 1))).float()
        turns = torch.arange(TURNS, device=logits.device).repeat(len(rotated))
        accuracy = (logits.argmax(dim=1) == turns).float().mean()
        return StepOutput(loss=F.cross_entropy(logits, turns), metrics={"accuracy": accuracy})

    def trivial(self) -> dict[str, float]:
        """Of equal scores for all rotations: log(4), and chance."""
        return {"loss": math.log(TURNS), "accuracy": 1 / TURNS}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """A few images: as they are, turned, and turned back by what the network answers."""
        upright = images[:SHOWN]
        rows = torch.arange(len(upright), device=images.device)
        turns = rng.integers(0, TURNS)[: len(upright)].to(images.device)
        shown = rotations(upright)[rows, turns]
        with judging(self):
            guesses = self.classifier(self.encoder(shown)).argmax(dim=1)
        undone = rotations(shown)[rows, -guesses % TURNS]
        right = guesses == turns
        caption = (
            f"Each row: an image, what the network was shown, and that turned back by its answer. "
            f"{int(right.sum())} of {len(rows)} are right (green frame); chance is 1 in {TURNS}."
        )
        sheet = contact_sheet([framed(upright), framed(shown), framed(undone, right)])
        return [Panel(title="Rotations", caption=caption, image=sheet)]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether turns are told at all, and not by bars that a crop leaves."""
        return {
            "bars": Diagnosis(
                question="Are turns told, and not by bars along a border?",
                find=lambda fit, held_out: rotation_bars(self, fit, held_out),
            )
        }


def rotation_bars(method: Rotation, fit: Sample, held_out: Sample) -> Finding:
    """Linear classifiers of the turn from which borders are of a single colour, and from all colours along them.

    Bars that a crop leaves on one side are of a single colour. Colours alone do better than chance where skies are
    above, which is no fault of the views.
    """

    def look(part: Sample) -> Tensor:
        turned = method.make_views(part.images, part.rng).images[0]  # (N, 4, C, S, S)
        deviations = along_borders(turned, torch.std)
        flat = deviations.unflatten(2, (4, -1)).amax(dim=3) < SINGLE_COLOUR
        return torch.cat([flat.float(), along_borders(turned, torch.mean), deviations], dim=2)

    def seen(sample: Sample) -> tuple[Tensor, Tensor]:
        borders = gathered(sample, look)
        return borders.flatten(0, 1), torch.arange(TURNS).repeat(len(borders))

    (borders, turns), (others, their_turns) = seen(fit), seen(held_out)
    bars = linear_accuracy(borders[:, :4], turns, others[:, :4], their_turns)
    colours = linear_accuracy(borders[:, 4:], turns, others[:, 4:], their_turns)
    network, chance = mean_figures(method, held_out)["accuracy"], 1 / TURNS
    solved = beyond(network, chance)
    return found(
        solved < SOLVED or beyond(bars, chance) > LEAK,
        warning=UNSOLVED if solved < SOLVED else "borders of a single colour give turns away; pad or crop otherwise",
        fine="no border of a single colour gives turns away",
        figures={"network": network, "single-colour borders": bars},
        against={"chance": chance, "border colours": colours},
    )


def rotations(images: Tensor) -> Tensor:
    """Squares turned counter-clockwise by 0, 90, 180 and 270 degrees: (N, C, S, S) -> (N, 4, C, S, S), exact copies."""
    transposed = images.transpose(-2, -1)
    return torch.stack([images, transposed.flip(-2), images.flip(-2, -1), transposed.flip(-1)], dim=1)
