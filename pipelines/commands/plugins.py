"""`contrast plugins`: what is installed, what one part takes, and a working package to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

KINDS = ["source", "augmentation", "recipe", "encoder", "loss", "score", "method", "tracker"]


class _PluginsGroup(click.Group):
    """`contrast plugins NAME` shows the part of that name; only `new` is a command of its own."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["--name", *args]
        return super().parse_args(context, args)


@click.group(
    cls=_PluginsGroup,
    invoke_without_command=True,
    subcommand_metavar="[NAME | new ...]",
    help="List installed parts; NAME shows one with its options, `new` writes a plugin package.",
)
@click.option("--name", default=None, hidden=True)
@click.option("--kind", type=click.Choice(KINDS), default=None, help="List one kind only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, name: str | None, kind: str | None, as_json: bool) -> None:
    """Print a table, one part in full, or JSON."""
    if context.invoked_subcommand is not None:
        return
    from cl_core.listing import describe_all
    from cl_core.registry import load_registry

    found = describe_all(load_registry(), kind)
    if name is not None:
        found["parts"] = [part for part in found["parts"] if part["name"] == name] or _unknown(name, found["parts"])
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for part in found["parts"]:
        _print_part(part, in_full=name is not None)
    _print_broken(found["broken"])


@command.command(help="Write an installable package with one part of KIND and its passing test.")
@click.argument("name")
@click.option("--kind", type=click.Choice(["augmentation", "encoder", "loss", "method", "source"]), required=True)
@click.option("--into", default=".", type=click.Path(path_type=Path), help="Folder in which the package is made.")
def new(name: str, kind: str, into: Path) -> None:
    """Say where the package is and how to install and test it."""
    from pipelines.plugin_template import write_plugin

    folder = write_plugin(name, kind, into)
    click.echo(f"wrote {folder}")
    click.echo(f"next: pip install -e {folder} && pytest {folder}")


def _print_part(part: dict[str, Any], in_full: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    head = f"[bold]{part['kind']:<13}{escape(part['name']):<22}[/bold]{part['provider']} {part['version']}"
    console.print(f"{head}  [dim]{escape(part['summary'])}[/dim]")
    if part["error"]:
        console.print(f"  [red]error:[/red] {escape(part['error'])}")
    if not in_full:
        return
    for option in part["options"]:
        default = f" = {json.dumps(option['default'])}" if "default" in option else " (required)"
        console.print(f"  {escape(option['name'])}: {escape(option['type'])}{escape(default)}")
    if part["parts"]:
        console.print(f"  [dim]handed over by the pipeline: {', '.join(part['parts'])}[/dim]")


def _print_broken(broken: list[dict[str, Any]]) -> None:
    for plugin in broken:
        where = f"{plugin['provider']} {plugin['version']}"
        click.secho(f"plugin {plugin['plugin']} ({where}) did not load: {plugin['error']}", fg="red", err=True)


def _unknown(name: str, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from cl_core.errors import ConfigError, did_you_mean

    known = [part["name"] for part in parts]
    raise ConfigError(f"no part is called {name!r}{did_you_mean(name, known)}; installed: {', '.join(known)}")
