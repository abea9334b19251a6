"""`contrast diagnose`: put a trained method's own questions to it."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import project_option


@click.command(
    help="Search the trained method of EXPERIMENT for shortcuts and collapse, and show what was found. The findings go "
    "into the report; DVC records them only for experiments that params.yaml lists under `diagnose`."
)
@click.argument("experiment")
@project_option
def command(experiment: str, project: Path) -> None:
    """Exit 0 whatever is found, 1 where there is nothing to look at."""
    from pipelines.diagnosis import run

    run(project, experiment)
