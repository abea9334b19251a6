"""Context encoder: paint what was cut out of an image from what is around it (Pathak et al. 2016, arXiv:1604.07379).

The encoder sees the image with a hole; a channel-wise fully connected layer carries information across the map, and a
decoder paints the hole. Features are learned with the squared error alone, as in the paper; the adversarial loss, which
makes the pictures sharper and the features no better, is an option. Masks live in `masks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cl_core.data.sampling import SampleRng
from cl_core.distributed import average
from cl_core.errors import ConfigError
from cl_core.types import Augmentation, Diagnosis, Method, Panel, ParamGroup, StepOutput, UnitInterval, Views
from plugins.methods.decoder import decoder, stage_shapes
from plugins.methods.hole_detectors import inpainting, interior
from plugins.methods.masks import centre_mask, random_regions, shrunk
from plugins.methods.panels import SHOWN, contact_sheet, judging

FILL = (117 / 255, 104 / 255, 123 / 255)  # the authors' mean colour, which the net sees in place of the hole
_AUGMENT, _REGION = range(2)
_SMALLEST_MAP = 4  # the channel-wise layer mixes maps of this side, as 6 in the paper: its weights grow with side^4
_DISCRIMINATOR_RATE = 0.1  # the authors train the generator ten times as fast


class ContextEncoder(Method):
    """Context encoder (Pathak et al. 2016, arXiv:1604.07379): inpainting as a way to learn features.

    encoder: needs maps. augment: chain for the images, crop and flip.
    holes: "regions" cuts out random shapes, a quarter of the image, "centre" the middle quarter, with a ring of known
        pixels inside that counts 10 times. The paper takes random regions for features: a fixed square teaches the net
        its edge.
    adversarial: weight of the adversarial loss, whose complement weighs the reconstruction; 0.001 in the paper's
        inpainting, 0 for features. Needs holes: centre, since the discriminator sees the painted square alone.

    The loss is in values of [-1, 1]. Logs `psnr` in dB inside the hole, and `psnr_mean`, that of painting the hole in
    the mean colour of its surroundings.
    """

    year = 2016
    family = "reconstruction"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        image_size: int,
        *,
        holes: Literal["regions", "centre"] = "regions",
        adversarial: UnitInterval = 0.0,
    ) -> None:
        super().__init__()
        if adversarial and holes != "centre":
            raise ConfigError(
                f"method.adversarial {adversarial:g} needs a square hole for the discriminator to look at; set "
                f"method.holes: centre, or adversarial: 0"
            )
        self.encoder, self.augment, self.holes, self.adversarial = encoder, augment, holes, adversarial
        channels, side = list(stage_shapes(encoder, image_size).values())[-1]
        painted = image_size // 2 if holes == "centre" else image_size
        self.bottleneck = Bottleneck(channels, side)
        self.decoder = decoder(self.bottleneck.channels, self.bottleneck.side, 3, painted)
        if adversarial:
            self.discriminator = discriminator()

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, 3, H, W) -> image with a hole and whole image; extras["mask"] (N, 1, H, W), the weight of every
        pixel in the loss: 0 outside the hole."""
        whole = self.augment(images, rng.child(_AUGMENT))
        if self.holes == "centre":
            weight = centre_mask(whole).expand(len(whole), -1, -1, -1)
            hidden = shrunk(whole).expand_as(weight)
        else:
            weight = random_regions(whole, rng.child(_REGION))
            hidden = weight > 0
        fill = whole.new_tensor(FILL)[:, None, None]
        return Views(images=(torch.where(hidden, fill, whole), whole), extras={"mask": weight})

    def forward(self, views: Views) -> StepOutput:
        """Weighted squared error in the hole, and the adversarial terms where they are on."""
        holed, whole = views.images
        weight = views.extras["mask"]
        painted = self.paint(holed)
        target = self._window(whole) * 2 - 1
        rec = masked_mse(painted.float(), target.float(), self._window(weight))
        metrics = self._quality(painted.detach().float(), holed, whole, weight)
        if not self.adversarial:
            return StepOutput(loss=rec, metrics=metrics)
        fooled, caught, figures = self._contest(painted, target)
        # One backward pass serves both nets: the discriminator's term reaches only it, the generator's only the rest.
        loss = (1 - self.adversarial) * rec + self.adversarial * fooled + caught
        return StepOutput(loss=loss, metrics={"reconstruction": rec.detach(), **metrics, **figures})

    def paint(self, holed: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] with holes -> what belongs there in [-1, 1]: the whole image, or the middle square."""
        features = list(self.encoder.stages(holed).values())[-1]
        return self.decoder(self.bottleneck(features))

    def parameter_groups(self) -> list[ParamGroup]:
        """The default groups, the discriminator at a tenth of the learning rate."""
        groups = super().parameter_groups()
        if not self.adversarial:
            return groups
        judge = {id(parameter) for parameter in self.discriminator.parameters()}
        return [
            replace(group, params=[p for p in group.params if (id(p) in judge) == mine], lr_mult=rate)
            for group in groups
            for mine, rate in ((False, 1.0), (True, _DISCRIMINATOR_RATE))
        ]

    def units(self, areas: Sequence[float]) -> float:
        """Only the image with the hole passes."""
        return areas[0]

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """Images, the same with a hole, and with the hole painted."""
        some = torch.arange(min(SHOWN, len(images)), device=images.device)
        views = self.make_views(images[some], rng.rows(some))
        holed, whole = views.images
        with judging(self):
            filled = self.filled(views)
        caption = "Each row: an image, what the network was shown of it, and the hole as the network paints it."
        return [Panel(title="Inpainting", caption=caption, image=contact_sheet([whole, holed, filled]))]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether the network paints better than by rule, and not only along the border."""
        return {
            "inpainting": Diagnosis(
                question="Is the hole painted better than by rule?",
                find=lambda fit, held_out: inpainting(self, held_out),
            ),
            "interior": Diagnosis(
                question="Does it paint the inside of the hole, and not only continue its border?",
                find=lambda fit, held_out: interior(self, held_out),
            ),
        }

    def hidden(self, views: Views) -> Tensor:
        """Where the network saw the fill colour: (N, 1, H, W) bool."""
        weight = views.extras["mask"]
        return shrunk(weight).expand_as(weight) if self.holes == "centre" else weight > 0

    def filled(self, views: Views) -> Tensor:
        """The images with their holes as the network paints them: (N, 3, H, W) in [0, 1], but for what overshoots."""
        holed, whole = views.images
        return self._filled(self.paint(holed).float(), whole, views.extras["mask"])

    def _window(self, images: Tensor) -> Tensor:
        """What the decoder paints of them."""
        if self.holes == "regions":
            return images
        height, width = (side // 4 for side in images.shape[-2:])
        return images[..., height : height + 2 * height, width : width + 2 * width]

    def _filled(self, painted: Tensor, whole: Tensor, weight: Tensor) -> Tensor:
        """The image with the hole painted, in [0, 1]."""
        filled, pixels = whole.clone(), (painted + 1) / 2
        self._window(filled).copy_(torch.where(self._window(weight) > 0, pixels, self._window(whole)))
        return filled

    def _contest(self, painted: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Generator's and discriminator's loss, and what the discriminator believes."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        seen = functional_call(self.discriminator, frozen, (painted,)).float()
        real, fake = self.discriminator(target).float(), self.discriminator(painted.detach()).float()
        fooled = F.softplus(-seen).mean()  # non-saturating: -log D(fake)
        caught = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
        figures = {"d_real": real.detach().sigmoid().mean(), "d_fake": fake.detach().sigmoid().mean()}
        return fooled, caught, {**figures, "adversarial": fooled.detach(), "discriminator": caught.detach()}

    @torch.no_grad()
    def _quality(self, painted: Tensor, holed: Tensor, whole: Tensor, weight: Tensor) -> dict[str, Tensor]:
        hole = (weight > 0).expand_as(whole)
        known = (~hole).float()
        mean = ((holed * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)).expand_as(whole)
        filled = self._filled(painted, whole, weight)
        return {"psnr": psnr(filled[hole], whole[hole]), "psnr_mean": psnr(mean[hole], whole[hole])}


class Bottleneck(nn.Module):
    """From the encoder's map to the decoder's: (N, channels, side, side) -> (N, self.channels, self.side, self.side).

    Convolutions with stride 2 down to a side of 4, a channel-wise fully connected layer, a 1x1 convolution that mixes
    the channels again (section 3.1 of the paper). Thrown away after pretraining.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > _SMALLEST_MAP:
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()]
            channels, side = 2 * channels, (side + 1) // 2
        self.channels, self.side = channels, side
        mix = [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers, ChannelwiseLinear(channels, side), *mix)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.layers(features)


class ChannelwiseLinear(nn.Module):
    """Every channel's map through a fully connected layer of its own: (N, m, n, n) -> the same, m n^4 weights."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        area = side * side
        self.weight = nn.Parameter(torch.empty(channels, area, area).uniform_(-1, 1) / area**0.5)
        self.bias = nn.Parameter(torch.zeros(channels, area))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        mixed = torch.einsum("ncp,cqp->ncq", maps.flatten(2), self.weight) + self.bias
        return mixed.unflatten(2, maps.shape[-2:])


def discriminator(width: int = 32) -> nn.Sequential:
    """Squares (N, 3, s, s) in [-1, 1] -> logit (N,) of being real. Its batch norm keeps no averages to disturb."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width, track_running_stats=False),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(_SMALLEST_MAP),
        nn.Flatten(),
        nn.Linear(2 * width * _SMALLEST_MAP**2, 1),
        nn.Flatten(0),
    )


def masked_mse(painted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error averaged by weight, 0 outside the hole; painted, target: (N, C, h, w), weight: (N, 1, h, w)."""
    weight = weight.expand_as(target)
    return (weight * (painted - target).square()).sum() / average(weight.sum())


def psnr(painted: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    return -10 * average(F.mse_loss(painted.clamp(0, 1), target)).clamp(min=1e-10).log10()
