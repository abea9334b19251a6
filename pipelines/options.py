"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


class Minutes(click.FloatRange):
    """Minutes that somebody may wait for: a number of at most a year's."""

    def __init__(self, least: float) -> None:
        super().__init__(min=least, max=525_600)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click does it, but NaN, which no bound holds back, is refused too."""
        minutes: float = super().convert(value, param, ctx)
        if math.isnan(minutes):
            self.fail(f"{value!r} is not a number of minutes.", param, ctx)
        return minutes


class Seeds(click.ParamType):
    """Seeds separated by commas."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """ "0,2" -> (0, 2)."""
        if isinstance(value, tuple):
            return value
        seeds = [part.strip() for part in str(value).split(",")]
        if not all(seed.isascii() and seed.isdigit() for seed in seeds):
            self.fail(f"{value!r} is no list of seeds; write whole numbers separated by commas, such as 0,2.")
        return tuple(map(int, seeds))


project_option = click.option(
    "--project",
    default=".",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Project folder (default: the current one).",
)
