"""The command `contrast`: a group of commands that are imported only when they are called.

Help and listings come from the table below, so that `contrast --help` imports nothing heavy. Errors that are the
user's to fix are printed without a traceback, one line per problem.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from cl_core.errors import ConfigError, ContrastError, Interrupted, did_you_mean

COMMANDS = {
    "run": "Run every stage that is out of date and show the results.",
    "init": "Make a project for your own images.",
    "check": "Validate all settings without running a stage.",
    "verdict": "Say whether pretraining helped, and what to do next.",
    "compare": "Hold experiments against each other by paired tests.",
    "results": "Print every final figure as one row, for JSON and CSV too.",
    "plugins": "List installed parts and their options, or make a new one.",
    "tune": "Search for settings under which an experiment learns more.",
    "diagnose": "Search a trained method for shortcuts and collapse.",
    "schema": "Write JSON Schemas for editors.",
    "stage": "Run one stage (what DVC calls).",
    "doctor": "Find what is wrong around a project, and the fix.",
}
CTRL_C = 130  # 128 + SIGINT, what shells report


class LazyGroup(click.Group):
    """Commands by name; the module pipelines.commands.NAME is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pipelines.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name in the error."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"no command is called {name!r}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from cl_core import __version__

        click.echo(f"contrast {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a folder of images to a representation you can trust.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
def cli() -> None:
    """Nothing of its own to do."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code: 0 done, 1 explained error, 2 wrong command line, 130 Ctrl-C."""
    sys.exit(_code(list(arguments) if arguments is not None else None))


def _code(arguments: list[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="contrast", standalone_mode=False)
    except ContrastError as error:
        print_error(error)
        return error.exit_code if isinstance(error, Interrupted) else 1
    except click.Abort:  # click's word for Ctrl-C
        click.secho("stopped", fg="yellow", err=True)
        return CTRL_C
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # `contrast plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def print_error(error: ContrastError) -> None:
    """One red "error:" line per problem, on standard error."""
    problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}", err=True)


if __name__ == "__main__":
    main()
