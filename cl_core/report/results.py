"""From groups of experiments to what is printed: one table per protocol, yardsticks, plain rows.

A table never mixes protocol ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cl_core.report.budgets import OURS, YARDSTICK_USES, YARDSTICKS, Budget, budget_title
from cl_core.report.collect import Experiment, collect
from cl_core.report.distillation import distillations
from cl_core.report.groups import NONE, Group, Measured, Protocols, budget_names, group_seeds, percent
from cl_core.report.records import RANDOM_INIT, SUPERVISED
from cl_core.report.verdict import verdict


@dataclass(frozen=True)
class Use:
    """One way to use few labels: a value per budget. competitor: as in finetune/metrics.json. name: for readers."""

    competitor: str
    name: str
    values: tuple[Measured | None, ...]


@dataclass(frozen=True)
class Row:
    """A line of a results table. group: whose line it is, None for a yardstick. uses: of few labels, those known."""

    label: str
    note: str
    group: Group | None
    linear: Measured | None = None
    knn: Measured | None = None
    uses: tuple[Use, ...] = ()

    @property
    def best(self) -> Use | None:
        """The use that selection has picked; of a yardstick its only one."""
        return self.uses[-1] if self.uses else None


@dataclass(frozen=True)
class Table:
    """Groups measured under the same protocols, with their yardsticks below.

    runs: each seed by itself, where there are groups of several.
    """

    protocols: tuple[str, ...]
    budgets: tuple[Budget, ...]
    rows: tuple[Row, ...]
    yardsticks: tuple[Row, ...]
    runs: tuple[Row, ...] = ()

    @property
    def groups(self) -> list[Group]:
        """The groups of the table."""
        return [row.group for row in self.rows if row.group is not None]

    @property
    def constant(self) -> float | None:
        """What a constant answer gets where classes are unbalanced."""
        return next((group.constant for group in self.groups if group.constant is not None), None)


#: figure of finetune/metrics.json -> what its column is called
FURTHER = {
    "top1": "top-1",
    "balanced_top1": "balanced",
    "macro_f1": "F1",
    "ece": "ECE",
    "brier": "Brier",
    "log_loss": "log loss",
}
_SHARES = ("top1", "balanced_top1", "macro_f1", "ece")  # shown in percent


@dataclass(frozen=True)
class Further:
    """Every figure of one use of one label budget, in the order of FURTHER, as text."""

    label: str
    use: str
    budget: str
    figures: tuple[str, ...]


def further(table: Table) -> list[Further]:
    """Lines of all groups of a table, by budget and then competitor; yardsticks stand below their group."""
    uses = {**OURS, **YARDSTICKS}
    return [
        Further(group.label, uses[competitor], budget.title, _further_figures(group, competitor, budget.name))
        for group in table.groups
        for budget in table.budgets
        for competitor in uses
        if group.few_labels(competitor, budget.name)
    ]


def _further_figures(group: Group, competitor: str, budget: str) -> tuple[str, ...]:
    def text(name: str) -> str:
        value = group.figure(competitor, budget, name)
        if value is None:
            return NONE
        return percent(value) if name in _SHARES else f"{value:.3f}"

    return tuple(text(name) for name in FURTHER)


def tables(groups: Sequence[Group]) -> list[Table]:
    """One table per combination of protocol ids; a group without fine-tuning joins the first table that it fits."""
    found: list[tuple[Protocols, list[Group]]] = []
    for group in groups:
        if not any(group.protocols):
            continue
        fit = next((k for k, (known, _) in enumerate(found) if _compatible(known, group.protocols)), None)
        if fit is None:
            found.append((group.protocols, [group]))
        else:
            known, members = found[fit]
            found[fit] = (_united(known, group.protocols), [*members, group])
    return [_table(protocols, members) for protocols, members in found]


def results_table(artifacts: Path, experiments: Sequence[str]) -> list[dict[str, str]]:
    """Rows for a terminal or a Prefect table: one per group of seeds, one per experiment without a result.

    Every row has the same keys, every value is text; accuracies are percent. Raises DataError for a damaged file.
    """
    collected = collect(artifacts, experiments, timing=False)
    groups = group_seeds(collected)
    ordered = [group for table in tables(groups) for group in table.groups]
    ordered += [group for group in groups if group not in ordered]
    budgets = budget_names(groups)
    shown = {experiment.name for group in groups for experiment in group.experiments}
    absent = [
        Group(len(groups), (experiment,), experiment.name) for experiment in collected if experiment.name not in shown
    ]
    unbalanced = any(group.constant is not None for group in groups)
    return [_plain(group, budgets, unbalanced=unbalanced) for group in [*ordered, *absent]]


def gaps(experiment: Experiment) -> list[str]:
    """What an experiment lacks and why, one sentence each; [] for a complete one."""
    lines = [f"{stage} skipped: {reason}" for stage, reason in experiment.skipped.items()]
    absent = experiment.linear.result.classes_without_training_images if experiment.linear.result else {}
    if absent:
        lines.append(
            f"no training image of {', '.join(absent)}, so {sum(absent.values()):,} test images can only be errors"
        )
    if experiment.missing:
        lines.append(f"no output of {', '.join(experiment.missing)}; run `{experiment.command}`")
    return lines


def _plain(group: Group, budgets: Sequence[str], *, unbalanced: bool) -> dict[str, str]:
    cells = {
        "experiment": f"{group.label}, {group.seeds}" if group.seeds else group.label,
        "method": group.method,
        "encoder": group.encoder,
        "linear top-1 %": _text(group.linear),
        "best stage": group.best_stage,
        "kNN top-1 %": _text(group.knn),
    }
    if unbalanced:
        cells |= {"linear balanced %": _balanced(group.linear), "kNN balanced %": _balanced(group.knn)}
    for budget in budgets:
        for competitor, use in OURS.items():
            cells[f"{use}, {budget_title(budget)}"] = _text(group.few_labels(competitor, budget))
    notes = [line for experiment in group.experiments for line in gaps(experiment)]
    judged = verdict(group)
    sentences = [judged.text, *notes] if judged.says_something else [*notes]
    sentences += [distilled.text for distilled in distillations([group])]
    cells["verdict"] = "; ".join(dict.fromkeys(sentences))
    cells["protocols"] = ", ".join(protocol for protocol in group.protocols if protocol) or NONE
    return cells


def _text(measured: Measured | None) -> str:
    return NONE if measured is None else str(measured)


def _balanced(measured: Measured | None) -> str:
    return NONE if measured is None or measured.balanced is None else percent(measured.balanced)


def _compatible(one: Protocols, other: Protocols) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def _united(one: Protocols, other: Protocols) -> Protocols:
    return one[0] or other[0], one[1] or other[1], one[2] or other[2]


def _table(protocols: Protocols, groups: list[Group]) -> Table:
    budgets = budget_names(groups)
    seeds = [Group(g.index, (e,), e.name) for g in groups if len(g.experiments) > 1 for e in g.experiments]
    return Table(
        protocols=tuple(protocol for protocol in protocols if protocol),
        budgets=tuple(Budget.of(name, [r for group in groups for r in group.at(name)]) for name in budgets),
        rows=tuple(_row(group, group.seeds, budgets) for group in groups),
        yardsticks=tuple(_yardsticks(groups, budgets)),
        runs=tuple(_row(run, f"seed {run.first.seed}", budgets) for run in seeds),
    )


def _row(group: Group, note: str, budgets: list[str]) -> Row:
    return Row(group.label, note, group, group.linear, group.knn, _uses(group, OURS, budgets))


def _uses(group: Group, competitors: Mapping[str, str], budgets: list[str]) -> tuple[Use, ...]:
    found = [
        Use(name, shown, tuple(group.few_labels(name, budget) for budget in budgets))
        for name, shown in competitors.items()
    ]
    return tuple(use for use in found if any(use.values))


def _yardsticks(groups: list[Group], budgets: list[str]) -> list[Row]:
    """Random init and supervised per encoder, raw pixels and others once; equal lines are merged."""
    rows: dict[Row, list[str]] = {}
    names = dict.fromkeys([*YARDSTICKS, *(name for group in groups for name in _baselines(group))])
    for name in names:
        for group in groups:
            row = _yardstick(name, group, budgets)
            if row.linear or row.knn or row.uses:
                rows.setdefault(row, []).append(group.label)
    labels = [(row.label, row.note) for row in rows]
    return [
        row
        if labels.count((row.label, row.note)) == 1
        else replace(row, note=f"{row.note}; for {', '.join(owners)}".removeprefix("; "))
        for row, owners in rows.items()
    ]


def _yardstick(name: str, group: Group, budgets: list[str]) -> Row:
    label = YARDSTICKS.get(name, name.replace("_", " "))
    note = group.encoder if name in (RANDOM_INIT, SUPERVISED) else ""
    uses = _uses(group, {name: YARDSTICK_USES.get(name, "")}, budgets)
    return Row(label, note, None, group.baseline(name), group.baseline(name, "knn_top1"), uses)


def _baselines(group: Group) -> list[str]:
    results = [e.linear.result for e in group.experiments if e.linear.result]
    return [name for result in results for name in result.baselines]
