"""Colorization: give a grey image its colours back (Zhang, Isola & Efros 2016, arXiv:1603.08511).

Colour is a matter of chance given lightness, so each pixel gets a distribution over quantised colours, not a mean,
which would be grey. Rare colours weigh more. The encoder never sees colour, and evaluation hands it lightness alone:
that handicap is part of the method's results. How colours are quantised is in `color.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.distributed import average, total
from cl_core.types import Augmentation, Diagnosis, Encoder, Method, Panel, Representation, Sample, StepOutput, Views
from plugins.methods.color import ColorBins, colored, lab_to_rgb, normalized, require_color, rgb_to_lab, strided
from plugins.methods.color_detectors import chroma, colour_in_input
from plugins.methods.panels import SHOWN, contact_sheet, judging
from plugins.methods.pixel_head import PixelHead, last_map

_PREPARED_AT_ONCE = 256


class Colorization(Method):
    """Colorization (Zhang et al. 2016, arXiv:1603.08511): predict the colours of a grey image.

    encoder_factory: makes the encoder, with one channel in: (N, 1, H, W) -> maps. augment: crop and flip; jitter of
    colours would change what is to be predicted.
    step: distance of neighbouring colour bins in Lab; 20 makes 77 bins, 10 makes 261. The paper uses 10 with
        313 bins, some of them outside sRGB; small images have fewer and noisier colours.
    neighbors: bins over which the target of a pixel is spread, with a Gaussian of step / 2; 5 in the paper.
    rebalance: weight of a pixel is 1 / ((1 - rebalance) prior + rebalance / Q) at its nearest bin, 1 on average; 1/2 in
        the paper, 1 switches it off. The prior comes from the training images in `prepare`.
    temperature: of the annealed mean that turns distributions into the colours of chroma_ratio and panels, not of
        training; 0.38 in the paper.
    stride: colours are predicted for every stride-th pixel; 4 in the paper at 176 px, 2 suits 32 px.
    head_dim: width of the decoder.

    Images without colour (|a| and |b| at most 5 at all of these pixels) count neither in the loss nor in the prior.

    Logs `excess`, the loss above its floor (soft targets have an entropy of their own); `accuracy`, the share of pixels
    whose likeliest bin is the nearest; `recall`, the same averaged over the bins that occur; and `chroma_ratio`, the
    mean chroma of prediction over truth: 1 is as vivid as the images, below 0.3 is the grey that this method fails by.
    Raises ConfigError for images that are not RGB, for a training sample without any colour, and for encoders whose
    last stage is not a map.
    """

    year = 2016
    family = "reconstruction"

    def __init__(
        self,
        encoder_factory: Callable[..., Encoder],
        augment: Augmentation,
        *,
        step: Annotated[float, Field(ge=5, le=40)] = 20.0,
        neighbors: Annotated[int, Field(ge=1, le=10)] = 5,
        rebalance: Annotated[float, Field(gt=0, le=1)] = 0.5,
        temperature: PositiveFloat = 0.38,
        stride: PositiveInt = 2,
        head_dim: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = encoder_factory(in_channels=1)
        self.augment = augment
        self.temperature, self.stride = temperature, stride
        self.bins = ColorBins(step=step, neighbors=neighbors, rebalance=rebalance)
        self.head = PixelHead(self.encoder.out_dim, head_dim, len(self.bins))

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, 3, H, W) -> lightness (N, 1, H, W) in [-0.5, 0.5], extra "ab" (N, 2, H / stride, W / stride)."""
        lab = rgb_to_lab(self.augment(images, rng.child(0)))
        return Views(
            images=(normalized(lab)[:, :1].contiguous(),), extras={"ab": strided(lab[:, 1:], self.stride).contiguous()}
        )

    def forward(self, views: Views) -> StepOutput:
        """Weighted cross-entropy with the soft targets, averaged over the pixels of images that have colour."""
        ab = views.extras["ab"]
        logits = self.logits(views.images[0], ab.shape[-2:])
        with torch.autocast(ab.device.type, enabled=False):
            return self._scored(logits.float(), ab)

    def logits(self, lightness: Tensor, size: Sequence[int]) -> Tensor:
        """One score per pixel and bin; lightness (N, 1, H, W) in [-0.5, 0.5] -> (N, Q, *size)."""
        return self.head(last_map(self.encoder, lightness), size)

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """Take the prior of colours from sample (M, 3, H, W). Raises ConfigError where no image has a colour."""
        parts = sample.split(_PREPARED_AT_ONCE)
        ab = torch.cat([strided(rgb_to_lab(part)[:, 1:], self.stride) for part in parts])
        require_color(ab)
        self.bins.observe(ab[colored(ab)])

    def representation(self) -> Representation:
        """The encoder on lightness; the decoder is left out."""
        return Representation(self.encoder, lightness, "lightness")

    def trivial(self) -> dict[str, float]:
        """Of the same answer for every pixel, on the training images: its best loss, and its best accuracy.

        Without rebalancing the loss is the entropy of the prior; before `prepare` all bins are alike, log Q and 1 / Q.
        """
        return self.bins.constant()

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """A few images: in grey, in the predicted colours, and as they are."""
        truth = images[:SHOWN]
        lab = rgb_to_lab(truth)
        ab = self._predicted(lab)
        grey, colourised = (lab_to_rgb(torch.cat([lab[:, :1], colours], dim=1)) for colours in (ab * 0, ab))
        caption = (
            f"Each row: the lightness that the network sees, the colours that it predicts (annealed mean at "
            f"temperature {self.temperature:g}), and the image itself. The mean chroma of the predictions is "
            f"{_chroma_ratio(ab, lab[:, 1:]):.0%} of that of the images."
        )
        return [Panel(title="Colourised images", caption=caption, image=contact_sheet([grey, colourised, truth]))]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether it dares to use colour, and has to."""
        return {
            "chroma": Diagnosis(
                question="Are the predictions as colourful as images?",
                find=lambda fit, held_out: chroma(self._compared, held_out),
            ),
            "leak": Diagnosis(
                question="Is the input free of the colours that are to be predicted?",
                find=lambda fit, held_out: colour_in_input(self, held_out),
            ),
        }

    def _compared(self, part: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicted and true (a, b), (N, 2, h, w), and the likeliest and the nearest bin, (N, h, w)."""
        views = self.make_views(part.images, part.rng)
        ab = views.extras["ab"]
        logits = self.logits(views.images[0], ab.shape[-2:]).float()
        return self.bins.decode(logits, self.temperature), ab, logits.argmax(dim=1), self.bins.encode(ab).argmax(dim=1)

    def _scored(self, logits: Tensor, ab: Tensor) -> StepOutput:
        soft = self.bins.encode(ab)
        counts = colored(ab)[:, None, None].expand_as(ab[:, 0]).float()  # (N, h, w): 1 where a pixel counts
        number = average(counts.sum()).clamp(min=1)  # a batch of grey images alone has a loss of 0
        worth = self.bins.worth(soft) * counts
        loss = (worth * F.cross_entropy(logits, soft, reduction="none")).sum() / number
        with torch.no_grad():
            floor = (worth * torch.special.entr(soft).sum(dim=1)).sum() / number
            metrics = {"excess": loss.detach() - floor, **_hits(logits, soft, counts)}
            seen = counts[:, None]
            metrics["chroma_ratio"] = _chroma_ratio(self.bins.decode(logits, self.temperature) * seen, ab * seen)
        return StepOutput(loss=loss, metrics=metrics)

    def _predicted(self, lab: Tensor) -> Tensor:
        """Predicted ab of whole images (N, 2, H, W), under evaluation statistics."""
        size = strided(lab, self.stride).shape[-2:]
        with judging(self):
            colours = self.bins.decode(self.logits(normalized(lab)[:, :1], size).float(), self.temperature)
        return F.interpolate(colours, size=lab.shape[-2:], mode="bilinear", align_corners=False)


def lightness(images: Tensor) -> Tensor:
    """What the encoder sees of RGB images: (N, 3, H, W) in [0, 1] -> (N, 1, H, W) in [-0.5, 0.5]."""
    return normalized(rgb_to_lab(images))[:, :1]


def _hits(logits: Tensor, soft: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Share of counted pixels whose likeliest bin is the nearest: of all, and averaged over the bins that occur."""
    bins = soft.argmax(dim=1).flatten()
    counts = counts.flatten()
    right = (logits.argmax(dim=1).flatten() == bins) * counts
    hits, occurrences = (total(counts.new_zeros(soft.shape[1]).index_add(0, bins, what)) for what in (right, counts))
    occur = (occurrences > 0).sum().clamp(min=1)
    return {
        "accuracy": hits.sum() / occurrences.sum().clamp(min=1),
        "recall": (hits / occurrences.clamp(min=1)).sum() / occur,
    }


def _chroma_ratio(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean chroma, the length of (a, b), of one (N, 2, h, w) over that of the other; 0 where neither has any."""
    return average(predicted.norm(dim=1).mean()) / average(true.norm(dim=1).mean()).clamp(min=1e-6)
