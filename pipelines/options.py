"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

project_option = click.option(
    "--project",
    default=".",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Project folder (default: the current one).",
)
