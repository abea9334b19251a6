"""Masked autoencoder: paint most patches of an image from the few that are shown (He et al. 2022, arXiv:2111.06377).

The encoder sees the visible patches alone, which makes it cheap; a small decoder gets mask tokens in the places of the
others. The loss is over hidden patches, against pixels standardised per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Augmentation, Diagnosis, Finding, Method, Panel, Sample, StepOutput, Views
from plugins.methods.detectors import BETTER, found, gathered, mean_figures
from plugins.methods.panels import SHOWN, contact_sheet, judging

_AUGMENT, _ORDER = range(2)
_EPS = 1e-6  # of the variance of a patch, as in the authors' code


class MAE(Method):
    """Masked autoencoder (He et al. 2022, arXiv:2111.06377): a transformer fills in hidden patches.

    encoder: a transformer that offers `patch`, `tokens(images) -> (N, L, D)` and `encode(tokens)`, such as vit.
    augment: crop and flip.
    patch: side of a patch in pixels; the encoder's must be the same.
    hidden: share of the patches that is hidden; 0.75 in the paper.
    decoder_dim, decoder_depth, decoder_heads: of the decoder; 512, 8 and 16 in the paper.

    Weak in linear probes and strong in fine-tuning, says the paper: look at both.
    """

    year = 2022
    family = "reconstruction"

    def __init__(
        self,
        encoder: nn.Module,
        augment: Augmentation,
        *,
        patch: PositiveInt = 4,
        hidden: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        decoder_dim: PositiveInt = 64,
        decoder_depth: PositiveInt = 2,
        decoder_heads: PositiveInt = 2,
    ) -> None:
        super().__init__()
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ConfigError(
                f"method.decoder_dim {decoder_dim} must be a multiple of 4 and of decoder_heads ({decoder_heads})"
            )
        self.encoder, self.augment, self.patch, self.hidden = encoder, augment, patch, hidden
        self.enter = nn.Linear(encoder.out_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(decoder_dim).normal_(std=0.02))
        self.decoder = nn.Sequential(
            *(Block(decoder_dim, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)), nn.LayerNorm(decoder_dim)
        )
        self.leave = nn.Linear(decoder_dim, 3 * patch * patch)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, 3, H, W) -> the augmented image; extras["order"] (N, L) int64, its patches, visible ones first.

        Raises ConfigError where the sides are no multiples of patch.
        """
        whole = self.augment(images, rng.child(_AUGMENT))
        rows, columns = self._grid(whole)
        order = rng.child(_ORDER).permutation(rows * columns).to(whole.device)
        return Views(images=(whole,), extras={"order": order})

    def forward(self, views: Views) -> StepOutput:
        """Mean squared error over the hidden patches, pixels standardised per patch."""
        whole, order = views.images[0], views.extras["order"]
        painted = self.paint(whole, order).float()
        target, _, _ = standardised(patchify(whole.float(), self.patch))
        masked = order[:, self._visible(order) :]
        loss = F.mse_loss(taken(painted, masked), taken(target, masked))
        return StepOutput(loss=loss)

    def paint(self, whole: Tensor, order: Tensor) -> Tensor:
        """What every patch holds, told from the visible ones: images (N, 3, H, W) -> (N, L, 3 * patch * patch)."""
        self._require_transformer()
        visible = order[:, : self._visible(order)]
        known = self.enter(self.encoder.encode(taken(self.encoder.tokens(whole), visible)))
        tokens = self.mask_token.to(known.dtype).expand(*order.shape, -1)
        tokens = tokens.scatter(1, visible[..., None].expand_as(known), known)
        places = build_sincos2d_pos_embed(list(self._grid(whole)), known.shape[-1], device=known.device)
        return self.leave(self.decoder(tokens + places.to(known.dtype)))

    def units(self, areas: Sequence[float]) -> float:
        """Only the visible patches pass."""
        return areas[0] * (1 - self.hidden)

    def trivial(self) -> dict[str, float]:
        """Of painting every patch in its mean: (n - 1) / n for n values, the variance being the unbiased one."""
        values = 3 * self.patch**2
        return {"loss": (values - 1) / values}

    def panels(self, images: Tensor, rng: SampleRng) -> list[Panel]:
        """Images, their visible patches, and the hidden ones painted, with each patch's own mean and deviation."""
        some = torch.arange(min(SHOWN, len(images)), device=images.device)
        views = self.make_views(images[some], rng.rows(some))
        whole, order = views.images[0], views.extras["order"]
        patches = patchify(whole, self.patch)
        _, mean, deviation = standardised(patches)
        with judging(self):
            painted = self.paint(whole, order).float() * deviation + mean
        shown = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, : self._visible(order)], True)[..., None]
        grey = torch.full_like(patches, 0.5)
        holed, filled = (
            unpatchify(torch.where(shown, patches, other), self.patch, self._grid(whole)) for other in (grey, painted)
        )
        caption = "Each row: an image, the patches that the network sees, and the others as it paints them."
        return [Panel(title="Masked patches", caption=caption, image=contact_sheet([whole, holed, filled]))]

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Whether it paints better than by rule."""
        return {
            "masked": Diagnosis(
                question="Are hidden patches painted better than by rule?",
                find=lambda fit, held_out: masked_patches(self, held_out),
            )
        }

    def copy_loss(self, views: Views) -> Tensor:
        """What it would cost to paint each hidden patch as the nearest visible one, standardised: (N,)."""
        whole, order = views.images[0], views.extras["order"]
        target, _, _ = standardised(patchify(whole.float(), self.patch))
        rows, columns = (torch.arange(side, device=order.device) for side in self._grid(whole))
        places = torch.cartesian_prod(rows, columns).float()
        visible, masked = order.split([self._visible(order), order.shape[1] - self._visible(order)], dim=1)
        nearest = visible.gather(1, torch.cdist(places[masked], places[visible]).argmin(dim=2))
        return (taken(target, nearest) - taken(target, masked)).square().mean(dim=(1, 2))

    def _visible(self, order: Tensor) -> int:
        """How many of the patches are shown; at least one."""
        return max(1, int(order.shape[1] * (1 - self.hidden)))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"method.patch {self.patch} does not divide images of {height}x{width} px; choose a divisor, or "
                f"another data.size"
            )
        return height // self.patch, width // self.patch

    def _require_transformer(self) -> None:
        if getattr(self.encoder, "patch", None) != self.patch or not hasattr(self.encoder, "encode"):
            raise ConfigError(
                f"method mae needs a transformer with patches of {self.patch} px, got "
                f"{getattr(self.encoder, 'patch', 'an encoder without patches')}; set encoder: {{name: vit, patch: "
                f"{self.patch}}}"
            )


def masked_patches(method: MAE, held_out: Sample) -> Finding:
    """The loss on hidden patches against each patch's own mean, and against copying the nearest visible patch."""
    loss = mean_figures(method, held_out)["loss"]
    copied = gathered(held_out, lambda part: method.copy_loss(method.make_views(part.images, part.rng)))
    trivial = {"own mean": method.trivial()["loss"], "nearest patch": float(copied.mean())}
    return found(
        loss >= BETTER * min(trivial.values()),
        warning="hidden patches are painted no better than by rule",
        fine="hidden patches are painted better than by rule",
        figures={"loss": loss},
        against=trivial,
    )


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, L, C * patch * patch), patches row by row."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`; grid: rows and columns of patches."""
    size = [side * patch for side in grid]
    return F.fold(patches.transpose(1, 2), size, patch, stride=patch)


def standardised(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (N, L, n) with mean 0 and unbiased variance 1 each, and what was taken off: mean, deviation (N, L, 1)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    deviation = (variance + _EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


def taken(tokens: Tensor, which: Tensor) -> Tensor:
    """Some tokens of every sample: (N, L, D), (N, M) -> (N, M, D)."""
    return tokens.gather(1, which[..., None].expand(-1, -1, tokens.shape[-1]))
