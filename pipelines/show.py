"""Tables of `contrast results` and `contrast compare` on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from cl_core.report.comparison import Comparison, Comparisons, shown
from cl_core.report.groups import MINUS, NONE, percent, points
from cl_core.report.table import ResultRow
from pipelines.board import Terminal
from pipelines.summary_grid import below, new_grid, remark

_PERCENT = ("top1", "top5", "balanced_accuracy", "macro_f1", "ece")


def print_rows(rows: Sequence[ResultRow]) -> None:
    """The means over draws on the test images, without the stages that were not chosen."""
    grid = new_grid("", "experiment")
    for heading in ("competitor", "use", "budget", "labels", "figure", "value"):
        grid.add_column(heading, justify="right" if heading in ("budget", "labels", "value") else "left", no_wrap=True)
    for row in rows:
        if row.draw is None and row.split == "test":
            grid.add_row(*(escape(cell) for cell in _cells(row)))
    Terminal().print(grid)


def _cells(row: ResultRow) -> list[str]:
    name = row.experiment if row.seed is None else f"{row.experiment} ({row.seed})"
    budget = row.budget if isinstance(row.budget, str) else f"{row.budget:g}"
    labels = NONE if row.labels_trained is None else f"{row.labels_trained:,}"
    use = f"{row.use} {row.stage}" if row.stage else row.use
    value = percent(row.value) if row.figure in _PERCENT else f"{row.value:.3f}"
    return [name, row.competitor, use, budget, labels, row.figure, value]


def print_comparisons(found: Comparisons) -> None:
    """A line per figure and pair, then the tests behind the p values and what is not compared."""
    console = Terminal()
    for pair in dict.fromkeys((row.ours, row.other) for row in found.rows):
        grid = new_grid(f"{pair[0]} against {pair[1]}, top-1 in %", "figure")
        for heading in (*(name[:12] for name in pair), "points", "95 % interval", "p (Holm)"):
            grid.add_column(heading, justify="right", no_wrap=True)
        for row in [row for row in found.rows if (row.ours, row.other) == pair]:
            grid.add_row(*(escape(cell) for cell in _comparison(row)), style="" if row.is_told_apart else "dim")
        console.print(grid)
    for test in dict.fromkeys(row.difference.test for row in found.rows):
        below(test, console)
    below("dim: no difference shown", console)
    for note in found.notes:
        remark("note", note, console)


def _comparison(row: Comparison) -> list[str]:
    gap = row.difference
    interval = f"{100 * gap.low:.1f} to {100 * gap.high:.1f}".replace("-", MINUS)
    p = "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"
    return [shown(row.figure), percent(row.value), percent(row.other_value), points(gap.value), interval, p]
