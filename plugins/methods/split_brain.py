"""Split-brain autoencoder: two halves of a network predict each other's input (Zhang et al. 2017, arXiv:1611.09842).

One half sees lightness and predicts colour, the other the reverse; neither can copy, and together they use the whole
image, which is what evaluation hands them. How colours are quantised is in `color.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Augmentation, Diagnosis, Encoder, Method, Panel, Representation, Sample, StepOutput, Views
from plugins.methods.color import ColorBins, denormalized, lab_to_rgb, normalized, require_color, rgb_to_lab, strided
from plugins.methods.color_detectors import chroma, colour_in_input
from plugins.methods.panels import SHOWN, contact_sheet, judging
from plugins.methods.pixel_head import PixelHead, last_map

TEMPERATURE = 0.38  # of the annealed mean that turns distributions into colours, as for colorization
_PREPARED_AT_ONCE = 256


class SplitBrain(Method):
    """Split-brain autoencoder (Zhang et al. 2017, arXiv:1611.09842): lightness predicts colour and colour lightness.

    encoder_factory: makes both halves, of half the width each, with one and with two channels in. augment: crop and
    flip.
    targets: "classification" of both, the paper's best version, or "regression" of the normalised channels.
    step, neighbors: quantised colours and the bins that share a pixel's target, see `Colorization`.
    lightness_bins: classes of equal width for lightness; 100 in the paper.
    rebalance: weights of colours, see `Colorization`; 1 weighs all alike, as in the paper.
    stride: every stride-th pixel is predicted. head_dim: width of both decoders.

    Regression leaves step, neighbors, lightness_bins and rebalance aside. The loss is the sum of both directions, each
    logged as `color_loss` and `lightness_loss`; with classification also `color_accuracy` and `lightness_accuracy`, the
    share of pixels whose likeliest bin is the nearest. Colour predicts lightness badly by nature. Raises ConfigError
    for images that are not RGB, for a training sample without any colour, and for encoders whose last stage is not a
    map.
    """

    year = 2017
    family = "reconstruction"

    encoder: SplitEncoder

    def __init__(
        self,
        encoder_factory: Callable[..., Encoder],
        augment: Augmentation,
        *,
        targets: Literal["classification", "regression"] = "classification",
        step: Annotated[float, Field(ge=5, le=40)] = 20.0,
        neighbors: Annotated[int, Field(ge=1, le=10)] = 5,
        lightness_bins: Annotated[int, Field(ge=2, le=256)] = 50,
        rebalance: Annotated[float, Field(gt=0, le=1)] = 1.0,
        stride: PositiveInt = 2,
        head_dim: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.augment, self.stride = augment, stride
        self.encoder = SplitEncoder(
            encoder_factory(in_channels=1, width_mult=0.5), encoder_factory(in_channels=2, width_mult=0.5)
        )
        self.color_target: Target
        self.lightness_target: Target
        if targets == "classification":
            self.color_target = ColorClasses(ColorBins(step=step, neighbors=neighbors, rebalance=rebalance))
            self.lightness_target = LightnessClasses(lightness_bins)
        else:
            self.color_target, self.lightness_target = Regression(1, 3), Regression(0, 1)
        self.color_head = PixelHead(self.encoder.lightness.out_dim, head_dim, self.color_target.width)
        self.lightness_head = PixelHead(self.encoder.color.out_dim, head_dim, self.lightness_target.width)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, 3, H, W) -> lightness (N, 1, H, W) and colour (N, 2, H, W); extra "lab" (N, 3, h, w)."""
        lab = rgb_to_lab(self.augment(images, rng.child(0)))
        seen, asked = normalized(lab), strided(lab, self.stride)
        return Views(images=(seen[:, :1].contiguous(), seen[:, 1:].contiguous()), extras={"lab": asked.contiguous()})

    def forward(self, views: Views) -> StepOutput:
        """The sum of what both halves lose, each averaged over the pixels."""
        (lightness, color), lab = views.images, views.extras["lab"]
        of_color = self.color_head(last_map(self.encoder.lightness, lightness), lab.shape[-2:])
        of_lightness = self.lightness_head(last_map(self.encoder.color, color), lab.shape[-2:])
        with torch.autocast(lab.device.type, enabled=False):
            color_loss, color_metrics = self.color_target(of_color.float(), lab)
            lightness_loss, lightness_metrics = self.lightness_target(of_lightness.float(), lab)
        parts = _named(
            color={"loss": color_loss.detach(), **color_metrics},
            lightness={"loss": lightness_loss.detach(), **lightness_metrics},
        )
        return StepOutput(loss=color_loss + lightness_loss, metrics=parts)

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """Take what a constant would score, and the prior of colours, from sample (M, 3, H, W)."""
        lab = torch.cat([strided(rgb_to_lab(part), self.stride) for part in sample.split(_PREPARED_AT_ONCE)])
        require_color(lab[:, 1:])
        self.color_target.observe(lab)
        self.lightness_target.observe(lab)

    def representation(self) -> Representation:
        """Both halves, equal stages concatenated, on the Lab channels of RGB."""
        return Representation(self.encoder, normalized_lab, "lab-split")

    def units(self, areas: Sequence[float]) -> float:
        """Each half has half the width, so a quarter of the work."""
        return sum(areas) / 4

    def trivial(self) -> dict[str, float]:
        """Of the same answer for every pixel, on the training images: its best losses, and its best accuracies.

        Before `prepare` that is log Q and 1 / Q of either target, and nothing for regression.
        """
        color, lightness = self.color_target.constant(), self.lightness_target.constant()
        total = color.get("loss", math.inf) + lightness.get("loss", math.inf)
        return {**({"loss": total} if math.isfinite(total) else {}), **_named(color=color, lightness=lightness)}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """A few images: in grey, in predicted colours, with predicted lightness, and as they are."""
        truth = images[:SHOWN]
        lab = rgb_to_lab(truth)
        (lightness, color), size = normalized(lab).split([1, 2], dim=1), strided(lab, self.stride).shape[-2:]
        with judging(self):
            of_color = self.color_head(last_map(self.encoder.lightness, lightness), size)
            of_lightness = self.lightness_head(last_map(self.encoder.color, color), size)
            ab = _resized(self.color_target.decode(of_color.float()), lab)
            grey = _resized(self.lightness_target.decode(of_lightness.float()), lab)
        columns = [(lab[:, :1], lab[:, 1:] * 0), (lab[:, :1], ab), (grey, lab[:, 1:]), (lab[:, :1], lab[:, 1:])]
        caption = (
            "Each row: the lightness that one half sees, with the colours that it predicts; the colours that the other "
            "half sees, with the lightness that it predicts; and the image itself."
        )
        sheet = contact_sheet([lab_to_rgb(torch.cat(parts, dim=1)) for parts in columns])
        return [Panel(title="Colour from lightness, lightness from colour", caption=caption, image=sheet)]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether the half that predicts colour dares to use it, and has to; bins are needed for the former."""
        questions = {
            "leak": Diagnosis(
                question="Is the input of the lightness half free of colour?",
                find=lambda fit, held_out: colour_in_input(self, held_out),
            )
        }
        if isinstance(self.color_target, ColorClasses):
            questions["chroma"] = Diagnosis(
                question="Are the predicted colours as colourful as images?",
                find=lambda fit, held_out: chroma(self._compared, held_out),
            )
        return questions

    def _compared(self, part: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicted and true (a, b), (N, 2, h, w), and the likeliest and the nearest bin, (N, h, w)."""
        views = self.make_views(part.images, part.rng)
        ab, bins = views.extras["lab"][:, 1:], self.color_target.bins
        logits = self.color_head(last_map(self.encoder.lightness, views.images[0]), ab.shape[-2:]).float()
        return self.color_target.decode(logits), ab, logits.argmax(dim=1), bins.encode(ab).argmax(dim=1)


class SplitEncoder(Encoder):
    """Two encoders side by side that share no weight: the first channel goes to one, the other two to the other."""

    def __init__(self, lightness: Encoder, color: Encoder) -> None:
        super().__init__()
        self.lightness = lightness
        self.color = color
        self.out_dim = lightness.out_dim + color.out_dim

    def forward(self, lab: Tensor) -> Tensor:
        """Normalised Lab (N, 3, H, W) -> (N, out_dim)."""
        return torch.cat([self.lightness(lab[:, :1]), self.color(lab[:, 1:])], dim=1)

    def stages(self, lab: Tensor) -> dict[str, Tensor]:
        """Normalised Lab (N, 3, H, W) -> the stages of both halves, lightness first along the channels."""
        color = self.color.stages(lab[:, 1:])
        return {name: torch.cat([part, color[name]], dim=1) for name, part in self.lightness.stages(lab[:, :1]).items()}


class Target(nn.Module, ABC):
    """What a head predicts of Lab, how that is scored, and what a constant would score.

    width: channels that the head needs.
    """

    width: int

    @abstractmethod
    def forward(self, output: Tensor, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a head's output (N, width, h, w) float32 on lab (N, 3, h, w)."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """The channels of Lab that an output (N, width, h, w) stands for: (N, 1 or 2, h, w)."""

    @abstractmethod
    def observe(self, lab: Tensor) -> None:
        """Take from the training images (M, 3, h, w) what `constant` and weights need."""

    @abstractmethod
    def constant(self) -> dict[str, float]:
        """The best loss and metrics of a constant output on the images observed; without what is not known yet."""


class ColorClasses(Target):
    """The soft bins of a and b."""

    def __init__(self, bins: ColorBins) -> None:
        super().__init__()
        self.bins = bins
        self.width = len(bins)

    def forward(self, output: Tensor, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy; accuracy of the likeliest bin."""
        soft = self.bins.encode(lab[:, 1:])
        loss = (self.bins.worth(soft) * F.cross_entropy(output, soft, reduction="none")).mean()
        return loss, {"accuracy": _accuracy(output, soft.argmax(dim=1))}

    def decode(self, output: Tensor) -> Tensor:
        """The annealed mean of the bins."""
        return self.bins.decode(output, TEMPERATURE)

    def observe(self, lab: Tensor) -> None:
        """Take the prior."""
        self.bins.observe(lab[:, 1:])

    def constant(self) -> dict[str, float]:
        """See `ColorBins.constant`."""
        return self.bins.constant()


class LightnessClasses(Target):
    """Bins of equal width from L = 0 to L = 100.

    frequency: (bins,), how often the training images show each; alike until `observe`.
    """

    frequency: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.width = bins
        self.register_buffer("frequency", torch.full((bins,), 1 / bins))

    def bins(self, lab: Tensor) -> Tensor:
        """The bin of every pixel's lightness: (N, 3, h, w) -> (N, h, w) int64."""
        return (lab[:, 0] * (self.width / 100)).long().clamp(0, self.width - 1)

    def forward(self, output: Tensor, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy; accuracy of the likeliest bin."""
        bins = self.bins(lab)
        return F.cross_entropy(output, bins), {"accuracy": _accuracy(output, bins)}

    def decode(self, output: Tensor) -> Tensor:
        """The annealed mean of the middles of the bins."""
        middles = (torch.arange(self.width, device=output.device) + 0.5) * (100 / self.width)
        return torch.einsum("nqhw,q->nhw", (output / TEMPERATURE).softmax(dim=1), middles)[:, None]

    def observe(self, lab: Tensor) -> None:
        """Take the frequencies."""
        counts = torch.bincount(self.bins(lab).flatten(), minlength=self.width)
        self.frequency.copy_(counts / counts.sum())

    def constant(self) -> dict[str, float]:
        """The entropy of the frequencies, and the largest of them."""
        return {"loss": float(torch.special.entr(self.frequency).sum()), "accuracy": float(self.frequency.max())}


class Regression(Target):
    """Half the squared distance to channels first..last of normalised Lab, summed over these.

    spread: that of the mean colour from the training images, infinite until `observe`.
    """

    spread: Tensor

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.channels = slice(first, last)
        self.width = last - first
        self.register_buffer("spread", torch.tensor(math.inf))

    def forward(self, output: Tensor, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the pixels; no metrics beside it."""
        return (output - normalized(lab)[:, self.channels]).square().sum(dim=1).mean() / 2, {}

    def decode(self, output: Tensor) -> Tensor:
        """The output, no longer normalised."""
        whole = output.new_zeros(len(output), 3, *output.shape[-2:])
        whole[:, self.channels] = output
        return denormalized(whole)[:, self.channels]

    def observe(self, lab: Tensor) -> None:
        """Take the variance."""
        variance = normalized(lab)[:, self.channels].var(dim=(0, 2, 3), correction=0)
        self.spread.copy_(variance.sum() / 2)

    def constant(self) -> dict[str, float]:
        """Half the variance."""
        return {"loss": float(self.spread)} if self.spread.isfinite() else {}


def normalized_lab(images: Tensor) -> Tensor:
    """What the encoder sees of RGB images (N, 3, H, W) in [0, 1]: all of Lab, normalised."""
    return normalized(rgb_to_lab(images))


def _resized(channels: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(channels, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _accuracy(output: Tensor, bins: Tensor) -> Tensor:
    return (output.argmax(dim=1) == bins).float().mean()


def _named(**directions: dict[str, Any]) -> dict[str, Any]:
    """{"color": {"loss": x}} -> {"color_loss": x}."""
    return {f"{direction}_{name}": value for direction, parts in directions.items() for name, value in parts.items()}
