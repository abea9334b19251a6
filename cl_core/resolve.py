"""Write the complete input of every stage to artifacts/resolved/, so that a stage reruns exactly when that changes.

A resolved file holds the settings with their defaults, who provides each part (version and source digest), and the
digest of the engine's modules that the stage uses. runs.yaml beside params.yaml lists the runs, one per experiment and
seed, of which dvc.yaml makes stages. Files are rewritten only where their bytes change.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cl_core.data.files import write_bytes
from cl_core.errors import ConfigError, ContrastError
from cl_core.project import Experiment, Project, Spec, build_source, load_project
from cl_core.provenance import Sources, library_versions
from cl_core.registry import Entry

RESOLVED = Path("artifacts/resolved")
RUN_LIST = Path("runs.yaml")
RUN_LIST_HEAD = """\
# The runs of this project, one per experiment and seed, of which dvc.yaml makes stages. Written by contrast from
# params.yaml and experiments/: edit those, and commit this.
"""
ONCE = ("ingest", "report")
PER_EXPERIMENT = ("views", "pretrain", "embed", "linear_eval", "finetune", "diagnose")
OPTIONAL = ("distil",)  # of the experiments that the list of the same name in params.yaml names


def write_resolved(root: Path) -> list[Path]:
    """Check the project and bring artifacts/resolved/ and runs.yaml up to date.

    Returns the files that changed, relative to the root. Raises ConfigError with every problem of the project.
    """
    project = load_project(root)
    files = {path: (json.dumps(c, indent=2) + "\n").encode() for path, c in resolved_files(project).items()}
    changed = []
    for path, data in {**files, RUN_LIST: run_list(project)}.items():
        target = root / path
        if not target.is_file() or target.read_bytes() != data:
            write_bytes(target, data)
            changed.append(path)
    return changed + _remove_stale(root, set(files))


def run_list(project: Project) -> bytes:
    """What runs.yaml has to say: the runs that there are, and those of them that are diagnosed and distilled."""
    params = project.params
    listed = {"all": params.experiments, "diagnose": params.diagnose, "distil": params.distil}
    text = io.StringIO()
    YAML().dump({"runs": {key: project.runs_of(names) for key, names in listed.items()}}, text)
    return (RUN_LIST_HEAD + text.getvalue()).encode()


def resolved_files(project: Project) -> dict[Path, dict[str, Any]]:
    """{path relative to the root: content} for every stage of every run."""
    sources = Sources()
    engines = {stage: _engine(stage, sources) for stage in (*ONCE, *PER_EXPERIMENT, *OPTIONAL)}
    files = {
        RESOLVED / "ingest.json": _ingest(project, sources) | {"engine": engines["ingest"]},
        RESOLVED / "report.json": _report(project) | {"engine": engines["report"]},
    }
    for experiment in project.experiments:
        optional = [stage for stage in OPTIONAL if experiment.name in getattr(project.params, stage)]
        for run, stage in itertools.product(experiment.runs, (*PER_EXPERIMENT, *optional)):
            content = _stage(project, run, stage, sources)
            files[RESOLVED / run.name / f"{stage}.json"] = content | {"engine": engines[stage]}
    return files


def stage_input(project: Project, experiment: Experiment, stage: str, sources: Sources) -> dict[str, Any]:
    """The complete input of one stage of an experiment, which need not be among the project's."""
    return _stage(project, experiment, stage, sources) | {"engine": _engine(stage, sources)}


def _engine(stage: str, sources: Sources) -> dict[str, str]:
    return {"source": sources.engine_digest(stage), **library_versions(stage)}


def _ingest(project: Project, sources: Sources) -> dict[str, Any]:
    data = project.params.data
    try:
        fingerprint = build_source(project.registry, project.source, project.root).fingerprint()
    except ConfigError:
        raise
    except ContrastError as error:
        raise ConfigError(f"params.yaml: data.source: {error}") from None
    return {
        "stage": "ingest",
        "config": {
            "source": project.source,
            "size": data.size,
            "max_shorter_side": data.stored_shorter_side,
            "splits": data.splits.model_dump(mode="json"),
            "max_pixels": data.max_pixels,
            "duplicates": data.duplicates,
            "block": project.params.plugins.block,
        },
        "fingerprint": dict(fingerprint),
        "parts": [_provider(project, "source", project.source, sources)],
    }


def _report(project: Project) -> dict[str, Any]:
    return {
        "stage": "report",
        "config": {
            "title": project.params.title,
            "experiments": {run.name: e.config.description for e in project.experiments for run in e.runs},
            "runs": {e.name: {run.name: run.seed for run in e.runs} for e in project.experiments},
            "distil": project.runs_of(project.params.distil),
            "claims": [claim.model_dump(mode="json") for claim in project.params.claims],
        },
        "parts": [],
    }


def _stage(project: Project, experiment: Experiment, stage: str, sources: Sources) -> dict[str, Any]:
    """Views see neither encoder nor loss, so that editing these leaves the plan as it is."""
    parts = [("method", experiment.method)]
    parts += [("augmentation", spec) for chain in experiment.chains.values() for spec in chain]
    config: dict[str, Any] = {
        "seed": experiment.seed,
        "subset": project.params.data.subset,
        "block": project.params.plugins.block,
        "image_size": project.params.data.size,
        "method": experiment.method,
        "chains": experiment.chains,
    }
    if stage != "views":
        parts.append(("encoder", experiment.encoder))
        parts += [("loss", experiment.loss)] if experiment.loss else []
        parts += [("score", experiment.score)] if experiment.score else []
        config |= {"encoder": experiment.encoder, "loss": experiment.loss, "score": experiment.score}
    if stage == "pretrain":
        parts += [("tracker", spec) for spec in experiment.trackers]
    if stage in ("finetune", "distil"):
        parts += [("augmentation", spec) for spec in project.finetune_chain]
    if stage == "distil" and experiment.student:
        parts.append(("encoder", experiment.student))
    config |= _stage_sections(project, experiment, stage)
    providers: list[dict[str, Any]] = []
    for kind, spec in parts:
        provider = _provider(project, kind, spec, sources)
        if provider not in providers:
            providers.append(provider)
    return {"stage": stage, "experiment": experiment.name, "config": config, "parts": providers}


def _stage_sections(project: Project, experiment: Experiment, stage: str) -> dict[str, Any]:
    config, evaluation = experiment.config, project.params.evaluation
    sections: Mapping[str, Mapping[str, Any]] = {
        "views": {
            "labels": config.labels,
            "materialize": config.views.materialize,
            "preview": config.views.preview,
        },
        "pretrain": {
            "labels": config.labels,
            "optimizer": config.optimizer.model_dump(mode="json"),
            "schedule": config.schedule.model_dump(mode="json"),
            "train": config.train.model_dump(mode="json", exclude={"trackers"}),
            "trackers": experiment.trackers,
        },
        "embed": {"max_values": evaluation.linear.max_values, "batch_size": evaluation.batch_size},
        "linear_eval": {
            "linear": evaluation.linear.model_dump(mode="json"),
            "knn": evaluation.knn.model_dump(mode="json"),
            "batch_size": evaluation.batch_size,
        },
        "finetune": {
            "finetune": evaluation.finetune.model_dump(mode="json"),
            "selection": evaluation.selection,
            "augment": project.finetune_chain,
            "linear": evaluation.linear.model_dump(mode="json"),
            "batch_size": evaluation.batch_size,
        },
        "diagnose": {},  # resolved for every experiment, since one that is not listed can be diagnosed by hand
        "distil": {
            "distil": config.distil.model_dump(mode="json", exclude={"encoder"}) if config.distil else None,
            "student": experiment.student,
            "augment": project.finetune_chain,
            "batch_size": evaluation.batch_size,
        },
    }
    return dict(sections[stage])


def _provider(project: Project, kind: str, spec: Spec, sources: Sources) -> dict[str, Any]:
    entry: Entry = project.registry.get(kind, spec["name"])
    return {
        "kind": kind,
        "name": spec["name"],
        "provider": entry.provider,
        "version": entry.version,
        "source": sources.part_digest(entry),
    }


def _remove_stale(root: Path, current: set[Path]) -> list[Path]:
    """Drop resolved files of runs that are no longer listed."""
    stale = [path for path in (root / RESOLVED).rglob("*.json") if path.relative_to(root) not in current]
    for path in stale:
        path.unlink()
    for folder in (root / RESOLVED).iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return [path.relative_to(root) for path in stale]
