"""`contrast compare`: experiments against each other by paired tests."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipelines.options import project_option


@click.command(
    help="Hold A against B, and against every further experiment, on the same test images: linear probe, kNN and each "
    "label budget. All seeds of an experiment take part."
)
@click.argument("a")
@click.argument("others", nargs=-1, required=True, metavar="B [...]")
@project_option
@click.option("--json", "as_json", is_flag=True, help='{"comparisons": [...], "notes": [...]} in place of a table.')
@click.option("--across-protocols", is_flag=True, help="Compare although they were judged by different protocols.")
def command(a: str, others: tuple[str, ...], project: Path, *, as_json: bool, across_protocols: bool) -> None:
    """Exit 0 whatever the tests say, 1 where the experiments cannot be compared."""
    from cl_core.report.comparison import compare, find
    from pipelines.reading import evaluated

    groups = evaluated(project)
    found = compare(find([a, *others], groups), across_protocols=across_protocols)
    if as_json:
        rows = [row.as_json() for row in found.rows]
        click.echo(json.dumps({"comparisons": rows, "notes": list(found.notes)}, indent=2))
    else:
        from pipelines.show import print_comparisons

        print_comparisons(found)
