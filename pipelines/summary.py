"""What `contrast run` ends with on the terminal: gain or loss, tables with yardsticks, one per protocol, the verdict.

The rows of the report, cut to fit 80 columns: only the linear probe keeps its interval, or its deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from cl_core.report.collect import collect
from cl_core.report.distillation import distillations
from cl_core.report.groups import NONE, group_seeds, percent
from cl_core.report.results import Row, Table, gaps, tables
from cl_core.report.verdict import verdict
from pipelines.summary_grid import below, new_grid, remark
from pipelines.verdict import print_verdicts


def print_results(artifacts: Path, experiments: Sequence[str], console: Console) -> None:
    """Print what was gained or lost, tables, what is missing and the verdicts of these experiments.

    Raises DataError for a damaged file.
    """
    collected = collect(artifacts, experiments, timing=False)
    groups = group_seeds(collected)
    for group in groups:
        judged = verdict(group)
        if judged.state != "unknown":
            remark(group.label, judged.text, console)
        for experiment in group.experiments:
            for said in experiment.remarks[-1:]:  # the report has them all
                remark(experiment.name, f"at step {said.step:,} of {experiment.steps:,}: {said.text}", console)
    for table in tables(groups):
        _all_labels(table, console)
        if table.budgets:
            _few_labels(table, console)
    for distilled in distillations(groups):
        remark(distilled.group.label, distilled.text, console)
    for experiment in collected:
        for line in gaps(experiment):
            remark(experiment.name, line, console)
    print_verdicts(groups, console, tests=False)


def _all_labels(table: Table, console: Console) -> None:
    grid = new_grid("top-1 accuracy with all labels, %", "")
    for heading in ("linear", "stage", "kNN"):
        grid.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for row in table.rows:
        _add_row(grid, row)
    yardsticks = [row for row in table.yardsticks if row.linear or row.knn]
    labels = [row.label for row in yardsticks]
    for row in yardsticks:
        if labels.count(row.label) == 1:  # lines that differ by input only would look alike here
            _add_row(grid, row, "dim")
    console.print(grid)
    below(", ".join(table.protocols[:2]), console)
    if table.constant is not None:
        constant = percent(table.constant)
        below(f"balanced: mean over the classes; a constant answer gets {constant} % (top-1)", console)
    if len(set(labels)) < len(labels):
        below("yardsticks that differ between experiments stand in the report", console)


def _add_row(grid: Grid, row: Row, style: str = "") -> None:
    """The line, and below it its balanced accuracies where there are any."""
    grid.add_row(*(escape(cell) for cell in _cells(row)), style=style)
    balanced = [None if m is None else m.balanced for m in (row.linear, row.knn)]
    if any(value is not None for value in balanced):
        linear, knn = ("" if value is None else percent(value) for value in balanced)
        grid.add_row("  balanced", linear, "", knn, style=style)


def _cells(row: Row) -> Iterator[str]:
    yield f"{row.label}, {row.note}" if row.group and row.note else row.label
    yield NONE if row.linear is None else str(row.linear)
    yield "" if row.group is None else row.group.best_stage
    yield NONE if row.knn is None else percent(row.knn.mean)


def _few_labels(table: Table, console: Console) -> None:
    """Every use of few labels, the frozen probe first, and the yardsticks that all experiments share."""
    grid = new_grid("top-1 accuracy with few labels, %", "")
    grid.add_column("", no_wrap=True)
    for budget in table.budgets:
        grid.add_column(budget.title.removesuffix(" per class"), justify="right", no_wrap=True)
    labels = [row.label for row in table.yardsticks]
    for row in [*table.rows, *(row for row in table.yardsticks if labels.count(row.label) == 1)]:
        for k, use in enumerate(row.uses):
            cells = [NONE if measured is None else percent(measured.mean) for measured in use.values]
            name = "" if k else escape(row.label.removesuffix(", same labels"))
            grid.add_row(name, use.name, *cells, style="" if row.group else "dim")
    console.print(grid)
    below(table.protocols[-1], console)
    below("; ".join(f"{budget.title}: {budget.labels}" for budget in table.budgets), console)
    below("means over draws and seeds, whose spread is in the report", console)
