"""From groups of experiments to what is printed: one table per protocol, yardsticks, plain rows.

A table never mixes protocol ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cl_core.report.collect import Experiment, collect
from cl_core.report.distillation import distillations
from cl_core.report.groups import NONE, Group, Measured, Protocols, group_seeds, percent, share_name
from cl_core.report.records import RANDOM_INIT
from cl_core.report.verdict import verdict


@dataclass(frozen=True)
class Row:
    """A line of a results table. group: whose line it is, None for a yardstick. frozen: on the labels of finetune."""

    label: str
    note: str
    group: Group | None
    linear: Measured | None = None
    knn: Measured | None = None
    finetune: tuple[Measured | None, ...] = ()
    frozen: tuple[Measured | None, ...] = ()


@dataclass(frozen=True)
class Table:
    """Groups measured under the same protocols, with their yardsticks below.

    fractions: [(share, which labels)]. runs: each seed by itself, where there are groups of several.
    """

    protocols: tuple[str, ...]
    fractions: tuple[tuple[float, str], ...]
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
    fractions = sorted({fraction for group in groups for fraction in group.fractions})
    shown = {experiment.name for group in groups for experiment in group.experiments}
    absent = [
        Group(len(groups), (experiment,), experiment.name) for experiment in collected if experiment.name not in shown
    ]
    unbalanced = any(group.constant is not None for group in groups)
    return [_plain(group, fractions, unbalanced=unbalanced) for group in [*ordered, *absent]]


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


def _plain(group: Group, fractions: Sequence[float], *, unbalanced: bool) -> dict[str, str]:
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
    for fraction in fractions:
        cells[f"frozen {share_name(fraction)}"] = _text(group.frozen(fraction))
        cells[f"fine-tune {share_name(fraction)}"] = _text(group.finetune(fraction))
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
    fractions = sorted({fraction for group in groups for fraction in group.fractions})
    seeds = [Group(g.index, (e,), e.name) for g in groups if len(g.experiments) > 1 for e in g.experiments]
    return Table(
        protocols=tuple(protocol for protocol in protocols if protocol),
        fractions=tuple((fraction, _labels(groups, fraction)) for fraction in fractions),
        rows=tuple(_row(group, group.seeds, fractions) for group in groups),
        yardsticks=tuple(_yardsticks(groups, fractions)),
        runs=tuple(_row(run, f"seed {run.first.seed}", fractions) for run in seeds),
    )


def _row(group: Group, note: str, fractions: list[float]) -> Row:
    tuned = tuple(group.finetune(fraction) for fraction in fractions)
    frozen = tuple(group.frozen(fraction) for fraction in fractions)
    return Row(group.label, note, group, group.linear, group.knn, tuned, frozen)


def _labels(groups: list[Group], fraction: float) -> str:
    """ "150 labels", or "15 labels, as at 1 %" where a smaller share selects the same."""
    results = [e.finetune.result for group in groups for e in group.experiments if e.finetune.result]
    found = [result.fractions[fraction] for result in results if fraction in result.fractions]
    counts = " or ".join(f"{count:,}" for count in sorted({f.n_labels for f in found}))
    same = [f.same_subset_as for f in found if f.same_subset_as is not None]
    return f"{counts} labels" + (f", as at {share_name(same[0])}" if same else "")


def _yardsticks(groups: list[Group], fractions: list[float]) -> list[Row]:
    """Random init and supervised per encoder, raw pixels and others once; equal lines are merged."""
    rows: dict[Row, list[str]] = {}
    for make in (_random_init, _supervised, _other_baselines):
        for group in groups:
            for row in make(group, fractions):
                rows.setdefault(row, []).append(group.label)
    labels = [(row.label, row.note) for row in rows]
    return [
        row
        if labels.count((row.label, row.note)) == 1
        else replace(row, note=f"{row.note}; for {', '.join(owners)}".removeprefix("; "))
        for row, owners in rows.items()
    ]


def _random_init(group: Group, fractions: list[float]) -> list[Row]:
    probes = tuple(group.finetune_yardstick("random_init_probe", fraction) for fraction in fractions)
    linear, knn = group.baseline(RANDOM_INIT), group.baseline(RANDOM_INIT, "knn_top1")
    return [Row("random init", group.encoder, None, linear, knn, probes)] if any([linear, knn, *probes]) else []


def _supervised(group: Group, fractions: list[float]) -> list[Row]:
    figures = tuple(group.finetune_yardstick("supervised_same_labels", fraction) for fraction in fractions)
    return [Row("supervised, same labels", group.encoder, None, None, None, figures)] if any(figures) else []


def _other_baselines(group: Group, fractions: list[float]) -> list[Row]:
    results = [e.linear.result for e in group.experiments if e.linear.result]
    names = dict.fromkeys(name for result in results for name in result.baselines if name != RANDOM_INIT)
    empty: tuple[Measured | None, ...] = (None,) * len(fractions)
    return [
        Row(name.replace("_", " "), "", None, group.baseline(name), group.baseline(name, "knn_top1"), empty)
        for name in names
    ]
