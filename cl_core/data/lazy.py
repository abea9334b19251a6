"""A batch of images that are decoded when somebody looks at them: whole, or only a crop of each.

A method hands its batch to its augmentations. One that crops can ask this batch for the crops alone, which are cut
from the images as they are stored, at their full height and width; whoever treats it as a tensor gets the squares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cl_core.data.jpeg import Interpolation, JpegFiles


class LazyImages(Tensor):
    """The (N, 3, S, S) float32 images in [0, 1] of some JPEG files, a tensor to every function of torch.

    heights, widths: (N,) int64, pixels of each image as it is stored; `resized_crops` takes boxes in these pixels.
    """

    heights: Tensor
    widths: Tensor
    _files: JpegFiles
    _squares: Tensor | None

    @classmethod
    def of(cls, files: JpegFiles, size: int, device: torch.device) -> LazyImages:
        """The images of these files as squares of side `size` on a device; nothing is decoded yet."""
        # One value seen N * 3 * S * S times: shape, type and device are right and memory is nothing.
        images: LazyImages = torch.empty(1, device=device).expand(len(files), 3, size, size).as_subclass(cls)
        images.heights, images.widths = (torch.from_numpy(side).to(device) for side in (files.heights, files.widths))
        images._files, images._squares = files, None
        return images

    def resized_crops(
        self, top: Tensor, left: Tensor, height: Tensor, width: Tensor, *, size: tuple[int, int], mode: Interpolation
    ) -> Tensor:
        """Boxes (N,) int64 in pixels of the stored images -> (N, 3, *size) float32 in [0, 1], contiguous.

        Resized with antialiasing and rounded to 1/255, as Pillow and torchvision do with 8-bit images.
        """
        boxes = torch.stack([top, left, height, width], dim=1).tolist()
        device = self.device
        on_gpu = device.type != "cpu"
        dtype = torch.uint8 if on_gpu else torch.float32  # a quarter of the bytes to send
        crops = torch.empty(len(boxes), 3, *size, dtype=dtype, pin_memory=device.type == "cuda")
        self._files.crops(boxes, mode, out=crops)
        return crops.to(device, non_blocking=True).to(torch.float32).div_(255) if on_gpu else crops

    def decoded(self) -> Tensor:
        """The squares, as an ordinary tensor in channels-last memory."""
        if self._squares is None:
            squares = self._files.squares(self.shape[-1])
            self._squares = squares.to(self.device).to(torch.float32).div_(255)
        return self._squares

    def forget(self) -> None:
        """Let go of everything decoded; it is decoded again where it is asked for."""
        self._squares = None
        self._files.forget()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Give every function of torch the squares, except those that only ask for shape, type or device."""
        with torch._C.DisableTorchFunctionSubclass():
            image = _so_far if func in _ABOUT else decoded
            return func(*tree_map(image, args), **tree_map(image, kwargs or {}))


#: What a tensor says of itself without being looked at.
_ABOUT = {Tensor.size, Tensor.dim, Tensor.__len__, Tensor.numel, Tensor.untyped_storage} | {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")
}


def decoded(value: Any) -> Any:
    """Lazy images as an ordinary tensor; anything else as it is."""
    return value.decoded() if isinstance(value, LazyImages) else value


def _so_far(value: Any) -> Any:
    return value if not isinstance(value, LazyImages) or value._squares is None else value._squares
