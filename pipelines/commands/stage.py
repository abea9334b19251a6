"""`contrast stage`: what DVC runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipelines.options import project_option


@click.command(help="Run one stage now, whether or not it is up to date. This is the command in dvc.yaml.")
@click.argument("name")
@click.argument("experiment", required=False)
@project_option
def command(name: str, experiment: str | None, project: Path) -> None:
    """Exit 0 when done, 75 when interrupted with its state saved, 130 or 143 when stopped, 1 or 70 on errors."""
    from pipelines.stage_process import run

    sys.exit(run(project, name, experiment))
