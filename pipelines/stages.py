"""One function per stage: read the resolved file, call the engine, write the outputs. No maths, no Prefect, no DVC.

What needs torch is imported by the stages that use it: ingest does without, and without its 500 MB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from cl_core.allocator import keep_freed_memory
from cl_core.data.files import read_json, sha256_bytes, sha256_file, write_json
from cl_core.errors import ConfigError, did_you_mean
from cl_core.registry import Registry, load_registry
from cl_core.resolve import RESOLVED, RUN_LIST, write_resolved
from pipelines.planning import RunSettings
from pipelines.ranks import Place

if TYPE_CHECKING:
    import torch

    from cl_core.data.store import Split
    from cl_core.data.views import MaterializedViews
    from cl_core.training.processes import Devices
    from cl_core.training.tracking import Observers
    from cl_core.types import Method, Representation

DATASET = Path("artifacts/dataset")
RUNS = Path("artifacts/runs")
SPLITS = ("train", "validation", "test")

Stop = Callable[[], bool]
Model = TypeVar("Model", bound=BaseModel)


def run_stage(project: Path, stage: str, experiment: str | None, stop: Stop = lambda: False) -> None:
    """Run one stage of a project. `stop` is polled by training; true means save and raise Interrupted.

    Raises ConfigError for an unknown stage or experiment and for a stage that has not been resolved.
    """
    once: dict[str, Callable[[Path], None]] = {"resolve": resolve, "ingest": ingest, "report": report}
    if stage in once:
        once[stage](project)
        return
    if stage not in PER_EXPERIMENT:
        known = [*once, *PER_EXPERIMENT]
        raise ConfigError(f"no stage is called {stage!r}{did_you_mean(stage, known)}; stages: {', '.join(known)}")
    if experiment is None:
        raise ConfigError(f"stage {stage} runs per experiment; name one: contrast stage {stage} EXPERIMENT")
    PER_EXPERIMENT[stage](Stage(project, stage, experiment, stop))


class Stage:
    """What a stage of an experiment works with: its resolved input, the parts, the images, its folder."""

    def __init__(
        self, project: Path, stage: str, experiment: str, stop: Stop, resolved: dict[str, Any] | None = None
    ) -> None:
        """resolved: the stage's input; by default what `resolve` has written."""
        from cl_core.data.store import Store

        keep_freed_memory()
        self.project, self.name, self.experiment, self.stop = project, stage, experiment, stop
        self.resolved = resolved or _read_resolved(project, RESOLVED / experiment / f"{stage}.json", stage)
        self.config: dict[str, Any] = self.resolved["config"]
        self.registry: Registry = load_registry(self.config["block"])
        self.store = Store.open(project / DATASET)
        self.seed: int = self.config["seed"]
        self.out = self.folder(stage)
        self.out.mkdir(parents=True, exist_ok=True)

    def folder(self, stage: str) -> Path:
        """Where a stage of this experiment writes."""
        return self.project / RUNS / self.experiment / stage

    def split(self, name: str) -> Split:
        """The images of a split; training images only as many as data.subset allows."""
        split = self.store.split(name)
        limit = self.config["subset"]
        return split if name != "train" or limit is None else split.by_hash(limit)

    def pretraining_split(self) -> Split:
        """The training images that pretraining may see: all, or those whose labels the experiment's `labels` allows."""
        split, share = self.split("train"), self.config["labels"]
        if share is None or not (split.labels >= 0).any():  # pretraining says that it needs labels
            return split
        from cl_core.evaluation.draws import Drawing

        return split.select(Drawing(split.keys, split.labels, split.groups).share(share))

    def method(self, **changes: Any) -> Method:
        """The untrained method, the same each time. changes: parts that take the place of configured ones."""
        from cl_core.assembly import build_method

        return build_method(self.registry, self.config | changes, seed=self.seed)

    def trained_method(self) -> Method:
        """The method as pretraining left it, its heads and moving averages included."""
        from cl_core.evaluation.features import load_weights

        method = self.method()
        load_weights(method, self.folder("pretrain") / "method.safetensors", "method")
        return method

    def trained_representation(self) -> Representation:
        """The untrained method's representation, filled with the pretrained encoder."""
        from cl_core.evaluation.features import load_weights

        representation = self.method().representation()
        load_weights(representation, self.folder("pretrain") / "encoder.safetensors")
        return representation

    @property
    def yardstick_key(self) -> dict[str, Any]:
        """What decides an untrained encoder and its input: its spec and source, the input's name, the seed."""
        part = next(part for part in self.resolved["parts"] if part["kind"] == "encoder")
        input_name = self.method().representation().input_name
        return {"encoder": self.config["encoder"], "part": part, "input": input_name, "seed": self.seed}

    @property
    def data_key(self) -> dict[str, Any]:
        """What decides images and labels, and the engine that judges them."""
        return {
            "dataset": self.store.digest,
            "subset": self.config["subset"],
            "engine": self.resolved["engine"],
        }

    @property
    def device(self) -> torch.device:
        """The GPU if there is one."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve(project: Path) -> None:
    """Bring artifacts/resolved/ and runs.yaml up to date and say what changed.

    Raises ConfigError where DVC has begun with a list of runs that is no longer right.
    """
    changed = write_resolved(project)
    print(f"resolved: {len(changed)} files changed" + "".join(f"\n  {path}" for path in changed))
    if RUN_LIST in changed and "DVC_STAGE" in os.environ:
        raise ConfigError(
            f"{RUN_LIST} did not list the runs of these settings and has been brought up to date; DVC had read it "
            f"before, so run the same command again"
        )


def ingest(project: Path) -> None:
    """Source -> store."""
    from cl_core.data.ingest import SplitRule
    from cl_core.data.ingest import ingest as run_ingest
    from cl_core.project import build_source

    config = _read_resolved(project, RESOLVED / "ingest.json", "ingest")["config"]
    source = build_source(load_registry(config["block"]), config["source"], project)
    run_ingest(
        source,
        project / DATASET,
        size=config["size"],
        splits=SplitRule(**config["splits"]),
        source_spec=config["source"],
        max_shorter_side=config["max_shorter_side"],
        max_pixels=config["max_pixels"],
        duplicates=config["duplicates"],
        report=_say,
    )


def views(stage: Stage) -> None:
    """Store -> view plan, preview, statistics, and the views themselves where they are materialised."""
    from cl_core.assembly import build_chains, build_view_maker
    from cl_core.data.views import write_views

    config = stage.config
    write_views(
        build_view_maker(stage.registry, config, seed=stage.seed),
        build_chains(stage.registry, config["chains"]),
        stage.pretraining_split(),
        stage.out,
        seed=stage.seed,
        plan={"method": config["method"], "chains": config["chains"], "dataset": stage.store.digest},
        preview=config["preview"],
        materialize=config["materialize"],
    )


def pretrain(stage: Stage) -> None:
    """Store and view plan -> encoder."""
    from cl_core.data.views import MaterializedViews
    from cl_core.training.tracking import Observers

    trackers = [stage.registry.build("tracker", spec["name"], spec["options"]) for spec in stage.config["trackers"]]
    plan = stage.folder("views") / "plan.json"
    fingerprint = _fingerprint(stage.resolved, stage.store.digest, sha256_file(plan))
    train_encoder(
        stage,
        checkpoints=stage.project / ".contrast" / "checkpoints" / f"pretrain@{stage.experiment}" / fingerprint,
        card={"experiment": stage.experiment, "dataset": stage.store.digest, "resolved": stage.resolved},
        observers=Observers(stage.registry.manager.hook, trackers),
        materialized=MaterializedViews.open(stage.folder("views")),
        devices=_devices(stage.project),
    )


def train_encoder(
    stage: Stage,
    *,
    checkpoints: Path,
    card: Mapping[str, Any],
    observers: Observers,
    materialized: MaterializedViews | None = None,
    devices: Devices | None = None,
) -> dict[str, Any]:
    """Pretrain as a stage's input says; returns the figures of metrics.json. The rest: `trainer.pretrain`."""
    from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from cl_core.training.trainer import pretrain as run_pretrain

    return run_pretrain(
        stage.method(),
        stage.pretraining_split(),
        optimizer=_section(OptimizerConfig, stage.config["optimizer"]),
        schedule=_section(ScheduleConfig, stage.config["schedule"]),
        train=_section(TrainConfig, stage.config["train"]),
        seed=stage.seed,
        out=stage.out,
        checkpoints=checkpoints,
        card=card,
        observers=observers,
        validation=stage.split("validation"),
        materialized=materialized,
        decisions=stage.project / ".contrast" / "decisions.json",
        devices=devices,
        stop=stage.stop,
    )


def embed(stage: Stage) -> None:
    """Encoder -> features of every stage, their health without labels, and a second look for leaks between splits."""
    from cl_core.data.screening import read_pairs
    from cl_core.evaluation.features import Features, extract
    from cl_core.evaluation.health import health
    from cl_core.evaluation.look_alikes import look_alikes, told

    representation = stage.trained_representation().to(stage.device)
    summary: dict[str, Any] = {"input": representation.input_name, "splits": {}}
    averages: dict[str, Features] = {}
    for name in SPLITS:
        found = extract(
            representation,
            stage.split(name),
            max_values=stage.config["max_values"],
            batch_size=stage.config["batch_size"],
            device=stage.device,
        )
        found.save(stage.out / f"{name}.safetensors")
        averages[name] = replace(found, probe={})  # the rest is large
        summary["splits"][name] = len(found)
        summary["stages"] = found.dims
        _say(f"{len(found)} {name} images, values per stage: {found.dims}")
    known = {(pair.key, pair.other) for pair in read_pairs(stage.store.path)}
    alike = look_alikes(averages, known, stage.device)
    write_json(stage.out / "look_alikes.json", alike)
    _say(told(alike))
    write_json(stage.out / "embed.json", summary)
    trained, untrained = stage.trained_method(), stage.method()
    images = stage.split("train"), stage.split("validation")
    figures = health(trained, untrained, *images, batch_size=stage.config["batch_size"], device=stage.device)
    write_json(stage.out / "health.json", figures)


def linear_eval(stage: Stage) -> None:
    """Features -> per-stage linear probe and kNN, beside the random-init and raw-pixel yardsticks."""
    from cl_core.config import KnnConfig, LinearConfig
    from cl_core.evaluation.features import Features
    from cl_core.evaluation.linear import linear_eval as run_linear_eval
    from cl_core.evaluation.yardsticks import Yardsticks, linear_baselines

    linear, knn = _section(LinearConfig, stage.config["linear"]), _section(KnnConfig, stage.config["knn"])

    def baselines() -> Mapping[str, Any]:
        return linear_baselines(
            Yardsticks(stage.project / ".contrast" / "yardsticks"),
            data_key=stage.data_key,
            encoder_key=stage.yardstick_key,
            representation=lambda: stage.method().representation().to(stage.device),
            split=stage.split,
            classes=stage.store.classes,
            linear=linear,
            knn=knn,
            batch_size=stage.config["batch_size"],
            device=stage.device,
            report=_say,
        )

    result = run_linear_eval(
        lambda name: Features.load(stage.folder("embed") / f"{name}.safetensors"),
        classes=stage.store.classes,
        linear=linear,
        knn=knn,
        baselines=baselines,
        device=stage.device,
        report=_say,
    )
    result.save_predictions(stage.out / "predictions.safetensors")
    write_json(stage.out / "metrics.json", result.metrics)


def finetune(stage: Stage) -> None:
    """Method and few labels -> classifiers and label curve, beside what the same labels give without pretraining."""
    from cl_core.assembly import build_chain
    from cl_core.config import FinetuneConfig, LinearConfig
    from cl_core.evaluation.few_labels import few_labels
    from cl_core.evaluation.yardsticks import Yardsticks

    linear = _section(LinearConfig, stage.config["linear"])
    result = few_labels(
        lambda: stage.trained_method().fine_tune_model(),
        lambda: stage.method().fine_tune_model(),
        stage.split,
        stage.store.classes,
        augment=build_chain(stage.registry, stage.config["augment"]),
        settings=_section(FinetuneConfig, stage.config["finetune"]),
        selection=stage.config["selection"],
        max_values=linear.max_values,
        max_iter=linear.max_iter,
        seed=stage.seed,
        yardsticks=Yardsticks(stage.project / ".contrast" / "yardsticks"),
        yardstick_key={**stage.data_key, **stage.yardstick_key, "augment": stage.config["augment"]},
        batch_size=stage.config["batch_size"],
        device=stage.device,
        report=_say,
    )
    result.save(stage.out)


def diagnose(stage: Stage) -> None:
    """Trained method and images it was not trained on -> what its own questions find."""
    from cl_core.evaluation.diagnose import diagnose as run_diagnose

    found = run_diagnose(
        stage.trained_method(), stage.split("train"), stage.split("validation"), seed=stage.seed, device=stage.device
    )
    trained = sha256_file(stage.folder("pretrain") / "method.safetensors")
    write_json(stage.out / "findings.json", {"method_sha256": trained, **found})
    warnings = [finding["name"] for finding in found["findings"] if finding["state"] == "warning"]
    _say(f"{len(found['findings'])} questions, warnings: {', '.join(warnings) or 'none'}")


def distil(stage: Stage) -> None:
    """A fine-tuned classifier and all training images -> a student that has learnt its answers."""
    from cl_core.assembly import build_chain
    from cl_core.config import DistilConfig
    from cl_core.evaluation.classifier import Classifier
    from cl_core.evaluation.distil import distil as run_distil
    from cl_core.evaluation.features import load_weights
    from cl_core.evaluation.label_curve import CARD

    config, num_classes = stage.config, len(stage.store.classes)
    settings = _section(DistilConfig, config["distil"])
    finetuned = stage.folder("finetune")

    def teacher() -> Classifier:
        card = read_json(finetuned / "classifiers" / CARD)["classifiers"][str(settings.budget)]
        reads = {name: card[name] for name in ("stage", "dim", "max_values")}
        classifier = Classifier(stage.method().fine_tune_model(), num_classes, **reads)
        load_weights(classifier, finetuned / "classifiers" / card["file"], "teacher")
        return classifier

    result = run_distil(
        teacher,
        lambda: Classifier(stage.method(encoder=config["student"]).fine_tune_model(), num_classes),
        stage.split,
        read_json(finetuned / "metrics.json"),
        augment=build_chain(stage.registry, config["augment"]),
        settings=settings,
        seed=stage.seed,
        batch_size=config["batch_size"],
        device=stage.device,
        report=_say,
    )
    result.save_student(stage.out / "student.safetensors")
    write_json(stage.out / "metrics.json", result.metrics)


def report(project: Path) -> None:
    """All runs -> one page."""
    from cl_core.config import ClaimConfig
    from cl_core.report.page import write_report

    config = _read_resolved(project, RESOLVED / "report.json", "report")["config"]
    artifacts = project / "artifacts"
    page = write_report(
        artifacts,
        artifacts / "report" / "index.html",
        experiments=list(config["experiments"]),
        title=config["title"],
        claims=[_section(ClaimConfig, claim) for claim in config["claims"]],
    )
    _say(f"wrote {page.relative_to(project)}")


PER_EXPERIMENT: dict[str, Callable[[Stage], None]] = {
    "views": views,
    "pretrain": pretrain,
    "embed": embed,
    "linear_eval": linear_eval,
    "finetune": finetune,
    "diagnose": diagnose,
    "distil": distil,
}


def _read_resolved(project: Path, path: Path, stage: str) -> dict[str, Any]:
    if not (project / path).is_file():
        raise ConfigError(
            f"stage {stage} has not been resolved ({path} is missing); run `contrast stage resolve` first, or name one "
            f"of the runs in {RUN_LIST}"
        )
    resolved: dict[str, Any] = read_json(project / path)
    return resolved


def _devices(project: Path) -> Devices:
    """What trains: as whoever started the processes says, else this process alone."""
    from cl_core.training.processes import Devices

    place = Place.of_environment(os.environ)
    if place is None:
        return Devices()
    return Devices(devices=place.devices, num_nodes=place.num_nodes, strategy=RunSettings.read(project).strategy)


def _section(model: type[Model], values: Mapping[str, Any]) -> Model:
    return model.model_validate_json(json.dumps(values))


def _fingerprint(*parts: Any) -> str:
    """Names the checkpoints of a run: same input, same folder; anything else starts afresh."""
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:16]


def _say(line: str) -> None:
    print(line, flush=True)
