"""`contrast init`: make a project."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(help="Make a project in DIR: settings sized to the images and this machine, git and DVC set up.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Folder of images (default: the embedded digits).")
@click.option("--force", is_flag=True, help="Overwrite the files of a project that is there already.")
def command(directory: Path, images: Path | None, force: bool) -> None:
    """Say what was written and what to type next."""
    from pipelines.project import create

    for line in create(directory, images, force=force):
        click.echo(line)
