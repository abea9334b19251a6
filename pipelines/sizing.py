"""Settings for a new project that fit its images and this machine, each with the reason that stands beside it.

They are a start that trains in minutes on a CPU and within the hour on a GPU, not tuned values. Looks at file names
and image headers only; decodes nothing, writes nothing.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_core.errors import DataError
from cl_core.examples import Example
from pipelines.cores import cores

SAMPLE = 200  # image headers read to learn the usual size
VALIDATION, TEST = 0.1, 0.2  # shares written into params.yaml
SIDES = (32, 48, 64, 96, 128)
LARGEST_SIDE = {"cpu": 64, "gpu": 128}
LARGEST_BATCH = {"cpu": 256, "gpu": 512}
EPOCHS = (10, 20, 30, 50, 80, 120, 200)
MINUTES = {"cpu": 10, "gpu": 30}
# Images per second and core that SimCLR trains at 32 px with resnet8 of width 16: 24 epochs of 10,000 images took
# 7 minutes on 2 cores. The GPU's figure is a cautious guess for resnet18 at 32 px on a small card.
SPEED = {"cpu": 285.0, "gpu": 1500.0}


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of a set of images. side: median of the shorter sides of a sample, in pixels."""

    count: int
    train: int
    classes: int
    side: int
    has_splits: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What training can use."""

    cores: int
    gpus: int

    @property
    def kind(self) -> str:
        """The device that trains."""
        return "gpu" if self.gpus else "cpu"

    @classmethod
    def this(cls) -> Machine:
        """The machine we run on."""
        import torch

        return cls(cores=cores(), gpus=torch.cuda.device_count())


def measure(examples: Sequence[Example], where: Path) -> Images:
    """Count the images and look at the size of some. Raises DataError where none of these can be read."""
    sides = [side for example in examples[:: max(1, len(examples) // SAMPLE)] if (side := _side(example))]
    if not sides:
        raise DataError(f"{where}: none of the images looked at can be read as an image; are they images?")
    splits = Counter(example.split for example in examples)
    has_splits = set(splits) != {None}
    train = splits["train"] if has_splits else round(len(examples) * (1 - VALIDATION - TEST))
    classes = {example.label for example in examples if example.label is not None}
    side = int(statistics.median(sides))
    return Images(count=len(examples), train=max(train, 1), classes=len(classes), side=side, has_splits=has_splits)


def settings(images: Images, machine: Machine) -> dict[str, object]:
    """Values for the placeholders of the templates."""
    size = _size(images, machine)
    batch = _batch(images, machine)
    epochs, minutes = _epochs(images, machine, size)
    lr = 0.2
    return {
        "size": size,
        "size_why": f"pixels; half of your images have a shorter side of {images.side} or more. "
        f"Twice the size costs four times the time",
        "splits_why": "your folders' own splits come first" if images.has_splits else "your folders have no splits",
        **_encoder(machine, size),
        **_views(size),
        "lr": lr,
        "lr_used": f"{lr * batch / 256:g}",
        "epochs": epochs,
        "epochs_why": f"about {minutes} minutes here ({_shown(machine)}); SimCLR goes on improving with more",
        "warmup": max(1, epochs // 10),
        "batch": batch,
        "batch_why": f"of {images.train} training images; all others of the batch are what a view is told from",
        "evaluation": f"""\
  finetune:
    max_steps: {1000 if machine.gpus else 300}  # per fine-tuning run; more is fairer to large label sets and slower""",
        "train": "  precision: auto  # the fastest on this machine, measured once; fp32 or bf16 fixes it",
        "jobs": max(1, machine.gpus),
        "jobs_why": "one per GPU" if machine.gpus else "one uses all cores, several share them",
    }


def digits_settings() -> dict[str, object]:
    """The same for the embedded digits: fixed, so that every machine gets the same project."""
    views = """\
  chains:
    augment:
      - {name: random_resized_crop, scale: [0.4, 1.0]}
      - {name: rotation, degrees: 15}
      - {name: color_jitter, brightness: 0.4, contrast: 0.4, saturation: 0.0, hue: 0.0}
      - {name: gaussian_blur, prob: 0.5}"""
    return {
        "source": "{name: digits}  # the 1,797 handwritten digits of scikit-learn, 8x8, enlarged",
        "size": 32,
        "size_why": "pixels",
        "splits_why": "the digits come without splits",
        "description": "SimCLR on the embedded digits",
        "encoder_why": "75 thousand parameters, small enough for a CPU",
        "encoder": "  name: resnet8\n  width: 16",
        "views_why": "no mirroring and no large turns: they make other digits; no colour: there is none",
        "views": views,
        "lr": 0.2,
        "lr_used": 0.2,
        "epochs": 30,
        "epochs_why": "about a minute on 2 cores",
        "warmup": 3,
        "batch": 256,
        "batch_why": "of 1,258 training images; all others of the batch are what a view is told from",
        "evaluation": """\
  linear:
    l2: [1e-4, 1e-3, 1e-2]  # penalties tried; a longer grid is slower
  knn:
    k: 20  # neighbours of about 126 images per class; the protocol's 200 suits larger sets
  finetune:
    recipe: {name: crop-flip, min_scale: 0.4, flip: 0.0}  # mirrored digits are other digits
    batch_size: 64  # a tenth of the labels are 120
    lr: [0.5]  # a grid costs one run per rate, subset and competitor
    max_steps: 100  # per fine-tuning run; enough for so few images""",
        "train": """\
  precision: fp32  # fixed, so that every machine does the same; `auto` takes what is fastest here
  channels_last: true
  knn_every: 5  # epochs""",
        "jobs": 1,
        "jobs_why": "one uses all cores, several share them",
    }


def _side(example: Example) -> int | None:
    from PIL import Image

    try:
        with Image.open(example.image) as image:  # type: ignore[arg-type] - reads the header only
            return min(image.size)
    except OSError:
        return None


def _size(images: Images, machine: Machine) -> int:
    fitting = [side for side in SIDES if side <= min(images.side, LARGEST_SIDE[machine.kind])]
    return fitting[-1] if fitting else SIDES[0]


def _batch(images: Images, machine: Machine) -> int:
    """The largest power of two that leaves at least four steps per epoch."""
    limit = min(LARGEST_BATCH[machine.kind], images.train // 4)
    return max(2, 1 << (limit.bit_length() - 1)) if limit > 1 else 2


def _epochs(images: Images, machine: Machine, size: int) -> tuple[int, int]:
    """Epochs that fit into the time, and the minutes they should take."""
    units = machine.gpus or machine.cores
    per_second = SPEED[machine.kind] * units * (32 / size) ** 2
    affordable = MINUTES[machine.kind] * 60 * per_second / images.train
    epochs = max([n for n in EPOCHS if n <= affordable], default=EPOCHS[0])
    return epochs, max(1, round(epochs * images.train / per_second / 60))


def _encoder(machine: Machine, size: int) -> dict[str, object]:
    if not machine.gpus:
        why = "75 thousand parameters, small enough for a CPU; with a GPU take resnet18"
        return {"encoder": "  name: resnet8\n  width: 16", "encoder_why": why}
    stem = "cifar" if size <= 64 else "imagenet"
    why = f"11 million parameters; the stem {stem} is the one for images of {size} pixels"
    return {"encoder": f"  name: resnet18\n  stem: {stem}", "encoder_why": why}


def _views(size: int) -> dict[str, object]:
    small = size <= 48
    recipe = "simclr-cifar" if small else "simclr"
    chain = "for small images: crop, mirror, colour" if small else "crop, mirror, colour, blur"
    return {
        "views": f"  recipe:\n    name: {recipe}\n    min_scale: 0.2  # smallest crop; 0.08 in the paper's long runs",
        "views_why": f"the paper's chain {chain}; look at preview.png of the views stage",
    }


def _shown(machine: Machine) -> str:
    return f"{machine.gpus} GPU" if machine.gpus else f"{machine.cores} cores"
