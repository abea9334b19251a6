"""The table of stages on the terminal while a run goes on: state, seconds, last line of output.

On a terminal the table is redrawn in place; elsewhere (a log file, CI) each stage gets one line when it starts and one
when it ends. Only shows; decides nothing. Safe to call from several threads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "ran": "green",
    "restored": "green",
    "up to date": "dim green",
    "not run": "yellow",
    "stopped": "yellow",
    "failed": "bold red",
}


class Terminal(Console):
    """Standard output; when its reader has gone (`contrast run | head`) it falls silent and the work goes on."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Instead of ending the process, which is what rich does."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass
class Row:
    """What is shown of one stage."""

    state: str = "waiting"
    started: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def elapsed(self) -> str:
        """Seconds so far, or in all; empty for a stage that did nothing."""
        if self.started is None:
            return ""
        return f"{time.monotonic() - self.started if self.seconds is None else self.seconds:.1f} s"


class Board:
    """Context manager that shows the stages; without `console` on standard output."""

    def __init__(self, stages: Iterable[str], console: Console | None = None) -> None:
        self.rows = {stage: Row() for stage in stages}
        self._console = console or Terminal()
        self._lock = threading.Lock()
        # Once a second: at four times, drawing the table of a large project took a tenth of a core from the stages.
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=1)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def begin(self, stage: str) -> None:
        """A stage is being brought up to date."""
        with self._lock:
            self.rows[stage] = Row(state="running", started=time.monotonic())
        self._tell(stage)

    def line(self, stage: str, text: str) -> None:
        """A stage said something."""
        with self._lock:
            self.rows[stage].note = text

    def end(self, stage: str, state: str, note: str = "") -> None:
        """A stage is done: "ran", "restored", "up to date", "failed", "stopped" or "not run"."""
        with self._lock:
            row = self.rows[stage]
            row.state, row.note = state, note
            if row.started is not None:
                row.seconds = time.monotonic() - row.started
        self._tell(stage)

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(escape(text))

    def _tell(self, stage: str) -> None:
        if not self._console.is_terminal:
            row = self.rows[stage]
            parts = f"{stage:24} {row.state:10} {row.elapsed if row.seconds is not None else '':>9}  {row.note}"
            self._console.print(Text(parts.rstrip()), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(overflow="ellipsis", ratio=1)
        with self._lock:
            for stage, row in self.rows.items():
                style = STYLES.get(row.state, "")
                note = Text(row.note, no_wrap=row.state != "failed", overflow="ellipsis", style="dim")
                table.add_row(stage, Text(row.state, style=style), row.elapsed, note)
        return table
