"""How fast this machine is at what a run does, and how long the run will take. Arithmetic; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_core.config import FinetuneConfig
from cl_core.evaluation.draws import ALL, draws_of
from pipelines.project.look import Images
from pipelines.project.machine import Machine

if TYPE_CHECKING:
    from pipelines.project.measured import Row
    from pipelines.project.start import Start

# Seconds in which stages do nothing that depends on the images: they start, import, compile, draw. ingest, views,
# pretrain and embed from one run on two cores with 2,062 images of 100 pixels (3.6, 12.5, 21 less 12 for choosing the
# precision, 6.0, their work included); the others estimated after these.
STARTS = {
    "flow": 8.0,
    "ingest": 3.0,
    "views": 12.0,
    "pretrain": 9.0,
    "embed": 5.0,
    "linear_eval": 5.0,
    "finetune": 6.0,
    "report": 7.0,
}
# What the six penalties of evaluation.linear.l2 cost, in probes: each search starts from the solution before it (first
# stage, 1,428 images: 6.2 s of one core, where six times the estimate of one is 9.8 s).
PENALTIES = 4
PROBED_VALUES = 2048  # per stage, at most
ONLINE_BANK, ONLINE_QUERIES = 2000, 1000  # of the online kNN, see cl_core.training.probe
RUNS = 2.0  # trainings per rate and draw, in full lengths: on two folds, stopped early, and once on all labels


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second, and how long a linear probe takes.

    training: pretraining steps, with their views. reading: ingest. encoding: features without gradient. tuning:
    fine-tuning steps. probing: seconds for a linear probe with one penalty at one stage, on `probed` images. stages: of
    the encoder. measured: on this machine and these images.
    """

    training: float
    reading: float
    encoding: float
    tuning: float
    probing: float
    probed: int
    stages: int
    measured: bool

    @classmethod
    def assumed(cls, machine: Machine, row: Row) -> Speed:
        """Where nothing was tried: what resnet8 of width 16 does per core (half of what a quiet one does), at 32 px.

        The GPU's figures are cautious guesses for resnet18 on a small card.
        """
        view, image = (32 / (row.view or row.size)) ** 2, (32 / row.size) ** 2  # how much smaller 32 px are
        unit, count = (1500.0, machine.gpus) if machine.gpus else (140.0, machine.cores)
        return cls(
            training=unit * count * view,
            reading=150.0 * machine.cores,
            encoding=6 * unit * count * image,
            tuning=2 * unit * count * image,
            probing=1.0,
            probed=2000,
            stages=4 if machine.gpus else 3,
            measured=False,
        )


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds. pretraining: the training loop with its online kNN. total: everything `contrast run` does."""

    pretraining: float
    total: float


def online_seconds(images: Images, speed: Speed) -> float:
    """Of one online evaluation: kNN, or without labels images and two crops of each."""
    queries = min(images.validation, ONLINE_QUERIES)
    return (min(images.train, ONLINE_BANK) + queries if images.classes else 3 * queries) / speed.encoding


def duration(images: Images, start: Start, speed: Speed) -> Duration:
    """What a run with these settings takes."""
    evaluations = start.epochs // start.knn_every + 2  # the first before training, the last at its end
    pretraining = start.images_seen / speed.training + evaluations * online_seconds(images, speed)
    everything = images.train + images.validation + images.test
    total = sum(STARTS.values()) + images.count / speed.reading + pretraining + everything / speed.encoding
    if images.classes > 1:
        total += everything / speed.encoding + _linear(images, speed) + _finetune(images, start, speed)
    return Duration(pretraining=pretraining, total=total)


def _probe(count: int, speed: Speed) -> float:
    """Seconds of one probe: a pass over the images costs (images + values) * values * classes."""
    return speed.probing * (count + PROBED_VALUES) / (speed.probed + PROBED_VALUES)


def _linear(images: Images, speed: Speed) -> float:
    """Every stage of the trained and of an untrained encoder, and the pixels, which have twice the values."""
    return (2 * speed.stages + 2) * PENALTIES * _probe(images.train, speed)


def _finetune(images: Images, start: Start, speed: Speed) -> float:
    """Pretrained and from scratch, for every draw of every budget and every rate; then probes of both and of pixels."""
    settings = FinetuneConfig.model_validate(
        {"draws": start.finetune["draws"], "max_steps": start.finetune["max_steps"]}
    )
    seconds, smallest = 0.0, 0
    for budget in start.finetune["per_class"]:
        labels = images.train if budget == ALL else min(images.train, budget * images.classes)
        smallest = smallest or labels
        draws = 1 if budget == ALL else draws_of(labels, smallest, settings.draws)
        batch = min(settings.batch_size, labels)
        steps = min(max(settings.epochs * (labels // batch), settings.min_steps), settings.max_steps)
        runs = RUNS * len(start.finetune["lr"]) if labels > images.classes else 1
        seconds += 2 * draws * (runs * steps * batch / speed.tuning + images.test / speed.encoding)
        seconds += draws * (2 * speed.stages + 1) * PENALTIES * _probe(labels, speed)
    return seconds
