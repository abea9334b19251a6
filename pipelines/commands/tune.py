"""`contrast tune`: search for settings under which an experiment learns more from the same images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.options import Minutes, project_option


@click.command(
    help="Try other batch sizes, learning rates, temperatures, crops and methods on EXPERIMENT in short trials, judged "
    "on validation images only, and write what won as experiments/EXPERIMENT-tuned.yaml. Results are kept: the same "
    "command continues a search that was stopped, and one that has more time."
)
@click.argument("experiment")
@project_option
@click.option("--minutes", type=Minutes(0), default=20.0, show_default=True, help="Time for new trials.")
@click.option("--trials", type=click.IntRange(min=2), help="Settings tried at most (default: as time allows).")
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="Training images of the smallest trials (default: 1/27 of a full run's, at least 10,000).",
)
@click.option("--methods", help="METHOD or METHOD/LOSS, separated by commas, to try beside its own (default: a few).")
def command(experiment: str, project: Path, methods: str | None, **limits: Any) -> None:
    """Exit 0 when done, 75 when interrupted with its state saved, 130 or 143 when stopped, 1 on errors."""
    from pipelines.tuning.run import Options, run

    named = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    sys.exit(run(project, experiment, Options(methods=named, **limits)))
