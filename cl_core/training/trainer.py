"""Train a method on a split: the loop, and how a run begins, continues and ends.

batch -> views -> forward -> backward -> step -> after_update -> log -> save. Views and order are functions of (seed,
step), so a run that was killed continues from its newest checkpoint to the very bytes of an uninterrupted one. Knows no
method, and evaluates nothing but the online figures of its curves, those of the untrained encoder first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.loader import Batch, Loader
from cl_core.data.resident import near
from cl_core.data.sampling import mix
from cl_core.data.store import Split, to_float
from cl_core.data.views import MaterializedViews, views_of
from cl_core.distributed import gather, rank, world_size
from cl_core.errors import CheckpointError, DataError, Interrupted
from cl_core.measures.diagnostics import collapse_figures
from cl_core.training.checkpoint import Checkpoints
from cl_core.training.optim import Schedule
from cl_core.training.outputs import Result, write_results
from cl_core.training.precision import Choice, choices, decide, decide_compiled, decision_key, emulates_bf16
from cl_core.training.probe import OnlineEvaluation, online_evaluation
from cl_core.training.processes import Devices, anywhere, is_main, means, on_main
from cl_core.training.progress import PlainProgress, Status, Throughput, online_figure
from cl_core.training.shards import load_whole, whole
from cl_core.training.tracking import FIRST_COLUMNS, Observers
from cl_core.training.update import Updater, deterministic
from cl_core.types import Method, RunInfo, StepOutput, Views

PREPARE_IMAGES = 2048
# Enough to time a choice on a CPU: for resnet8 of width 16 at 32 px, on one core of an AMD EPYC, the time per image
# differed by at most 40 % between 64, 128 and 512 images, and the faster memory format was the same in all three.
TRIAL_IMAGES = 64

_PREPARE_STREAM = 0x9E9A


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run's result depends on, besides the recorded choice of precision."""

    method: Method
    split: Split
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    seed: int
    device: torch.device
    devices: Devices
    materialized: MaterializedViews | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return len(self.split) // self.train.batch_size

    @property
    def rates(self) -> Schedule:
        """The learning rate of every step."""
        peak = self.optimizer.peak_lr(self.train.batch_size)
        return Schedule.of(self.schedule, peak, self.steps_per_epoch, self.method.lr_restarts)

    def info(
        self, directory: Path, card: Mapping[str, Any], online: OnlineEvaluation | None, state: Mapping[str, Any] | None
    ) -> RunInfo:
        """What observers are told of the run. directory: of its checkpoints. state: of the checkpoint to go on from."""
        return RunInfo(
            experiment=str(card.get("experiment", "")),
            directory=directory,
            total_steps=self.rates.total_steps if self.method.trains else 0,
            config=card,
            queries=online.queries if online else 0,
            on_no_gain=self.train.on_no_gain,
            logged=state["rows"] if state else (),
        )

    def loader(self, start: int, stop: int) -> Loader:
        """This process's share of the batches of these steps. Raises DataError where the split cannot fill a batch.

        Of an encoded store with their views, so that the next images are decoded while a step computes.
        """
        return Loader(
            self.split,
            batch_size=self.train.batch_size,
            seed=self.seed,
            start=start,
            stop=stop,
            device=self.device,
            views=self.views if self.split.is_encoded else None,
            part=rank(),
            parts=world_size(),
        )

    def views(self, batch: Batch) -> Views:
        """What the method looks at; with labels only if it asks for them."""
        if batch.views is not None:
            return batch.views
        if self.materialized is None:
            views = views_of(self.method, batch.images, self.seed, batch.epoch, batch.rows)
        else:
            views = self.materialized.views(batch.epoch, batch.rows)
        return replace(views, labels=batch.labels) if self.method.uses_labels else views

    def areas(self) -> list[float]:
        """How large the views are, as shares of an image; see `Views.areas`."""
        rows = torch.arange(min(2, len(self.split)))
        images, labels = self.split.floats(rows, self.device), torch.from_numpy(self.split.labels[rows])
        batch = Batch(images=images, labels=labels.to(self.device), rows=rows.to(self.device), epoch=0, step=0)
        return self.views(batch).areas(self.split.image_size)

    def updater(self, choice: Choice, method: Method | None = None) -> Updater:
        """What makes the steps, of the run's method or of a copy of it."""
        return Updater(
            method or self.method,
            self.optimizer,
            self.rates,
            choice,
            batch_size=self.train.batch_size,
            seed=self.seed,
            micro_batch=self.train.micro_batch,
            devices=self.devices,
        )


class Trainer:
    """The loop, the figures it logs, and the state from which it continues."""

    def __init__(
        self, run: Run, choice: Choice, checkpoints: Checkpoints, online: OnlineEvaluation | None = None
    ) -> None:
        """online: evaluated before the first step, every `train.knn_every` epochs, half way and at the end."""
        self.run, self.choice, self.checkpoints, self.online = run, choice, checkpoints, online
        self._copy = copy.deepcopy(run.method) if run.devices.shards and is_main() else None
        self.update = run.updater(choice)
        self.rates = run.rates
        self.step, self.total_steps = 0, run.rates.total_steps
        self.rows: list[dict[str, float]] = []
        self.remarks: list[dict[str, Any]] = []
        self.latest: dict[str, float] = {}
        self.throughput = Throughput()

    def fit(self, observers: Observers, stop: Callable[[], bool]) -> None:
        """Train to the last step. `stop` is asked after every step; true, in any process, means save and raise
        Interrupted."""
        if self.step == 0 and self.online is not None:
            self.log_untrained(observers)
        loader = self.run.loader(self.step, self.total_steps)
        for batch in loader:
            output = self.update(self.run.views(batch), self.step)
            self.step += 1
            if self.is_logged:
                self.log(output, observers)
            self.throughput.update(self.run.train.batch_size, loader.waited)
            stopping = anywhere(stop())  # before anything is shown: who reads a step's line may count on a clean stop
            observers.show(self.status())
            if stopping or self.is_last or self.step % self.run.train.save_every == 0:
                self.save()
            if stopping and not self.is_last:
                raise Interrupted(
                    f"stopped at step {self.step} of {self.total_steps}; run the same command to continue"
                )

    @property
    def is_last(self) -> bool:
        """Whether all steps are made."""
        return self.step == self.total_steps

    @property
    def is_logged(self) -> bool:
        """Whether the figures of the step just made are kept."""
        return self.is_last or self.step % self.run.train.log_every == 0 or self.is_evaluated

    @property
    def is_evaluated(self) -> bool:
        """Whether the online evaluation is due after the step just made."""
        every = self.run.train.knn_every * self.run.steps_per_epoch
        half_way = self.step == self.total_steps // 2
        return self.online is not None and (self.is_last or half_way or self.step % every == 0)

    @property
    def untrained(self) -> dict[str, float]:
        """The online figures from before the first step, {} where there are none."""
        first = self.rows[0] if self.rows else {"step": 1}
        return {} if first["step"] else {name: value for name, value in first.items() if name not in FIRST_COLUMNS}

    def log_untrained(self, observers: Observers) -> None:
        """The online figures before the first step: the first row of the curves, which has no loss."""
        method = self.whole_method()
        on_main(lambda: self._tell({"epoch": 0.0}, None, method, observers))
        observers.say(f"untrained: {online_figure(self.latest)}")

    def log(self, output: StepOutput, observers: Observers) -> None:
        """Keep the figures of the step just made, of all processes, and tell the observers."""
        figures = {name: float(value) for name, value in output.metrics.items()}
        figures = means(figures | {"loss": float(output.loss.detach())})
        loss = figures.pop("loss")
        figures |= {"epoch": self.step / self.run.steps_per_epoch, "loss": loss, "lr": self.rates.lr_at(self.step - 1)}
        embedding = None if output.embedding is None else gather(output.embedding)
        method = self.whole_method() if self.is_evaluated else None
        on_main(lambda: self._tell(figures, embedding, method, observers))

    def whole_method(self) -> Method:
        """The method as one process can use it; where its weights lie in pieces a copy, up to date in the first."""
        if not self.run.devices.shards:
            return self.run.method
        state = whole(self.run.method.state_dict())
        if self._copy is None:
            return self.run.method
        self._copy.load_state_dict(state)
        return self._copy

    def _tell(
        self, figures: dict[str, float], embedding: Tensor | None, method: Method | None, observers: Observers
    ) -> None:
        """Add what one process can measure for all."""
        if embedding is not None:
            figures |= collapse_figures(embedding)
        if self.online is not None and method is not None:
            figures |= self.online(method)
        self.rows.append({"step": self.step, **figures})
        self.latest.update(figures)
        for text in observers.log(self.step, figures):
            observers.say(f"at step {self.step:,} of {self.total_steps:,}: {text}")
            self.remarks.append({"step": self.step, "text": text})

    def status(self) -> Status:
        """Where the run stands."""
        speed = self.throughput.images_per_second
        return Status(
            step=self.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.run.steps_per_epoch,
            metrics=self.latest,
            untrained=self.untrained,
            images_per_second=speed,
            data_wait_share=self.throughput.data_wait_share,
            seconds_left=(self.total_steps - self.step) * self.run.train.batch_size / speed,
        )

    def save(self) -> None:
        """Write a checkpoint. Randomness and order are functions of the step, so there is no state of theirs."""
        state = {
            "step": self.step,
            "method": whole(self.run.method.state_dict()),
            "optimizer": whole(self.update.optimizer.state_dict()),
            "choice": asdict(self.choice),
            "rows": self.rows,
            "remarks": self.remarks,
            "throughput": self.throughput.state_dict(),
        }
        on_main(lambda: self.checkpoints.save(self.step, state))

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of this run. Raises CheckpointError where it does not fit."""
        try:
            load_whole(self.run.method, self.update.optimizer, state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.checkpoints.directory} does not fit the model; delete that folder to start "
                f"afresh ({' '.join(str(error).split())})"
            ) from error
        self.step, self.rows, self.remarks = state["step"], list(state["rows"]), list(state["remarks"])
        self.latest = {name: value for row in self.rows for name, value in row.items()}
        self.throughput.load_state_dict(state["throughput"])


def pretrain(
    method: Method,
    split: Split,
    *,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    train: TrainConfig,
    seed: int,
    out: Path,
    checkpoints: Path,
    card: Mapping[str, Any],
    observers: Observers,
    validation: Split | None,
    materialized: MaterializedViews | None,
    decisions: Path,
    devices: Devices | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train the method, from the newest checkpoint if there is one, and write what is left of it to `out`.

    checkpoints: a folder of this run's own, named by a fingerprint of all that the result depends on; emptied of
    checkpoints when the outputs are complete. card: goes into encoder.json; its "experiment" names the run to
    observers. decisions: where measured choices of precision are kept. devices: what trains, by default the best one
    there is; with several, each of as many processes calls this, and the first writes. Returns the figures of
    metrics.json. A method that does not train leaves the same files after 0 steps.
    Raises DataError (too few images, no labels for a method that needs them), ConfigError (a batch that the processes
    cannot share), CollapseError, CheckpointError, and Interrupted when `stop` says so.
    """
    require_labels(method, split)
    devices = devices or Devices()
    devices.require_even(train.batch_size)
    device = devices.fabric().device
    run = Run(
        method=method,
        split=near(split, device),
        optimizer=optimizer,
        schedule=schedule,
        train=train,
        seed=seed,
        device=device,
        devices=devices,
        materialized=materialized,
    )
    saved = Checkpoints(checkpoints, report=observers.say)
    if not is_main():
        observers = Observers(progress=PlainProgress(lambda text: None))
    evaluates = method.trains and train.knn_every > 0
    online = online_evaluation(run.split, validation, device, observers.say) if evaluates else None
    state = on_main(saved.load_newest) if method.trains else None
    with observers.run(run.info(checkpoints, card, online, state)), deterministic():
        if method.trains:
            trainer = begin(run, saved, state=state, online=online, decisions=decisions, say=observers.say)
            trainer.fit(observers, stop)
            result, trained = outcome(trainer), trainer.whole_method()
        else:
            result, trained = untrained(), method.to(device)
        metrics = on_main(
            lambda: write_results(
                trained, result, out, card=card, split=split, validation=validation, seed=seed, device=device
            )
        )
    on_main(saved.clear)
    return metrics


def require_labels(method: Method, split: Split) -> None:
    """Raise DataError where the method learns from labels and no image has one: it would learn something else."""
    if method.uses_labels and not (split.labels >= 0).any():
        raise DataError(
            f"method {type(method).__name__} learns from class labels, and no training image has one; choose a method "
            f"that needs none, or a data.source with labels, such as an image folder with a folder per class"
        )


def begin(
    run: Run,
    checkpoints: Checkpoints,
    *,
    state: Mapping[str, Any] | None,
    online: OnlineEvaluation | None,
    decisions: Path,
    say: Callable[[str], None],
) -> Trainer:
    """A trainer at the state of a checkpoint, whose choice of precision holds, or, without, prepared for step 0."""
    run.method.to(run.device)
    if state is not None:
        trainer = Trainer(run, Choice(**state["choice"]), checkpoints, online)
        trainer.load(state)
        say(f"continuing after step {trainer.step} of {trainer.total_steps} ({trainer.choice}, as before)")
        return trainer
    loader = run.loader(0, 1)  # refuses a split that is too small, before anything is computed from it
    prepare(run)
    first = next(iter(loader))
    choice = on_main(lambda: choose(run, first, decisions, say))
    trainer = Trainer(run, choice, checkpoints, online)
    length = f"{trainer.total_steps} steps on {torch.get_num_threads()} threads"
    say(f"training for {length}, peak learning rate {run.rates.peak_lr:.6g}, {trainer.choice}")
    return trainer


def prepare(run: Run) -> None:
    """Let the method derive its state from up to PREPARE_IMAGES images, always the same."""
    if type(run.method).prepare is Method.prepare:
        return
    sample = run.split.by_hash(PREPARE_IMAGES)
    torch.manual_seed(mix(run.seed, _PREPARE_STREAM))
    run.method.prepare(to_float(sample.images(torch.arange(len(sample))).to(run.device)))


def untrained() -> Result:
    """What a method that does not train has to tell."""
    return Result(
        training={"steps": 0}, images_seen=0, areas=[], rows=[], untrained={}, remarks=[], timing=Throughput().report()
    )


def outcome(trainer: Trainer) -> Result:
    """What a run that is at its end has to tell."""
    if not trainer.is_last:
        raise RuntimeError(f"{trainer.step} of {trainer.total_steps} steps were made")
    return Result(
        training={"steps": trainer.step, "peak_lr": trainer.rates.peak_lr, **asdict(trainer.choice)},
        images_seen=trainer.step * trainer.run.train.batch_size,
        areas=trainer.run.areas(),
        rows=trainer.rows,
        untrained=trainer.untrained,
        remarks=trainer.remarks,
        timing={**trainer.throughput.report(), "threads": torch.get_num_threads()},
    )


def choose(run: Run, first: Batch, decisions: Path, say: Callable[[str], None]) -> Choice:
    """Precision, memory format and compilation, timed on copies of the method where the configuration is open."""
    options = choices(run.train, bf16=not emulates_bf16(run.device))
    views = run.views(first)
    count = TRIAL_IMAGES if run.device.type == "cpu" else len(first.rows)
    few = views.map(lambda tensor: tensor[: min(count, run.train.micro_batch or count)])

    def attempt(choice: Choice, views: Views = few) -> Callable[[], object]:
        update = run.updater(choice, copy.deepcopy(run.method))
        return lambda: update(views, 0)

    shape = [len(views.images), *few.images[0].shape]
    key = decision_key(run.method, shape, run.device, options)
    choice = decide(options, attempt, key=key, path=decisions, device=run.device, report=say)
    if run.train.compile != "auto":
        return choice
    return decide_compiled(
        choice,
        lambda choice: attempt(choice, views),
        steps=run.rates.total_steps,
        key=decision_key(run.method, [len(views.images), *views.images[0].shape], run.device, [choice]),
        path=decisions,
        device=run.device,
        report=say,
    )
