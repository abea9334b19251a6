"""`contrast init`: make a project."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import Minutes


@click.command(
    help="Make a project in DIR: settings fitted to the images and this machine, a sheet of views, git and DVC set up."
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Folder of images (default: the embedded digits).")
@click.option("--mirror/--no-mirror", default=None, help="Whether a mirrored image means the same (asked for).")
@click.option("--colour/--no-colour", default=None, help="Whether colour by itself carries meaning (asked for).")
@click.option("--minutes", type=Minutes(0.1), help="Of pretraining (default: 10 on a processor, 30 on a GPU).")
@click.option("--no-trial", is_flag=True, help="Assume the speed of this machine instead of measuring it.")
@click.option("--force", is_flag=True, help="Overwrite the files of a project that is there already.")
def command(
    directory: Path,
    *,
    images: Path | None,
    mirror: bool | None,
    colour: bool | None,
    minutes: float | None,
    no_trial: bool,
    force: bool,
) -> None:
    """Say what was seen, guessed, chosen and written, and what to type next."""
    from pipelines.project.create import Wishes, create
    from pipelines.project.questions import person
    from pipelines.stage_process import set_up_torch

    set_up_torch()  # as stages have it, which the trial is to be as fast as
    wishes = Wishes(mirror=mirror, colour=colour, minutes=minutes, trial=not no_trial, ask=person())
    create(directory, images, wishes=wishes, force=force, say=click.echo)
