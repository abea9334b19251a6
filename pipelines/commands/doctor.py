"""`contrast doctor`: find what is wrong around a project."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipelines.options import project_option


@click.command(help="Check versions, plugins, locks, leftovers and disk space, with the fix for each problem.")
@project_option
@click.option("--fix", is_flag=True, help="Apply the fixes that cannot lose anything.")
def command(project: Path, fix: bool) -> None:
    """Exit 0 when all is well or fixed, 1 when something needs the user."""
    from pipelines.doctor import examine

    sys.exit(examine(project, fix=fix))
