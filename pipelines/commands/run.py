"""`contrast run`: bring the project up to date through Prefect."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import Seeds, project_option


@click.command(help="Run every stage that is out of date, of all experiments or of those named, and show the results.")
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@project_option
@click.option("--seeds", type=Seeds(), default=(), metavar="SEED[,SEED]...", help="Only these seeds (default: all).")
@click.option("--jobs", type=click.IntRange(min=1), help="Stages side by side (default: run.jobs of params.yaml).")
@click.option("--record", is_flag=True, help="Run the flow even if nothing is out of date, so that Prefect records it.")
def command(
    experiments: tuple[str, ...], project: Path, seeds: tuple[int, ...], jobs: int | None, record: bool
) -> None:
    """Exit 0 when all stages are done, 1 when one failed, 130 after Ctrl-C."""
    from pipelines.run import run

    run(project, experiments, seeds, jobs=jobs, record=record)
