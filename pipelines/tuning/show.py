"""What `contrast tune` shows: where the search stands, a line per trial, a table at the end. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.status import Status as Spinner
from rich.table import Table

from cl_core.training.progress import PlainProgress, Status, duration
from pipelines.board import Terminal
from pipelines.tuning.outcome import Outcome, words
from pipelines.tuning.search import Candidate, Job, Search
from pipelines.tuning.trial import FIGURES, Result

if TYPE_CHECKING:
    from pipelines.tuning.run import Clock


class Screen:
    """Everything that the search says, on standard output."""

    def __init__(self, search: Search, console: Terminal | None = None) -> None:
        self._search, self._rungs = search, search.rungs
        self._console = console or Terminal()

    def begin(self, queries: int) -> None:
        """Say what will be tried, and on what. queries: labelled validation images."""
        space = self._search.space
        self._print(
            f"[bold]{escape(space.start.name)}[/bold]: trials of {_listed(self._rungs)} training images, judged "
            + (f"on {queries:,} validation images, never on test" if queries else "without labels, as there are none")
        )
        for axis in space.axes:
            choices = ", ".join(f"{choice}{' (now)' if choice == axis.start else ''}" for choice in axis.choices)
            self._print(f"  {axis.name}: {escape(choices)}")

    def progress(self, job: Job, clock: Clock) -> TrialProgress:
        """What the training of a trial tells."""
        return TrialProgress(self._console, f"trial {job.candidate.number}: {self._words(job.candidate)}", clock)

    def trial(self, job: Job, result: Result, left: float) -> None:
        """One line for a trial that ended."""
        score = "failed" if result.score is None else f"{result.score:.3f}"
        self._print(
            f"{job.candidate.number:>3}  {self._rungs[job.rung]:>9,} images  {score:>6}  {result.seconds:>5.0f} s  "
            f"{escape(self._words(job.candidate))} [dim]({duration(left)} left)[/dim]"
        )

    def too_late(self, wanted: float, left: float) -> str:
        """Why no further trial begins, and what would let it."""
        return (
            f"the next trial takes about {duration(wanted)} and {duration(left)} are left; the same command with "
            f"more --minutes goes on from here"
        )

    def end(self, ended: str, outcome: Outcome) -> None:
        """The table, why the search ended, and what came of it."""
        self._console.print(self._table())
        self._print(escape(f"{ended[0].upper()}{ended[1:]}."))
        for line in outcome.lines:
            self._print(escape(line))

    def _table(self) -> Table:
        """Rows by the rung that they reached and their score there; 80 columns are enough."""
        figure = next((r.figure for c in self._search.candidates for r in c.results.values() if r.figure), None)
        grid = Table(
            title=f"{FIGURES[figure]} after so many images" if figure else "no trial ended",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        grid.add_column("", justify="right")
        grid.add_column("setting", overflow="fold")
        for images in self._rungs:
            grid.add_column(f"{images:,}", justify="right", no_wrap=True)
        for candidate in sorted(self._search.tried, key=_merit):
            style = "bold" if candidate is self._search.start else None
            cells = [_cell(candidate.results.get(rung)) for rung in range(len(self._rungs))]
            grid.add_row(str(candidate.number), escape(self._words(candidate)), *cells, style=style)
        return grid

    def _words(self, candidate: Candidate) -> str:
        return words(self._search.space, candidate.values)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


class TrialProgress(PlainProgress):
    """A line that stays in place on a terminal while a trial trains; elsewhere nothing but warnings."""

    def __init__(self, console: Terminal, title: str, clock: Clock) -> None:
        super().__init__()
        self._console, self._title, self._time = console, title, clock
        self._spinner = Spinner(escape(title), console=console)

    def begin(self, total_steps: int) -> None:
        """Show the line."""
        self._spinner.start()

    def show(self, status: Status) -> None:
        """Say how far the trial is, and how much time the search has."""
        done = f"{100 * status.step // status.total_steps} %, {duration(self._time.left)} left"
        self._spinner.update(f"{escape(self._title)}  [dim]{done}[/dim]")

    def say(self, text: str) -> None:
        """Pass on what is out of the ordinary; how a trial trains is not."""
        if text.startswith(("warning", "continuing")):
            self._console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Take the line away."""
        self._spinner.stop()


def _listed(numbers: Sequence[int]) -> str:
    *first, last = [f"{number:,}" for number in numbers]
    return f"{', '.join(first)} and {last}" if first else last


def _merit(candidate: Candidate) -> tuple[int, float, int]:
    rung = max(candidate.results)
    return -rung, -candidate.score(rung), candidate.number


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    return "failed" if result.score is None else f"{result.score:.3f}"
