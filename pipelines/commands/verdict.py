"""`contrast verdict`: did pretraining help, and what to do next."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import project_option


@click.command(
    help="Say whether pretraining helped with few and many labels, against the untrained encoder, raw pixels and "
    "supervised training on the same labels, with intervals; how many labels it saved; and what to do next."
)
@click.argument("experiment", required=False)
@project_option
def command(experiment: str | None, project: Path) -> None:
    """Exit 0 whatever the verdict is, 1 where there is nothing to judge."""
    from pipelines.board import Terminal
    from pipelines.reading import evaluated
    from pipelines.verdict import print_verdicts

    print_verdicts(evaluated(project, experiment), Terminal(), tests=True)
