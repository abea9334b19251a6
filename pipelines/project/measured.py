"""What was measured to win, by kind and number of images, minutes and device: the numbers behind `contrast init`.

Each row names the one of benchmarks/STARTS.md that it was taken from. All judgement of numbers is in this file; how a
row is fitted to a folder (time, few images, answers) is in `start`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.project.look import Images
from pipelines.project.machine import Machine

Spec = Mapping[str, Any]  # {"name": ..., **options}

LEAST_UPDATES = 1500  # below, nothing on the grid was better than untrained; the batch gives way to reach them
ENOUGH_UPDATES = 3000  # which few images may need more than MOST_EPOCHS for
MOST_EPOCHS = 500
LEAST_BATCH = 16  # as many others a view is told from, where updates are scarce
EVALUATIONS = 20  # points of the online kNN's curve
WARMUP = 0.1  # share of the epochs
MINUTES = {"cpu": 10.0, "gpu": 30.0}
FEW = 300  # images below which pretraining from nothing is unlikely to help
MANY = 1_000_000  # images from which the store keeps JPEG files


@dataclass(frozen=True, kw_only=True)
class Row:
    """Settings that won. size: side of the stored images. view: side of the crops that training sees, None for `size`.

    rate: at a batch of 256, linear. batch: at most; large_batch: at most from `many` training images on. scale: of the
    smallest crop, as a share of the image. strength: of changes of colour, 1 being SimCLR's for ImageNet, 0 for none.
    rotation: in degrees, 0 for none. quarter_turns: where a mirrored image means the same.
    """

    name: str
    size: int
    view: int | None = None
    encoder: Spec
    encoder_why: str
    method: Spec
    loss: Spec | None
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    rate: float
    weight_decay: float = 1e-4
    batch: int
    large_batch: int
    many: int = 20_000
    scale: float
    strength: float = 0.5
    rotation: float = 0.0
    quarter_turns: bool = False

    def batch_for(self, train: int) -> int:
        """The batch for so many training images, where there is no lack of updates."""
        return self.large_batch if train >= self.many else self.batch


_CPU: dict[str, Any] = {
    "encoder": {"name": "resnet8", "width": 16},
    "encoder_why": "75 thousand parameters, small enough for a CPU; with a GPU take resnet18",
    "method": {"name": "simclr"},
    "loss": {"name": "nt_xent", "temperature": 0.2},
    "rate": 0.2,
    "batch": 64,
    "large_batch": 64,  # on a CPU updates are scarce however many images there are
}
# Stored larger than they are trained on: at the price of crops of 32 px the evaluation sees 48 (as in Touvron et al.
# 2019, arXiv:1906.06423: crops show things larger than they are in whole images, and this makes up for it).
_CPU_SIZES: dict[bool, dict[str, Any]] = {True: {"size": 48, "view": 32}, False: {"size": 32}}
_GPU: dict[str, Any] = {  # not measured; the views are those that were, on a CPU
    "method": {"name": "simclr"},
    "loss": {"name": "nt_xent", "temperature": 0.2},
    "rate": 0.2,
    "batch": 256,
    "large_batch": 512,
}
_GPU_SIDES = (32, 48, 64, 96, 128)
_KINDS: dict[str, dict[str, Any]] = {
    "photographs": {"scale": 0.2},
    "tiny": {"scale": 0.4},
    "drawings": {"scale": 0.4, "rotation": 15.0, "strength": 0.0},
    "microscope": {"scale": 0.2, "quarter_turns": True},
}


def row(images: Images, machine: Machine) -> Row:
    """The row for these images on this machine."""
    kind = "tiny" if images.is_tiny and images.kind == "photographs" else images.kind
    device = _CPU | _CPU_SIZES[images.side >= 48] if machine.kind == "cpu" else _GPU | _gpu_encoder(images)
    return Row(name=f"{kind}, {machine.kind}", **device, **_KINDS[kind])


def _gpu_encoder(images: Images) -> dict[str, Any]:
    size = max(side for side in _GPU_SIDES if side <= max(images.side, _GPU_SIDES[0]))
    stem = "cifar" if size <= 64 else "imagenet"
    return {
        "size": size,
        "encoder": {"name": "resnet18", "stem": stem},
        "encoder_why": f"11 million parameters; the stem {stem} is the one for images of {size} pixels",
    }
