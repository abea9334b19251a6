"""`contrast schema`: write the JSON Schemas that the YAML files name in their first line."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import project_option

FOLDER = Path(".contrast/schema")


@click.command(help="Write JSON Schemas of params.yaml and experiments/*.yaml, with the installed plugins' options.")
@project_option
def command(project: Path) -> None:
    """Editors with a YAML language server then complete and check the files while one types."""
    from cl_core.data.files import write_json
    from cl_core.listing import json_schemas
    from cl_core.registry import load_registry

    for name, schema in json_schemas(load_registry()).items():
        write_json(project / FOLDER / f"{name}.json", schema)
        click.echo(f"{FOLDER / name}.json")
