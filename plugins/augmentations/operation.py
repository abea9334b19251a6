"""What the built-in augmentations share: draw the parameters first, then apply them.

The two steps are separate so that tests can hold each operation against torchvision's under the same parameters, and
the parameters of one sample against those drawn in another batch. A plugin needs none of this; any callable will do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError, DataError
from plugins.augmentations import compiled


class Operation(ABC):
    """An augmentation in two steps; images (N, C, H, W) float in [0, 1], any memory layout, N >= 0."""

    changes_input = False  #: whether `compiled` writes into the images it is given

    @abstractmethod
    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return the parameters for images of this size, each tensor with one row per sample of `rng`."""

    @abstractmethod
    def apply(self, images: Tensor, **parameters: Tensor) -> Tensor:
        """Return new images made with drawn parameters; what `draw` returns is what this takes."""

    def compiled(self, images: Tensor, **parameters: Tensor) -> Tensor:
        """As `apply`, for images that `plugins.augmentations.compiled` takes; pixels agree within 1e-5."""
        return self.apply(images, **parameters)

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:
        """Return new images in [0, 1]; the input is left untouched."""
        if self.changes_input and compiled.takes(images):
            images = images.clone(memory_format=torch.contiguous_format)
        return self.overwrite(images, rng)

    def overwrite(self, images: Tensor, rng: SampleRng) -> Tensor:
        """As calling it, but for images that nobody needs any more: saves a copy of the batch."""
        parameters = self.draw(rng, *images.shape[-2:])
        if not compiled.takes(images):
            return self.apply(images, **parameters)
        # Loops that write into an image run along its planes, which another augmentation may have left interleaved.
        return self.compiled(images.contiguous() if self.changes_input else images, **parameters)


def per_sample(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to broadcast against images."""
    return values[:, None, None, None]


def on_rows(images: Tensor, hit: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Return new images where `change(some images, *their parameters)` replaced those with hit (N,) true.

    Costly operations run only on the samples they are for; finding those synchronises a GPU once.
    """
    return on_rows_(images.clone(), hit, change, *parameters)


def on_rows_(images: Tensor, hit: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """As `on_rows`, in place: for images that the caller has made itself."""
    rows = hit.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    return images.index_copy_(0, rows, change(images[rows], *(parameter[rows] for parameter in parameters)))


def check_increasing(option: str, interval: tuple[float, float]) -> None:
    """Raise ConfigError unless the interval's lower end comes first."""
    low, high = interval
    if low > high:
        raise ConfigError(f"{option} [{low:g}, {high:g}] must go from low to high; write [{high:g}, {low:g}]")


def check_channels(part: str, images: Tensor) -> None:
    """Raise DataError unless the images are grey (1 channel) or RGB (3 channels)."""
    if images.shape[1] not in (1, 3):
        raise DataError(
            f"{part} works on grey or RGB images, got {images.shape[1]} channels; leave it out of the chain"
        )
