"""Any image transform of `torchvision.transforms.v2` as an augmentation, by class name.

Runs per sample on the CPU, so it is slow next to the batched built-ins (an image at a time). It refuses transforms that
need other transforms, labels or boxes, and those whose output is no image in [0, 1], such as Normalize: standardising
belongs to the encoder or the method.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError, did_you_mean
from cl_core.types import UnitInterval
from plugins.augmentations.operation import Operation

_NOT_FOR_IMAGES = {
    *("Compose", "RandomApply", "RandomChoice", "RandomOrder", "Lambda", "Transform"),  # need other transforms
    *("CutMix", "MixUp", "LinearTransformation", "UniformTemporalSubsample"),  # need labels, matrices or videos
    *("ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "RandomIoUCrop", "SetClampingMode"),
    *("SanitizeBoundingBoxes", "SanitizeKeyPoints", "FiveCrop", "TenCrop"),  # need boxes, or give several images
    *("ConvertImageDtype", "PILToTensor", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor"),
}
_OVERSHOOT = 0.5  # a bicubic step (a = -0.75) in both axes leaves [0, 1] by at most 0.45; that is clipped


class TorchvisionTransform(Operation):
    """Apply `torchvision.transforms.v2.<transform>(**options)` to every sample, with its own random state.

    transform: class name, e.g. RandomPerspective. options: its keyword arguments. prob: share of samples it is applied
    to. dtype: uint8 for transforms made for bytes (the AutoAugment family); images are then rounded to 1/255.
    Raises ConfigError for an unknown name or option, and where the result is not one image in [0, 1] per sample.
    """

    def __init__(
        self,
        transform: str,
        options: dict[str, Any] | None = None,
        prob: UnitInterval = 1.0,
        dtype: Literal["float32", "uint8"] = "float32",
    ) -> None:
        self.name, self.prob, self.dtype = transform, prob, dtype
        self.transform = _build(transform, options or {})

    def draw(self, rng: SampleRng, height: int, width: int) -> dict[str, Tensor]:
        """Return hit (N,) bool and the seed of the sample's random state, (N,) int64."""
        return {"hit": rng.bernoulli(self.prob), "seed": rng.integers(0, 1 << 62)}

    def apply(self, images: Tensor, hit: Tensor, seed: Tensor) -> Tensor:
        """Return the transformed images; all of them must come out in one size."""
        if len(images) == 0:
            return images
        # On the CPU whatever the device: the transform's random numbers are then the same on all of them.
        samples = zip(images.cpu(), hit.tolist(), seed.tolist(), strict=True)
        with torch.random.fork_rng(devices=[]):
            results = [self._one(image, number) if chosen else image for image, chosen, number in samples]
        shapes = {tuple(result.shape) for result in results}
        if len(shapes) > 1:
            raise ConfigError(
                f"torchvision transform {self.name} gives images of several sizes {sorted(shapes)}; a batch needs one: "
                f"choose options with a fixed size, and prob 1 where the size changes"
            )
        return torch.stack(results).to(images.device)

    def _one(self, image: Tensor, seed: int) -> Tensor:
        # Not torch.manual_seed, which would reseed every GPU as well.
        torch.default_generator.manual_seed(seed)
        given = image.mul(255).round().to(torch.uint8) if self.dtype == "uint8" else image.clone()
        try:
            result = self.transform(given)
        except Exception as error:
            raise ConfigError(
                f"torchvision transform {self.name} failed on a {tuple(image.shape)} {self.dtype} image: {error}; "
                f"check its options, or set dtype: uint8 where it works on bytes"
            ) from error
        return self._checked(result, image)

    def _checked(self, result: Any, image: Tensor) -> Tensor:
        if not isinstance(result, Tensor) or result.ndim != 3 or len(result) != len(image):
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ConfigError(
                f"torchvision transform {self.name} made {found} of a {tuple(image.shape)} image; only transforms from "
                f"one image to one image with as many channels fit into a chain"
            )
        result = result.to(image.dtype) / 255 if result.dtype == torch.uint8 else result.to(image.dtype)
        low, high = float(result.min()), float(result.max())
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise ConfigError(
                f"torchvision transform {self.name} gave values from {low:g} to {high:g}; images of a chain stay in "
                f"[0, 1], standardising is left to the method or the encoder"
            )
        return result.clamp(0, 1)


def _build(name: str, options: Mapping[str, Any]) -> v2.Transform:
    known = [key for key, value in vars(v2).items() if _is_transform(value) and key not in _NOT_FOR_IMAGES]
    if name not in known:
        raise ConfigError(
            f"torchvision.transform: no image transform of torchvision.transforms.v2 is called {name!r}"
            f"{did_you_mean(name, known)}; known: {', '.join(sorted(known))}"
        )
    factory = getattr(v2, name)
    taken = list(inspect.signature(factory).parameters)
    for option in options:
        if option not in taken:
            raise ConfigError(
                f"torchvision.options: {name} has no option {option!r}{did_you_mean(option, taken)}; "
                f"it takes: {', '.join(taken) or 'none'}"
            )
    try:
        return factory(**{option: _typed(option, value) for option, value in options.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torchvision.options: {name} refuses {dict(options)}: {error}") from error


def _is_transform(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, v2.Transform)


def _typed(option: str, value: Any) -> Any:
    """YAML has no enums: interpolation is written by its name."""
    return InterpolationMode(value) if option == "interpolation" and isinstance(value, str) else value
