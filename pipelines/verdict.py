"""What pretraining was worth, on the terminal: the end of `contrast run`, and `contrast verdict` with every test."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from cl_core.report.few_labels import HEADINGS, Contest
from cl_core.report.groups import MINUS, Group, percent, points
from cl_core.report.judgement import Judgement, judgement
from pipelines.summary_grid import below, new_grid


def print_verdicts(groups: Sequence[Group], console: Console, *, tests: bool) -> None:
    """A block per group. tests: with the table of differences. Raises DataError for a damaged file."""
    for group in groups:
        found = judgement(group)
        for line in found.lines:
            console.print(escape(f"{line}."), soft_wrap=True)
        if tests and found.few.against:
            _print_tests(found, console)
        for step in found.next_steps:
            console.print(f"[dim]next:[/dim] {escape(step)}.", soft_wrap=True)


def _print_tests(found: Judgement, console: Console) -> None:
    references = [name for name in HEADINGS if any(c.reference == name for c in found.few.against)]
    grid = new_grid(f"{found.group.label}: points over what the same labels give without it", "labels")
    for heading in ("ours", *(HEADINGS[name] for name in references)):
        grid.add_column(heading, justify="right")
    for budget in found.few.budgets:
        at = {contest.reference: contest for contest in found.few.at(budget)}
        first = next(iter(at.values()))
        cells = [_cell(at[name]) if name in at else "" for name in references]
        grid.add_row(budget, percent(first.accuracy), *cells)
    console.print(grid)
    below(f"{found.few.against[0].difference.test}; 95 % intervals; p corrected by Holm's method", console)
    for budget in found.few.budgets:
        saved = [one for one in found.few.saved if one.budget == budget]
        if saved:
            others = ", ".join(f"{HEADINGS[one.reference]} {one.text}" for one in saved)
            below(f"{percent(saved[0].accuracy)} % takes {saved[0].labels:,} labels here, {others}", console)


def _cell(contest: Contest) -> str:
    """ "+25.7" over "21.0 to 30.1, p < 0.001"."""
    found = contest.difference
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}".replace("-", MINUS)
    p = "p < 0.001" if contest.p < 0.001 else f"p {contest.p:.3f}"
    return f"{points(found.value)}\n{interval}\n{p}"
