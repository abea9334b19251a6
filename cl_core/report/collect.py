"""Read what the stages of an experiment left in `artifacts/`, and say what is not there.

Only reads. A file that is absent is recorded as missing, one that is damaged is a DataError naming the file and the
command that makes it again; nothing is guessed and nothing is dropped silently.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from cl_core.data.files import read_json, sha256_file
from cl_core.errors import DataError
from cl_core.report.records import (
    DistilResult,
    Findings,
    FinetuneResult,
    HealthResult,
    LinearResult,
    MethodFacts,
    PanelFile,
    Record,
    Remark,
    Resolved,
    Spec,
    ViewStatistics,
)

#: stage -> the file whose presence says that the stage has run, relative to artifacts/runs/<experiment>.
STAGE_FILES = {
    "views": "views/plan.json",
    "pretrain": "pretrain/encoder.safetensors",
    "embed": "embed/embed.json",
    "linear_eval": "linear_eval/metrics.json",
    "finetune": "finetune/metrics.json",
}
#: the same for the stages that only some experiments have.
OPTIONAL_FILES = {"distil": "distil/metrics.json"}
Curves = dict[str, list[float | None]]


Result = TypeVar("Result", bound=Record)


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What an evaluation stage left: its result, or the reason why it skipped; neither where it has not run."""

    result: Result | None = None
    skipped: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that the report needs of one run of an experiment, apart from images and features.

    folder: artifacts/runs/<name>. file: name of the experiment's file, which all its seeds share, "" where unknown.
    resolved: stage -> its resolved input. card: encoder.json. missing: stages that have left nothing, in pipeline
    order. diagnosed: what `contrast diagnose` found in the method as it is now, or None. health: figures without
    labels. encoder_bytes and encoder_sha256: of encoder.safetensors.
    """

    name: str
    folder: Path
    file: str = ""
    description: str = ""
    resolved: Mapping[str, Resolved] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    linear: Outcome[LinearResult] = Outcome()
    finetune: Outcome[FinetuneResult] = Outcome()
    distil: Outcome[DistilResult] = Outcome()
    missing: tuple[str, ...] = ()
    diagnosed: Findings | None = None
    health: HealthResult | None = None
    encoder_bytes: int | None = None
    encoder_sha256: str = ""
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved configuration of pretraining, {} where it is missing."""
        return self.resolved["pretrain"].config if "pretrain" in self.resolved else {}

    @property
    def seed(self) -> int | None:
        """Seed of pretraining."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def facts(self) -> MethodFacts:
        """Of the method; all empty where nothing was pretrained. Raises DataError for a damaged card."""
        remake = f"dvc repro pretrain@{self.name}"
        return _record(MethodFacts, self.card, self.folder / "pretrain" / "encoder.json", remake)

    @property
    def steps(self) -> int:
        """Updates that pretraining made."""
        return int(self._training.get("steps", 0))

    @property
    def self_match(self) -> tuple[float, float] | None:
        """The label-free figure of the online evaluation after and before training; None where there are labels."""
        final = self._training.get("final") or {}
        now, untrained = final.get("self_match"), (final.get("untrained") or {}).get("self_match")
        return None if now is None or untrained is None else (float(now), float(untrained))

    @property
    def remarks(self) -> list[Remark]:
        """What observers said while it trained, in order. Raises DataError for a damaged card."""
        card, remake = self.folder / "pretrain" / "encoder.json", f"dvc repro pretrain@{self.name}"
        return [_record(Remark, remark, card, remake) for remark in self._training.get("remarks", [])]

    @property
    def _training(self) -> Mapping[str, Any]:
        """What the card says of the run."""
        return self.card.get("training") or {}

    @property
    def command(self) -> str:
        """What makes everything that is missing."""
        return f"contrast run {self.name}"

    @property
    def skipped(self) -> dict[str, str]:
        """Evaluations that declined, with their reasons."""
        reasons = {
            "linear_eval": self.linear.skipped,
            "finetune": self.finetune.skipped,
            "distil": self.distil.skipped,
        }
        return {stage: reason for stage, reason in reasons.items() if reason}

    def spec(self, section: str) -> Spec | None:
        """The part configured in a section of pretraining (`method`, `encoder`, `loss`), or None."""
        value = self.config.get(section)
        return Spec.model_validate(value) if isinstance(value, dict) and "name" in value else None


def collect(artifacts: Path, names: Sequence[str], *, timing: bool = True) -> list[Experiment]:
    """Read the named experiments, in the given order.

    timing: read timing.json, the one file that differs between two runs of the same input.
    Raises DataError for a damaged file.
    """
    report = read_resolved(artifacts / "resolved" / "report.json")
    config = report.config if report else {}
    descriptions, distilled = config.get("experiments", {}), config.get("distil", [])
    files = {run: file for file, runs in config.get("runs", {}).items() for run in runs}
    return [
        replace(
            _experiment(artifacts, name, distilled=name in distilled, timing=timing),
            file=files.get(name, ""),
            description=str(descriptions.get(name, "")),
        )
        for name in names
    ]


def _experiment(artifacts: Path, name: str, *, distilled: bool, timing: bool) -> Experiment:
    folder = artifacts / "runs" / name
    pretrain, weights = folder / "pretrain", folder / "pretrain" / "encoder.safetensors"
    resolved = _resolved(artifacts / "resolved" / name)
    missing = [] if "pretrain" in resolved else ["resolve"]
    files = STAGE_FILES | (OPTIONAL_FILES if distilled else {})
    missing += [stage for stage, file in files.items() if not (folder / file).is_file()]
    remake = f"dvc repro pretrain@{name}"
    distil = folder / OPTIONAL_FILES["distil"]
    return Experiment(
        name=name,
        folder=folder,
        resolved=resolved,
        card=read_mapping(pretrain / "encoder.json", remake),
        curves=read_curves(pretrain / "curves.csv", remake),
        linear=_outcome(LinearResult, folder / "linear_eval" / "metrics.json", f"dvc repro linear_eval@{name}"),
        finetune=_outcome(FinetuneResult, folder / "finetune" / "metrics.json", f"dvc repro finetune@{name}"),
        # What an experiment left before it was taken off the list is none of its results any more.
        distil=_outcome(DistilResult, distil, f"dvc repro distil@{name}") if distilled else Outcome(),
        missing=tuple(missing),
        health=_health(folder / "embed" / "health.json", f"dvc repro embed@{name}"),
        diagnosed=_findings(folder, f"contrast diagnose {name}"),
        encoder_bytes=weights.stat().st_size if weights.is_file() else None,
        encoder_sha256=sha256_file(weights) if weights.is_file() else "",
        timing=read_mapping(pretrain / "timing.json", remake) if timing else {},
    )


def _resolved(folder: Path) -> dict[str, Resolved]:
    found = {stage: read_resolved(folder / f"{stage}.json") for stage in (*STAGE_FILES, *OPTIONAL_FILES)}
    return {stage: resolved for stage, resolved in found.items() if resolved is not None}


def _outcome(model: type[Result], path: Path, remake: str) -> Outcome[Result]:
    if not path.is_file():
        return Outcome()
    value = _json(path, remake)
    if isinstance(value, dict) and "skipped" in value:
        return Outcome(skipped=str(value["skipped"]))
    return Outcome(_record(model, value, path, remake))


def _findings(folder: Path, remake: str) -> Findings | None:
    """What was found in the method as it is now; None where nothing was, or where it was in an earlier training."""
    path, method = folder / "diagnose" / "findings.json", folder / "pretrain" / "method.safetensors"
    if not path.is_file() or not method.is_file():
        return None
    found = _record(Findings, _json(path, remake), path, remake)
    return found if found.method_sha256 == sha256_file(method) else None


def _health(path: Path, remake: str) -> HealthResult | None:
    return _record(HealthResult, _json(path, remake), path, remake) if path.is_file() else None


def read_statistics(path: Path, remake: str) -> ViewStatistics | None:
    """views/statistics.json, or None where there is none."""
    return _record(ViewStatistics, _json(path, remake), path, remake) if path.is_file() else None


def read_resolved(path: Path) -> Resolved | None:
    """The resolved input of a stage, or None where there is none."""
    return _record(Resolved, _json(path, "dvc repro resolve"), path, "dvc repro resolve") if path.is_file() else None


def read_mapping(path: Path, remake: str) -> dict[str, Any]:
    """A JSON object, {} where the file is absent. Raises DataError, ending in the command `remake`, if damaged."""
    if not path.is_file():
        return {}
    value = _json(path, remake)
    if not isinstance(value, dict):
        raise _damaged(path, f"holds a {type(value).__name__} where an object belongs", remake)
    return value


def read_panels(folder: Path, remake: str) -> list[PanelFile]:
    """The method's own pictures listed in panels.json, [] where there are none; their files lie in `folder`."""
    path = folder / "panels.json"
    if not path.is_file():
        return []
    value = _json(path, remake)
    try:
        panels = TypeAdapter(list[PanelFile]).validate_python(value)
    except ValidationError as error:
        raise _damaged(path, _first_problem(error), remake) from None
    for panel in panels:
        if Path(panel.file).name != panel.file or not (folder / panel.file).is_file():
            raise _damaged(path, f"lists {panel.file!r}, which is no file beside it", remake)
    return panels


def read_curves(path: Path, remake: str) -> Curves:
    """Columns of curves.csv: {column: values}, None for an empty cell or a figure that is not finite.

    Returns {} where the file is absent. Raises DataError for a cell that is no number or a row of another length.
    """
    if not path.is_file():
        return {}
    try:
        rows = list(csv.reader(path.read_text().splitlines(), strict=True))
        columns: Curves = {name: [] for name in rows[0]} if rows else {}
        for row in rows[1:]:
            for name, cell in zip(rows[0], row, strict=True):
                columns[name].append(_number(cell))
    except (ValueError, csv.Error) as error:
        raise _damaged(path, str(error), remake) from None
    return columns


def _number(cell: str) -> float | None:
    value = float(cell) if cell.strip() else math.nan
    return value if math.isfinite(value) else None


def _json(path: Path, remake: str) -> Any:
    try:
        return read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error), remake) from None


def _record(model: type[Result], value: Any, path: Path, remake: str) -> Result:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _damaged(path, _first_problem(error), remake) from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"]) or "the file"
    return f"{where}: {first['msg']}"


def _damaged(path: Path, problem: str, remake: str) -> DataError:
    return DataError(f"{path} is damaged: {problem}; make it again with `{remake}`")
