"""One trial: pretrain an edited experiment on some images and judge it; results are kept, so none is run twice.

A trial's file is named by a fingerprint of all that its result depends on: the resolved input of its pretraining, the
images and the engine. A trial that was stopped continues from its checkpoint. Reads training and validation images.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cl_core.data.files import read_json, sha256_bytes, write_json
from cl_core.errors import CollapseError
from cl_core.project import Experiment, Project, merge
from cl_core.provenance import Sources
from cl_core.resolve import stage_input
from cl_core.training.probe import online_evaluation
from cl_core.training.progress import Progress
from cl_core.training.tracking import Observers
from pipelines.stages import Stage, Stop, train_encoder
from pipelines.tuning.space import Edit, Space

# What a run is judged by, the first that it has: name in its figures -> in words. All are better when larger.
FIGURES = {
    "knn_top1": "validation kNN",
    "self_match": "self-match",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial gave. score: None where it failed, and `failure` says how. noise: one standard error of the score.

    seconds: of training, over all sittings. units_per_image: the method's cost, see `Method.units`.
    """

    edit: Edit
    images: int
    figure: str | None
    score: float | None
    noise: float
    failure: str
    seconds: float
    units_per_image: float


@dataclass(frozen=True, kw_only=True)
class Data:
    """What trials learn from. digest: of the store. images: of an epoch of the experiment. queries: images that the
    online evaluation judges by."""

    digest: str
    images: int
    queries: int

    @classmethod
    def of(cls, project: Project, start: Experiment, folder: Path) -> Data:
        """folder: for what the trials write."""
        resolved = stage_input(project, start, "pretrain", Sources())
        stage = TrialStage(project.root, start.name, resolved, folder, lambda: False)
        train, validation = stage.pretraining_split(), stage.split("validation")
        online = online_evaluation(train, validation, torch.device("cpu"), lambda line: None)
        return cls(digest=stage.store.digest, images=len(train), queries=online.queries)


class Trials:
    """The trials of one experiment, below `folder`: results as <fingerprint>.json, what is running in `running/`."""

    def __init__(self, space: Space, data: Data, folder: Path, stop: Stop) -> None:
        self._space, self._data, self._folder, self._stop = space, data, folder, stop
        self._sources = Sources()

    def find(self, edit: Edit, images: int) -> Result | None:
        """The result of a trial that was run before."""
        name = self._fingerprint(self._input(edit, images)[1])
        path = self._folder / f"{name}.json"
        if not path.is_file():
            return None
        shutil.rmtree(self._folder / "running" / name, ignore_errors=True)  # where a kill fell just before that
        return Result(**read_json(path))

    def run(self, edit: Edit, images: int, progress: Progress) -> Result:
        """Train, judge and keep the result.

        A collapse, or a batch that memory does not hold, is a result. Raises Interrupted when `stop` says so, and
        ContrastError for what would fail every trial.
        """
        experiment, resolved = self._input(edit, images)
        name = self._fingerprint(resolved)
        running = self._folder / "running" / name
        stage = TrialStage(self._space.project.root, experiment.name, resolved, running / "out", self._stop)
        figures, failure = {}, ""
        try:
            figures = self._train(stage, running / "checkpoints", progress)
        except (CollapseError, torch.OutOfMemoryError) as error:
            failure = f"{type(error).__name__}: {error}"
        result = Result(edit=edit, images=images, failure=failure, **self._judged(figures, stage.out))
        write_json(self._folder / f"{name}.json", asdict(result))
        shutil.rmtree(running)
        return result

    def _train(self, stage: Stage, checkpoints: Path, progress: Progress) -> dict[str, Any]:
        observers = Observers(stage.registry.manager.hook, progress=progress)
        return train_encoder(stage, checkpoints=checkpoints, card={"experiment": stage.experiment}, observers=observers)

    def _judged(self, figures: Mapping[str, float | None], out: Path) -> dict[str, Any]:
        figure, score = judge(figures)
        variance = 0.0 if score is None else score * (1 - score) / self._data.queries
        return {
            "figure": figure,
            "score": score,
            "noise": math.sqrt(variance),
            "seconds": read_json(out / "timing.json")["seconds"] if figures else 0.0,
            "units_per_image": read_json(out / "encoder.json")["units_per_image"] if figures else 0.0,
        }

    def _input(self, edit: Edit, images: int) -> tuple[Experiment, dict[str, Any]]:
        """The edited experiment with a whole schedule over so many images, and the input of its pretraining.

        Fewer images than an epoch has are an epoch over some of them.
        """
        start = self._space.start.config
        limit = images if images < self._data.images and start.labels is None else None
        epochs = max(1, round(images / (limit or self._data.images)))
        warmup = epochs * start.schedule.warmup_epochs / start.schedule.epochs
        short = {
            "schedule": {"epochs": epochs, "warmup_epochs": warmup},
            "train": {"knn_every": epochs, "trackers": [], "on_no_gain": "warn"},
        }
        experiment = self._space.experiment(merge(edit, short))
        resolved = stage_input(self._space.project, experiment, "pretrain", self._sources)
        if limit is not None:
            resolved["config"]["subset"] = limit
        return experiment, resolved

    def _fingerprint(self, resolved: Mapping[str, Any]) -> str:
        return sha256_bytes(json.dumps([resolved, self._data.digest], sort_keys=True).encode())[:16]


class TrialStage(Stage):
    """Pretraining with an input that nobody resolved, in a folder of its own."""

    def __init__(self, project: Path, experiment: str, resolved: dict[str, Any], out: Path, stop: Stop) -> None:
        self._out = out
        super().__init__(project, "pretrain", experiment, stop, resolved)

    def folder(self, stage: str) -> Path:
        """Where it writes."""
        return self._out


def judge(figures: Mapping[str, float | None]) -> tuple[str | None, float | None]:
    """The figure that a run is judged by, and its last value; none where it has none of FIGURES."""
    for name in FIGURES:
        value = figures.get(name)
        if value is not None:
            return name, value
    return None, None
