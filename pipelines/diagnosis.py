"""`contrast diagnose EXPERIMENT`: run the stage, listed or not, and show a table of what it found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cl_core.data.files import read_json
from cl_core.errors import ConfigError, did_you_mean
from cl_core.resolve import RESOLVED, write_resolved
from pipelines.gpus import gpu_slots
from pipelines.locks import locked
from pipelines.planning import LOCKS, chosen_runs, read_sweeps, require_project

RUNS = Path("artifacts/runs")
TRAINED = ("seed", "image_size", "method", "encoder", "loss", "score", "chains")  # what decides a method
STYLES = {"fine": "green", "warning": "bold red", "skipped": "dim"}


def run(folder: Path, experiment: str) -> None:
    """Bring the resolved inputs up to date, run the stage for every seed of an experiment, print the findings.

    Raises ConfigError where the experiment is unknown, has not been pretrained with the present settings, or its method
    has no questions.
    """
    project = require_project(folder)
    write_resolved(project)
    runs = chosen_runs(read_sweeps(project), [experiment])
    for name in runs:
        _require_trained(project, name)
    for name in runs:
        _diagnose(project, name)


def _diagnose(project: Path, name: str) -> None:
    address = f"diagnose@{name}"
    with locked(project / LOCKS / f"{address}.lock", f"stage {address}"), gpu_slots(address):
        from pipelines.stages import run_stage

        run_stage(project, "diagnose", name)
    print_findings(read_json(project / RUNS / name / "diagnose" / "findings.json"), name, Console())


def print_findings(found: Mapping[str, Any], experiment: str, console: Console) -> None:
    """One row per question: verdict and sentence, figures and what they are held against; 80 columns are enough."""
    images = found["images"]
    grid = Table(
        title=f"{experiment}: judged on {images['held_out']:,} images that were not trained on",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 1, 0),
    )
    grid.add_column("question", ratio=4)
    grid.add_column("verdict", ratio=5)
    grid.add_column("figures", ratio=4)
    for finding in found["findings"]:
        style = STYLES[finding["state"]]
        verdict = f"[{style}]{finding['state']}[/{style}]\n{escape(finding['text'])}"
        grid.add_row(escape(finding["question"]), verdict, escape(_figures(finding)))
    console.print(grid)


def _figures(finding: Mapping[str, Any]) -> str:
    against = [f"({name} {value:.3g})" for name, value in finding["against"].items()]
    return "\n".join([*(f"{name} {value:.3g}" for name, value in finding["figures"].items()), *against])


def _require_trained(project: Path, experiment: str) -> None:
    known = sorted(path.name for path in (project / RESOLVED).iterdir() if path.is_dir())
    if experiment not in known:
        raise ConfigError(
            f"no experiment is called {experiment!r}{did_you_mean(experiment, known)}; there are: {', '.join(known)}"
        )
    pretrained = RUNS / experiment / "pretrain"
    if not (project / pretrained / "method.safetensors").is_file():
        raise ConfigError(
            f"experiment {experiment} has not been pretrained ({pretrained / 'method.safetensors'} is missing); run "
            f"`contrast run {experiment}` first"
        )
    now = read_json(project / RESOLVED / experiment / "pretrain.json")["config"]
    then = read_json(project / pretrained / "encoder.json").get("resolved", {}).get("config", now)
    changed = [key for key in TRAINED if then.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"experiment {experiment} has been pretrained with other settings than it has now ({', '.join(changed)}); "
            f"run `contrast run {experiment}` first"
        )
