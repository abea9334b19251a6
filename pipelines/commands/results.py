"""`contrast results`: every final figure as one row."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipelines.options import project_option


@click.command(
    help="Print every final figure of all experiments or of those named, a row each, in the format of docs/results.md. "
    "Without --json or --csv: the means over draws on the test images, as a table."
)
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@project_option
@click.option("--json", "form", flag_value="json", help="A list of objects.")
@click.option("--csv", "form", flag_value="csv", help="A header and a line per row.")
def command(experiments: tuple[str, ...], project: Path, form: str | None) -> None:
    """Exit 0, also where nothing has been judged yet."""
    from cl_core.report.table import as_csv, as_records, result_rows
    from pipelines.reading import collected

    rows = result_rows(collected(project, experiments))
    if form == "json":
        click.echo(json.dumps(as_records(rows), indent=2))
    elif form == "csv":
        click.echo(as_csv(rows), nl=False)
    else:
        from pipelines.show import print_rows

        print_rows(rows)
