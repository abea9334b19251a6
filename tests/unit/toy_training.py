"""What the tests of training share: a tiny real store, methods with every kind of state, one way to train them."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.training.progress import PlainProgress
from cl_core.training.tracking import Observers
from cl_core.training.trainer import pretrain
from cl_core.types import Encoder, Example, Method, StepOutput, Views

SIZE, TRAIN, VALIDATION, BATCH, EPOCHS = 8, 42, 12, 8, 2
STEPS = EPOCHS * (TRAIN // BATCH)


class Patches:
    """Images of three kinds that differ in colour; `labelled` false gives the same without labels."""

    def __init__(self, labelled=True):
        self.labelled = labelled

    def fingerprint(self):
        return {}

    def __iter__(self):
        for i in range(TRAIN + VALIDATION):
            image = np.random.default_rng(i).integers(0, 100, (SIZE, SIZE, 3))
            image[:, :, i % 3] += 100
            split = "train" if i < TRAIN else "validation"
            yield Example(
                key=str(i), image=image.astype(np.uint8), label=str(i % 3) if self.labelled else None, split=split
            )


class TinyEncoder(Encoder):
    out_dim = 12

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())

    def stages(self, images):
        early = self.stem(images)
        return {"early": early, "late": self.body(early)}


class Contrast(Method):
    """InfoNCE between two noisy views."""

    def __init__(self):
        super().__init__()
        self.encoder = TinyEncoder()
        self.head = nn.Linear(12, 6)

    def make_views(self, images, rng):
        noisy = [images + rng.child(v).normal(std=0.1, shape=images.shape[1:]) for v in range(2)]
        return Views(images=tuple(noisy))

    def forward(self, views):
        z_a, z_b = (self.head(self.encoder(view)) for view in views.images)
        scores = F.normalize(z_a.float(), dim=1) @ F.normalize(z_b.float(), dim=1).T / 0.5
        answers = torch.arange(len(scores), device=scores.device)
        accuracy = (scores.argmax(dim=1) == answers).float().mean()
        return StepOutput(loss=F.cross_entropy(scores, answers), metrics={"accuracy": accuracy}, embedding=z_a.detach())

    def trivial(self):
        return {"loss": 2.0}


class Remembering(Contrast):
    """State of every kind: dropout, a moving average, a queue, something derived from data."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.target = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("colour", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(4, 12))
        self.prepared = 0

    def prepare(self, sample):
        self.prepared += 1
        self.colour.copy_(sample.mean(dim=(0, 2, 3)) + torch.rand(3) / 100)

    def forward(self, views):
        view_a, view_b = (view - self.colour[:, None, None] for view in views.images)
        hidden = self.dropout(self.encoder(view_a))
        with torch.no_grad():
            target = self.target(self.encoder(view_b))
            self.latest = hidden.detach().mean(dim=0)
        loss = (self.head(hidden) - target).square().mean() + (hidden @ self.queue.T).square().mean()
        return StepOutput(loss=loss, metrics={"noise": torch.rand(())}, embedding=hidden.detach())

    @torch.no_grad()
    def after_update(self, progress):
        for average, source in zip(self.target.parameters(), self.head.parameters(), strict=True):
            average.lerp_(source, 0.1 * progress)
        self.queue.copy_(torch.cat([self.latest[None].float(), self.queue[:-1]]))


METHODS = {"contrast": Contrast, "remembering": Remembering}


def make_store(folder, labelled=True):
    ingest(Patches(labelled), folder, size=SIZE, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(folder)


class Listener:
    """Hooks and tracker in one, writing down what it is told."""

    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", run.total_steps))

    def log(self, step, metrics):
        self.calls.append(("log", step))
        self.metrics = dict(metrics)

    def end(self, summary):
        self.calls.append(("end", summary.status, summary.step))


def quiet(said=None, **options):
    return Observers(progress=PlainProgress((said if said is not None else []).append), **options)


def train(store, folder, name="contrast", *, method=None, stop=lambda: False, observers=None, epochs=EPOCHS, **options):
    """Pretrain below `folder` with the fixed settings of this file; returns the folder of outputs."""
    torch.manual_seed(0)
    settings = {
        "batch_size": BATCH,
        "precision": "fp32",
        "channels_last": False,
        "compile": False,
        "log_every": 2,
        "save_every": 3,
    }
    optimizer = {key: options.pop(key) for key in ("lr", "clip") if key in options}
    optimizer |= {"name": options.pop("optimizer")} if "optimizer" in options else {}
    validation = options.pop("validation", store.split("validation"))
    materialized, devices = options.pop("materialized", None), options.pop("devices", None)
    pretrain(
        method if method is not None else METHODS[name](),
        store.split("train"),
        optimizer=OptimizerConfig(**{"lr": 0.1, **optimizer}),
        schedule=ScheduleConfig(epochs=epochs),
        train=TrainConfig(**{**settings, **options}),
        seed=5,
        out=folder / "out",
        checkpoints=folder / "checkpoints",
        card={"experiment": name},
        observers=observers or quiet(),
        validation=validation,
        materialized=materialized,
        decisions=folder / "decisions.json",
        devices=devices,
        stop=stop,
    )
    return folder / "out"


def result(out):
    """The bytes that must not depend on interruptions."""
    names = sorted(path.name for path in out.iterdir() if path.is_file() and path.name != "timing.json")
    return {name: (out / name).read_bytes() for name in names}


def after(steps, action):
    """A `stop` that answers no and, asked for the given time, does something else."""
    asked = iter(range(1, 10_000))
    return lambda: action() if next(asked) == steps else False


def crash():
    raise KeyboardInterrupt("stopped dead")
