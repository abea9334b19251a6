"""`contrast check`: validate the whole project in seconds, without running a stage."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import project_option


@click.command(help="Validate params.yaml, the experiments, every part and the data path, without running a stage.")
@project_option
def command(project: Path) -> None:
    """Report every problem of the project together, or what a run would do."""
    from cl_core.check import check_project

    for line in check_project(project):
        click.echo(line)
