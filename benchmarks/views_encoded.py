"""Two SimCLR views at 224 px from JPEG files of 400 x 533 pixels, on one thread: ours against lightly.

Ours reads an encoded store as training does: decode each image once, cut and resize both crops, augment in batches.
lightly's SimCLRTransform gets each file through Pillow, as its datasets do. Same chain: crop, flip, jitter, grayscale,
blur, without standardising. Beside it, what decoding alone would allow.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import harness

LIGHTLY = "lightly==1.6.0"
harness.with_peers(LIGHTLY)

import io  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402
import torch  # noqa: E402
from inputs import specs  # noqa: E402
from lightly.transforms import SimCLRTransform  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from cl_core.allocator import keep_freed_memory  # noqa: E402
from cl_core.assembly import build_chain  # noqa: E402
from cl_core.data.ingest import SplitRule, ingest  # noqa: E402
from cl_core.data.sampling import SampleRng  # noqa: E402
from cl_core.data.store import Store  # noqa: E402
from cl_core.registry import load_registry  # noqa: E402
from cl_core.types import Example  # noqa: E402
from plugins.augmentations.recipes import simclr  # noqa: E402

SIZE, HEIGHT, WIDTH, QUALITY = 224, 400, 533, 90
TOLERANCE = 0.05  # of the mean and the standard deviation of a channel, in a range of 1
CPU = torch.device("cpu")


class Photographs:
    """JPEG files that cost what photographs do, 2.3 bits per pixel: blots of all sizes, edges, a little noise."""

    def __init__(self, count: int) -> None:
        self.files = [_jpeg(_photograph(np.random.default_rng(seed))) for seed in range(count)]

    def fingerprint(self) -> dict[str, Any]:
        """Nothing changes."""
        return {"count": len(self.files)}

    def __iter__(self) -> Iterator[Example]:
        for number, file in enumerate(self.files):
            yield Example(key=str(number), image=file)


def _photograph(random: np.random.Generator) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    shared, own = random.normal(size=(HEIGHT, WIDTH, 1)), random.normal(size=(HEIGHT, WIDTH, 3))
    spectrum = np.fft.rfft2(shared + 0.5 * own, axes=(0, 1)) / frequency[..., None] ** 1.5
    picture = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH), axes=(0, 1))
    picture /= picture.std()
    for _ in range(12):  # things in front of other things
        top, left = random.integers(0, HEIGHT), random.integers(0, WIDTH)
        tall, wide = random.integers(20, 200, 2)
        picture[top : top + tall, left : left + wide] += random.normal(size=3)
    picture += random.normal(scale=0.01, size=picture.shape)
    return np.clip(110 + 55 * picture, 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class Ours:
    """Two views of every image, in batches, as training makes them."""

    def __init__(self, store: Path, batch: int) -> None:
        self.split = Store.open(store).split("train")
        self.chain = build_chain(load_registry(), specs(simclr(size=SIZE)["augment"], interpolation="bilinear"))
        self.batch, self.epoch = batch, 0

    def __call__(self) -> list[Tensor]:
        self.epoch += 1
        made = []
        for rows in torch.arange(len(self.split)).split(self.batch):
            images, rng = self.split.floats(rows, CPU), SampleRng(0, self.epoch, rows)
            made.append([self.chain(images, rng.child(view)) for view in range(2)])
        return [torch.cat(view) for view in zip(*made, strict=True)]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Both make views of the same mean and contrast, in every channel."""
    for figure in (torch.mean, torch.std):
        a, b = (figure(torch.cat(views).transpose(0, 1).flatten(1), dim=1) for views in (ours, theirs))
        assert (a - b).abs().max() < TOLERANCE, f"the two make different views: {a.tolist()} and {b.tolist()}"


def main() -> None:
    """Measure."""
    args = harness.arguments(__doc__)
    torch.set_num_threads(1)
    count, batch = (16, 16) if args.smoke else (128, 64)
    photographs = Photographs(count)
    files = photographs.files
    transform = SimCLRTransform(input_size=SIZE, normalize=None)

    def theirs() -> list[Tensor]:
        views = [transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        return [torch.stack(both) for both in zip(*views, strict=True)]

    def decoded(**least: int) -> None:
        for file in files:
            simplejpeg.decode_jpeg(file, "RGB", fastdct=False, fastupsample=False, **least)

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        options: dict[str, Any] = {"splits": SplitRule(0, 0), "source_spec": {}, "report": lambda line: None}
        ingest(photographs, store, size=SIZE, max_shorter_side=2 * SIZE, **options)
        keep_freed_memory()  # as the stages do
        ours = Ours(store, batch)
        if not args.smoke:
            agree(ours(), theirs())
        sides = {
            "contrast": ours,
            "lightly": theirs,
            "whole": decoded,
            "half": lambda: decoded(min_height=HEIGHT // 2, min_width=WIDTH // 2),
        }
        times = harness.side_by_side(sides, rounds=args.rounds(9))

    def against(claim: str, other: str, name: str, target: float | None = None) -> harness.Row:
        pair = {"contrast": times["contrast"], name: times[other]}
        return harness.faster(claim, pair, per="images", count=count, target=target)

    claim = f"two views at {SIZE} px from JPEG files of {HEIGHT} x {WIDTH}, one thread"
    rows = [
        against(claim, "lightly", harness.named("lightly"), target=4),
        against("the same, against decoding alone", "whole", harness.named("simplejpeg")),
        against("the same, against decoding alone at half the size", "half", harness.named("simplejpeg")),
    ]
    kib = sum(map(len, files)) / len(files) / 1024
    harness.finish(
        __file__,
        f"{count} JPEG files of {kib:.0f} KiB on average (quality {QUALITY}; blots of all sizes with edges), held in "
        f"memory; the chain of the recipe simclr with bilinear crops; batches of {batch}; one thread, loading in the "
        "same thread on both sides. lightly without its standardising, which ours does not have either. A ratio below "
        "1 against decoding alone is the share of that speed that is left after augmenting.",
        rows,
        args,
    )


if __name__ == "__main__":
    main()
