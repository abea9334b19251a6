"""How tables and the lines around them look on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def remark(name: str, text: str, console: Console) -> None:
    """A line that begins with whom it is about."""
    console.print(f"[dim]{escape(name)}:[/dim] {escape(text)}", soft_wrap=True)


def below(text: str, console: Console) -> None:
    """A line under a table that says what it shows."""
    console.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)


def new_grid(title: str, first: str) -> Table:
    """An empty table whose first column may fold."""
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column(first, min_width=12, overflow="fold")
    return grid
