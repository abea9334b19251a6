"""The image itself as a representation, without a weight: what a classifier makes of raw pixels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cl_core.types import Encoder


class Pixels(Encoder):
    """Raw pixels, the yardstick below which a representation is worse than none.

    max_side: larger images are average-pooled to this many pixels a side, so that a linear layer on them stays small.

    What `forward` gives to a classifier is centred and halved, (x - 1/2) / 2, which suits the learning rates of
    networks: trained by SGD at 0.1 on CIFAR-10 it reaches the 39 % of a converged linear probe in 250 steps.
    The only stage, pixels, holds all values in a row, (N, in_channels * side * side): no probe pools them further.
    Needs the method `random_init`, or any other that can do without gradients.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        in_channels: int = 3,
        max_side: Annotated[PositiveInt, Field(le=128)] = 36,
    ) -> None:
        super().__init__()
        self.side = min(image_size, max_side)
        self.out_dim = in_channels * self.side**2

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> pixels (N, out_dim)."""
        same = images.shape[-2:] == (self.side, self.side)
        return {"pixels": (images if same else adaptive_avg_pool2d(images, self.side)).flatten(1)}

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> (N, out_dim) in [-1/4, 1/4]."""
        return (self.stages(images)["pixels"] - 0.5) / 2
