"""Random init, the yardstick below all others: the encoder as it was drawn, never trained.

An architecture is worth something before it has seen an image; what a method adds is what it has above this.
"""

from __future__ import annotations

from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.types import Method, StepOutput, Views


class RandomInit(Method):
    """Random init: the encoder with its initial weights, which later stages judge like a trained one.

    encoder: images (N, C, H, W) -> (N, out_dim); with the encoder `pixels`, which has no weights, this is the yardstick
    raw pixels. The weights are those that every other method with this encoder and seed starts from, so fine-tuning is
    supervised training from scratch on the same labels.
    """

    trains = False
    family = "yardstick"

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        """images (N, C, H, W) -> the images as they are."""
        return Views(images=(images,))

    def forward(self, views: Views) -> StepOutput:
        """Never called: raises RuntimeError."""
        raise RuntimeError("random_init trains nothing, so it has no loss")
