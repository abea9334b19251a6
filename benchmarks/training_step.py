"""SimCLR training on 2 cores: contrast's trainer against lightly's example script with its data loader.

Same images, policy, encoder, head, loss, optimiser and batch; each side in a process of its own, since freed memory
is kept or not for a whole process, taking turns step by step. Against the limit too: forward and backward of the same
model on ready-made tensors. First of all both must reach the same loss after the same number of steps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import harness

harness.with_peers("lightly==1.6.0")

import torch  # noqa: E402
from inputs import photographs, specs  # noqa: E402
from lightly.loss import NTXentLoss  # noqa: E402
from lightly.models.modules import SimCLRProjectionHead  # noqa: E402
from lightly.transforms import SimCLRTransform  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from cl_core.allocator import keep_freed_memory  # noqa: E402
from cl_core.assembly import build_method  # noqa: E402
from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig  # noqa: E402
from cl_core.data.ingest import SplitRule, ingest  # noqa: E402
from cl_core.data.loader import Batch  # noqa: E402
from cl_core.data.store import Split, Store  # noqa: E402
from cl_core.registry import load_registry  # noqa: E402
from cl_core.training.processes import Devices  # noqa: E402
from cl_core.training.trainer import Run, choose  # noqa: E402
from cl_core.training.update import deterministic  # noqa: E402
from cl_core.types import Example, Method  # noqa: E402
from plugins.augmentations.recipes import simclr_cifar  # noqa: E402

SIDE, TEMPERATURE, LR, MOMENTUM, DECAY = 32, 0.5, 0.06, 0.9, 5e-4
SETTINGS = {"resnet18": (128, 2.2, 0.92), "resnet8": (512, 3.5, 0.80)}  # batch, asked against lightly, of the limit
IMAGES = 5120
LOSS_STEPS, LOSS_BATCH, SEEDS = 20, 128, (0, 1, 2)
THREADS = 2
LENGTH, SMOKE_LENGTH = 10_000, 100  # steps that a run is said to have: only a long one is compiled
DECISIONS = harness.ENVIRONMENTS / "decisions.json"  # measured once and kept, as in a project
HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

Step = Callable[[], float]


class Pictures(Dataset):
    """The images as a user of lightly has them: Pillow images, made views of in the loader's workers."""

    def __init__(self, images: Tensor) -> None:
        self.images = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
        self.transform = SimCLRTransform(
            input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0, min_scale=0.08, normalize=None
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(self.images[row])


def store_of(images: Tensor, folder: Path) -> Split:
    """The same images in a store of ours."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    source = [Example(key=f"{row:06d}", image=array, label=None, split="train") for row, array in enumerate(arrays)]
    ingest(source, folder, size=SIDE, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(folder).split("train")


def simclr(encoder: str, seed: int) -> Method:
    """Our SimCLR with the recipe simclr-cifar, but bilinear crops as the peers' are."""
    experiment = {
        "method": {"name": "simclr", "options": {"out_dim": 128}},
        "encoder": {"name": encoder, "options": {}},
        "loss": {"name": "nt_xent", "options": {"temperature": TEMPERATURE}},
        "score": None,
        "chains": {"augment": specs(simclr_cifar()["augment"], interpolation="bilinear")},
        "image_size": SIDE,
    }
    return build_method(load_registry(), experiment, seed=seed)


def run_of(split: Split, encoder: str, batch: int, seed: int, steps: int) -> Run:
    """What our trainer trains."""
    epochs = max(1, -(-steps // (len(split) // batch)))
    return Run(
        method=simclr(encoder, seed),
        split=split,
        optimizer=OptimizerConfig(name="sgd", lr=LR, momentum=MOMENTUM, weight_decay=DECAY),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=0, final_lr=1.0),
        train=TrainConfig(batch_size=batch, knn_every=0),
        seed=seed,
        device=torch.device("cpu"),
        devices=Devices(),
    )


def ours(images: Tensor, encoder: str, batch: int, seed: int, length: int) -> Iterator[float]:
    """Train; yields the loss of every step. The choice of precision, layout and compilation is our own."""
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="contrast-bench-"))
    run = run_of(store_of(images, folder / "store"), encoder, batch, seed, length)
    choice = choose(run, next(iter(run.loader(0, 1))), DECISIONS, _to_stderr)
    update = run.updater(choice)
    with deterministic():
        for batch_ in run.loader(0, length):
            yield float(update(run.views(batch_), batch_.step).loss.detach())


def ready(images: Tensor, encoder: str, batch: int, seed: int, length: int) -> Iterator[float]:
    """The limit: forward and backward alone, on the views of one batch made before, at our choice."""
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="contrast-bench-"))
    run = run_of(store_of(images, folder / "store"), encoder, batch, seed, length)
    first: Batch = next(iter(run.loader(0, 1)))
    update = run.updater(choose(run, first, DECISIONS, _to_stderr))
    views = run.views(first).map(update._placed)
    while True:
        update.method.zero_grad()
        with update.fabric.autocast():
            loss = update.method(views).loss
        loss.backward()
        yield float(loss.detach())


def lightly(images: Tensor, encoder: str, batch: int, seed: int, length: int, *, bf16: bool = False) -> Iterator[float]:
    """The example script of lightly's documentation, with our encoder; yields the loss of every step."""
    method = simclr(encoder, seed)
    torch.manual_seed(seed)
    backbone, width = copy.deepcopy(method.encoder), method.encoder.out_dim
    model = nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128))
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    loader = DataLoader(Pictures(images), batch_size=batch, shuffle=True, drop_last=True, num_workers=THREADS)
    for _ in range(length):
        for view_a, view_b in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = criterion(model(view_a), model(view_b))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield float(loss.detach())


def lightly_bf16(images: Tensor, encoder: str, batch: int, seed: int, length: int) -> Iterator[float]:
    """The same under bf16 autocast."""
    return lightly(images, encoder, batch, seed, length, bf16=True)


SIDES = {"contrast": ours, "lightly": lightly, "lightly-bf16": lightly_bf16, "ready": ready}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Side:
    """One side in a process of its own, which makes a step, or some, when asked."""

    def __init__(self, name: str, encoder: str, batch: int, seed: int = 0, length: int = LENGTH) -> None:
        words = [name, encoder, str(batch), str(seed), str(length)]
        command = [sys.executable, __file__, "--side", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def steps(self, count: int) -> list[float]:
        """Make so many steps; their losses."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the side {self.process.args} ended with status {self.process.wait()}")
        return [float(word) for word in answer.split()]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(name: str, encoder: str, batch: str, seed: str, length: str) -> None:
    """What a side's process does: so many steps per line of input."""
    torch.set_num_threads(THREADS)
    losses = SIDES[name](photographs(IMAGES, SIDE), encoder, int(batch), int(seed), int(length))
    for line in sys.stdin:
        print(*(next(losses) for _ in range(int(line))), flush=True)


def measure(encoder: str, args: harness.Arguments) -> list[harness.Row]:
    """The rows of one encoder."""
    batch, asked, share = SETTINGS[encoder]
    steps = 1 if encoder == "resnet18" or args.smoke else 4  # in a round
    names = ["contrast", "lightly", "ready"] + (["lightly-bf16"] if HAS_BF16 else [])
    sides = {name: Side(name, encoder, batch, length=SMOKE_LENGTH if args.smoke else LENGTH) for name in names}
    try:
        times = harness.side_by_side(
            {name: lambda side=side: side.steps(steps) for name, side in sides.items()}, rounds=args.rounds(7)
        )
    finally:
        for side in sides.values():
            side.close()
    pair = {"contrast": times["contrast"], harness.named("lightly"): times["lightly"]}
    limit = {"contrast": times["contrast"], "forward and backward alone": times["ready"]}
    count = batch * steps
    rows = [
        harness.faster(f"SimCLR, {encoder}, batch {batch}", pair, per="images", count=count, target=asked),
        harness.faster(f"SimCLR, {encoder}, batch {batch}", limit, per="images", count=count, target=share),
    ]
    if HAS_BF16:
        both = {"contrast": times["contrast"], f"{harness.named('lightly')} with bf16": times["lightly-bf16"]}
        rows.append(harness.faster(f"SimCLR, {encoder}, batch {batch}", both, per="images", count=count))
    return rows


def compare_losses(seeds: tuple[int, ...]) -> str:
    """Mean loss of the last 10 of LOSS_STEPS steps of resnet8 on each side; asserts that they agree within noise."""
    ends: dict[str, list[float]] = {}
    for name in ("contrast", "lightly"):
        for seed in seeds:
            side = Side(name, "resnet8", LOSS_BATCH, seed, SMOKE_LENGTH)
            ends.setdefault(name, []).append(statistics.mean(side.steps(LOSS_STEPS)[-10:]))
            side.close()
    means = {name: statistics.mean(values) for name, values in ends.items()}
    noise = max(statistics.stdev(values) for values in ends.values())
    text = ", ".join(f"{name} {means[name]:.3f} ± {statistics.stdev(values):.3f}" for name, values in ends.items())
    print(f"loss after {LOSS_STEPS} steps over {len(seeds)} seeds: {text}", flush=True)
    assert abs(means["contrast"] - means["lightly"]) < max(3 * noise, 0.05), text
    return text


def main() -> None:
    """Measure both encoders; in a smoke run only the small one."""
    if "--side" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--side", nargs=5)
        serve(*parser.parse_args().side)
        return
    args = harness.arguments(__doc__)
    began = time.perf_counter()
    losses = "" if args.smoke else compare_losses(SEEDS)
    rows = [row for encoder in (["resnet8"] if args.smoke else SETTINGS) for row in measure(encoder, args)]
    bf16 = "" if HAS_BF16 else " This processor has no bf16 instructions, so lightly under bf16 was not measured."
    harness.finish(
        __file__,
        f"""Images per second of whole training steps (loading, views, forward, backward, update) at 32 px, SimCLR's
        CIFAR policy, {THREADS} threads; lightly with {THREADS} loader workers, as its example script; ours at the
        precision, layout and compilation that `auto` chose. The second row per encoder is the share of the speed of
        forward and backward alone on ready-made tensors. Loss of resnet8 at batch {LOSS_BATCH} after {LOSS_STEPS}
        steps: {losses} ({len(SEEDS)} seeds).{bf16}""",
        rows,
        args,
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
