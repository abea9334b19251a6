"""SimCLR's two views of decoded images at 32 and 96 px on one core, against four libraries one would use instead.

Same images, same policy, one thread; each library as its documentation has it: lightly and torchvision image by image,
kornia on batches, albumentations image by image on arrays. Mean and contrast of the views must agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import harness

harness.with_peers("lightly==1.6.0", "kornia==0.9.0", "albumentations==2.0.8")

import albumentations as A  # noqa: E402
import albumentations.pytorch  # noqa: E402
import cv2  # noqa: E402
import kornia.augmentation as K  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision.transforms.v2 as T  # noqa: E402
from inputs import photographs, specs  # noqa: E402
from lightly.transforms import SimCLRTransform  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from cl_core.allocator import keep_freed_memory  # noqa: E402
from cl_core.assembly import build_chain  # noqa: E402
from cl_core.data.sampling import SampleRng  # noqa: E402
from cl_core.data.store import to_float  # noqa: E402
from cl_core.registry import load_registry  # noqa: E402
from plugins.augmentations.recipes import simclr  # noqa: E402

MIN_SCALE, JITTER, PROB, GRAY, BLUR, SIGMA = 0.08, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, (0.1, 2.0)
TARGETS = {"lightly": 10.0, "torchvision": None, "kornia": 4.0, "albumentations": 2.5}
TOLERANCE = 0.04  # of the mean and the standard deviation of a channel, in a range of 1

Maker = Callable[[], Tensor]


def ours(images: Tensor) -> Maker:
    """The recipe `simclr`, with bilinear crops as the peers'."""
    chain = build_chain(load_registry(), specs(simclr()["augment"], interpolation="bilinear"))
    rows, epochs = torch.arange(len(images)), itertools.count()

    def make() -> Tensor:
        batch, rng = to_float(images), SampleRng(0, next(epochs), rows)
        return torch.stack([chain(batch, rng.child(view)) for view in range(2)])

    return make


def lightly(images: Tensor, taps: int) -> Maker:
    """SimCLRTransform on Pillow images, the blur's kernel left to Pillow as it always is there."""
    bright, contrast, saturation, hue = JITTER
    transform = SimCLRTransform(
        input_size=images.shape[-1],
        cj_prob=PROB,
        cj_strength=1.0,
        cj_bright=bright,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=hue,
        min_scale=MIN_SCALE,
        random_gray_scale=GRAY,
        gaussian_blur=BLUR,
        sigmas=SIGMA,
        normalize=None,
    )
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    return lambda: torch.stack([torch.stack(views) for views in zip(*map(transform, pictures), strict=True)])


def torchvision(images: Tensor, taps: int) -> Maker:
    """transforms.v2 on uint8 tensors, which is faster than on Pillow images."""
    transform = T.Compose(
        [
            T.RandomResizedCrop(images.shape[-1], scale=(MIN_SCALE, 1.0), antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(*JITTER)], p=PROB),
            T.RandomGrayscale(GRAY),
            T.RandomApply([T.GaussianBlur(taps, SIGMA)], p=BLUR),
            T.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda: torch.stack([torch.stack([transform(image) for image in images]) for _ in range(2)])


def kornia(images: Tensor, taps: int) -> Maker:
    """One batched sequence on float tensors, every sample with parameters of its own."""
    side = images.shape[-1]
    transform = K.AugmentationSequential(
        K.RandomResizedCrop((side, side), scale=(MIN_SCALE, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=PROB),
        K.RandomGrayscale(p=GRAY),
        K.RandomGaussianBlur((taps, taps), SIGMA, p=BLUR),
    )

    def make() -> Tensor:
        batch = to_float(images)
        with torch.no_grad():
            return torch.stack([transform(batch) for _ in range(2)])

    return make


def albumentations_(images: Tensor, taps: int) -> Maker:
    """Image by image on uint8 arrays, OpenCV with one thread."""
    side = images.shape[-1]
    transform = A.Compose(
        [
            A.RandomResizedCrop((side, side), scale=(MIN_SCALE, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(
                *((1 - spread, 1 + spread) if spread > 0.5 else (-spread, spread) for spread in JITTER), p=PROB
            ),
            A.ToGray(p=GRAY),
            A.GaussianBlur(blur_limit=(taps, taps), sigma_limit=SIGMA, p=BLUR),
            A.ToFloat(max_value=255),
            albumentations.pytorch.ToTensorV2(),
        ]
    )
    arrays = list(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))

    def make() -> Tensor:
        return torch.stack([torch.stack([transform(image=array)["image"] for array in arrays]) for _ in range(2)])

    return make


def check_alike(views: dict[str, Tensor]) -> None:
    """Raise AssertionError where mean or contrast of somebody's views differ from ours: another policy."""
    figures = {name: (made.mean().item(), made.std(dim=(-1, -2)).mean().item()) for name, made in views.items()}
    for name, made in views.items():
        assert made.shape == views["contrast"].shape, (name, made.shape)
        assert all(abs(a - b) < TOLERANCE for a, b in zip(figures[name], figures["contrast"], strict=True)), figures
    shown = ", ".join(f"{name} {mean:.3f} {contrast:.3f}" for name, (mean, contrast) in figures.items())
    print(f"mean and contrast of the views: {shown}")


def measure(side: int, count: int, args: harness.Arguments) -> list[harness.Row]:
    """The rows for one size of image."""
    images = photographs(count, side)
    taps = int(0.1 * side) // 2 * 2 + 1
    sides = {
        "contrast": ours(images),
        harness.named("lightly"): lightly(images, taps),
        harness.named("torchvision"): torchvision(images, taps),
        harness.named("kornia"): kornia(images, taps),
        harness.named("albumentations"): albumentations_(images, taps),
    }
    check_alike({name: torch.cat([make() for _ in range(4)]) for name, make in sides.items()})
    times = harness.side_by_side(sides, rounds=args.rounds(15))
    return [
        harness.faster(
            f"two SimCLR views at {side} px",
            {"contrast": times["contrast"], peer: times[peer]},
            per="views",
            count=2 * count,
            target=TARGETS[peer.split()[0]],
        )
        for peer in times
        if peer != "contrast"
    ]


def main() -> None:
    """Measure both sizes on one thread."""
    args = harness.arguments(__doc__)
    keep_freed_memory()  # as every stage of an experiment does; here the peers profit too
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    rows = measure(32, 128 if args.smoke else 512, args) + measure(96, 32 if args.smoke else 128, args)
    harness.finish(
        __file__,
        """Two views of every image by SimCLR's policy (crop from 8 % of the area, flip, jitter 0.8 0.8 0.8 0.2 on 80 %,
        grey 20 %, blur on half with a kernel of a tenth of the side), float tensors in [0, 1], one thread, images in
        memory (uint8 tensors, or Pillow images and arrays where the peer wants those). Mean and contrast of the views
        agree within 0.04.""",
        rows,
        args,
    )


if __name__ == "__main__":
    main()
