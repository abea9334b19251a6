"""What `contrast run` ends with on the terminal: what was gained or lost, then one table per protocol with yardsticks.

The rows of the report, cut to fit 80 columns: only the linear probe keeps its interval, or its deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from cl_core.report.collect import collect
from cl_core.report.distillation import distillations
from cl_core.report.groups import NONE, group_seeds, percent, share_name
from cl_core.report.results import Row, Table, gaps, tables
from cl_core.report.verdict import verdict


def print_results(artifacts: Path, experiments: Sequence[str], console: Console) -> None:
    """Print verdicts, tables and what is missing of these experiments. Raises DataError for a damaged file."""
    collected = collect(artifacts, experiments, timing=False)
    groups = group_seeds(collected)
    for group in groups:
        judged = verdict(group)
        if judged.says_something:
            _remark(group.label, judged.text, console)
        for experiment in group.experiments:
            for said in experiment.remarks[-1:]:  # the report has them all
                _remark(experiment.name, f"at step {said.step:,} of {experiment.steps:,}: {said.text}", console)
    for table in tables(groups):
        console.print(_grid(table))
    for distilled in distillations(groups):
        _remark(distilled.group.label, distilled.text, console)
    for experiment in collected:
        for line in gaps(experiment):
            _remark(experiment.name, line, console)


def _remark(name: str, text: str, console: Console) -> None:
    console.print(f"[dim]{escape(name)}:[/dim] {escape(text)}", soft_wrap=True)


def _grid(table: Table) -> Grid:
    grid = Grid(title="top-1 accuracy, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("", min_width=12, overflow="fold")
    for heading in ("linear", "stage", "kNN", *(share_name(fraction) for fraction, _ in table.fractions)):
        grid.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for row in table.rows:
        _add_row(grid, row)
    labels = [row.label for row in table.yardsticks]
    for row in table.yardsticks:
        if labels.count(row.label) == 1:  # lines that differ by input only would look alike here
            _add_row(grid, row, "dim")
    grid.caption = ", ".join(table.protocols)
    if table.constant is not None:
        grid.caption += f"\nbalanced: mean over the classes; a constant answer gets {percent(table.constant)} % (top-1)"
    if len(set(labels)) < len(labels):
        grid.caption += "\nyardsticks that differ between experiments stand below and in the report"
    if table.fractions:
        shares = ", ".join(share_name(fraction) for fraction, _ in table.fractions)
        grid.caption += f"\n{shares}: fine-tuned with that share of the labels"
        grid.caption += "\nfrozen: a linear probe on these labels" if any(any(row.frozen) for row in table.rows) else ""
    grid.caption_justify = "left"
    return grid


def _add_row(grid: Grid, row: Row, style: str = "") -> None:
    """The line, and below it its balanced accuracies and the frozen encoder on few labels, where there are any."""
    grid.add_row(*(escape(cell) for cell in _cells(row)), style=style)
    balanced = [None if m is None else m.balanced for m in (row.linear, row.knn, *row.finetune)]
    if any(value is not None for value in balanced):
        linear, *others = ("" if value is None else percent(value) for value in balanced)
        grid.add_row("  balanced", linear, "", *others, style=style)
    if any(row.frozen):
        cells = ("" if measured is None else percent(measured.mean) for measured in row.frozen)
        grid.add_row("  frozen", "", "", "", *cells, style=style)


def _cells(row: Row) -> Iterator[str]:
    yield f"{row.label}, {row.note}" if row.group and row.note else row.label
    yield NONE if row.linear is None else str(row.linear)
    yield "" if row.group is None else row.group.best_stage
    yield from (NONE if measured is None else percent(measured.mean) for measured in (row.knn, *row.finetune))
