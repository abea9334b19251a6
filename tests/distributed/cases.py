"""What the tests let each process do. Alone, the same functions are the references."""

import torch
import torch.nn.functional as F
from test_every_part import REGISTRY, build_method
from toy_training import Contrast, Listener, after, quiet, train

from cl_core.config import OptimizerConfig
from cl_core.data.sampling import SampleRng, part_of
from cl_core.data.store import Store
from cl_core.distributed import alone, gather, rank, total, world_size
from cl_core.errors import CollapseError, ContrastError
from cl_core.testing import sample_images
from cl_core.training.gradients import backward
from cl_core.training.optim import Schedule
from cl_core.training.precision import Choice
from cl_core.training.processes import Devices, means
from cl_core.training.shards import whole
from cl_core.training.update import Updater
from cl_core.types import JointEmbedding, StepOutput, Views

PLAIN = Choice(precision="fp32", channels_last=False)
BATCH, STEPS, RATE = 16, 3, 0.003


def own(batch):
    """This process's rows of a batch."""
    return batch[part_of(len(batch), rank(), world_size())]


def squares_of_gathered(rows):
    """A loss that depends on all rows at once, and its gradient for the own ones; rows (N, D) of the whole batch."""
    mine = own(rows).requires_grad_()
    everything = gather(mine)
    loss = (everything @ everything.T).square().sum()
    loss.backward()
    return everything.detach(), mine.grad / world_size()


def own_anchors(rows):
    """The same loss as the mean over processes of what each one's rows give."""
    mine = own(rows).requires_grad_()
    loss = (mine @ gather(mine).T).square().sum() * world_size()
    loss.backward()
    return mine.grad / world_size()


def untrained(name):
    """A built-in method, small, without dropout, of which every process draws its own."""
    entry = next(entry for entry in REGISTRY.entries("method") if entry.name == name)
    torch.manual_seed(0)
    method = build_method(entry)
    for part in method.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return method


def train_method(name, options, strategy="auto", optimizer="sgd"):
    """The state of a method after three steps, and what it logged."""
    method = untrained(name)
    for option, value in options.items():
        setattr(method, option, value)
    method.prepare(sample_images(8))
    settings = OptimizerConfig(name=optimizer, lr=RATE, clip=10.0)
    schedule = Schedule(peak_lr=RATE, warmup_steps=0, total_steps=STEPS)
    devices = Devices(devices=world_size(), strategy=strategy)
    update = Updater(method, settings, schedule, PLAIN, batch_size=BATCH, seed=0, devices=devices)
    logged = []
    for step in range(STEPS):
        output = update(views_at(method, step), step)
        figures = {key: value.item() for key, value in output.metrics.items()} | {"loss": output.loss.item()}
        logged.append(means(figures))
    return {key: value.detach().clone() for key, value in whole(method.state_dict()).items()}, logged


def views_at(method, step):
    """This process's share of a step's views."""
    rows = own(torch.arange(BATCH))
    images = own(sample_images(BATCH).roll(step, dims=0))
    with torch.no_grad():
        views = method.make_views(images, SampleRng(0, step, rows))
    labels = own(torch.arange(BATCH) % 3) if method.uses_labels else None
    return Views(images=views.images, targets=views.targets, extras=views.extras, labels=labels)


def drawn(name):
    """The views of this process's share of a batch."""
    return views_at(untrained(name), 0)


def loss_gradient(name):
    """Value of a loss part on all rows, and its gradient for the own ones of the first embedding."""
    score = REGISTRY.build("score", "cosine", {})
    loss = REGISTRY.build("loss", name, {}, score=score)
    rng = SampleRng(0, 0, torch.arange(BATCH))
    z_a, z_b = (own(rng.normal(shape=(8,))).requires_grad_() for _ in range(2))
    value = loss(gather(z_a), gather(z_b))
    value.backward()
    return value.detach(), z_a.grad / world_size()  # the sum over processes, which data parallelism averages


class Pairs(JointEmbedding):
    """InfoNCE without batch norm, so that a micro-batch is as good as a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))

    def make_views(self, images, rng):
        return Views(images=(images, images.flip(-1)))

    def embed(self, views):
        return tuple(F.normalize(self.encoder(view), dim=1) for view in views.images)

    def compare(self, embeddings, views):
        z_a, z_b = map(gather, embeddings)
        return StepOutput(loss=F.cross_entropy(z_a @ z_b.T / 0.2, torch.arange(len(z_a))))


def gradient(micro_batch):
    """Of the weights, of all rows, by micro-batches of this process's own."""
    method, devices = Pairs(), Devices(devices=world_size())
    fabric = devices.fabric(PLAIN)
    views = method.make_views(own(sample_images(BATCH)), None)
    backward(method, method, views, fabric, lambda loss: None, micro_batch=micro_batch)
    return method.encoder[1].weight.grad


def sums_and_gradient(values):
    """total() of a value per process, squared, and the gradient; values: one per process."""
    mine = values[rank()].clone().requires_grad_()
    result = total(mine).square()
    result.backward()
    return result.detach(), mine.grad / world_size()


def size_when_alone():
    """World sizes before, inside and after."""
    before = world_size()
    with alone():
        inside = world_size()
    return before, inside, world_size()


class Shared(Contrast):
    """InfoNCE over the images of all processes, which keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def make_views(self, images, rng):
        views = super().make_views(images, rng)
        return Views(images=views.images, extras={"images": images, "drawn": rng.child(7).uniform()})

    def forward(self, views):
        self.seen.append((views.extras["images"], views.extras["drawn"], *views.images))
        own = [F.normalize(self.head(self.encoder(view)), dim=1) for view in views.images]
        z_a, z_b = map(gather, own)
        scores = z_a @ z_b.T / 0.5
        answers = torch.arange(len(scores))
        accuracy = (scores.argmax(dim=1) == answers).float().mean()
        return StepOutput(
            loss=F.cross_entropy(scores, answers), metrics={"accuracy": accuracy}, embedding=own[0].detach()
        )


class Alarm(Listener):
    """Stops the run at the second figures it is told."""

    def on_run_start(self, run):
        self.start(run)

    def on_run_end(self, summary):
        self.end(summary)

    def on_log(self, step, metrics):
        self.log(step, metrics)
        if len(self.calls) == 3:
            raise CollapseError("enough")
        return []  # as pluggy does, a list of what hooks remark


def fit(path, folder, *, stops=None, alarm=False, strategy="auto", **options):
    """Train on the store at `path`, each process in a folder of its own; what was seen, and the error that ended it.

    stops: (process, steps) at which that process is asked to stop.
    """
    torch.manual_seed(0)
    method, listener = Shared(), Alarm()
    stop = after(stops[1], lambda: True) if stops and stops[0] == rank() else lambda: False
    observers = quiet(hooks=listener) if alarm else quiet(trackers=[listener])
    error = None
    try:
        train(
            Store.open(path),
            folder / str(rank()),
            method=method,
            stop=stop,
            observers=observers,
            devices=Devices(devices=world_size(), strategy=strategy),
            **options,
        )
    except ContrastError as caught:
        error = f"{type(caught).__name__}: {caught}"
    return method.seen, error, listener.calls
