"""Every final figure of a project as one row, the stable format of `contrast results` (docs/results.md).

A pure function of what stages wrote; reads no file and trains nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cl_core.report.collect import Experiment
from cl_core.report.records import Baseline, BudgetResult, Competitor, FewLabelFigures, Knn, LinearResult, StageProbe

ALL = "all"
#: competitor in finetune/metrics.json -> columns competitor and use
COMPETITORS = {
    "frozen": ("pretrained", "frozen"),
    "fine_tuned": ("pretrained", "fine_tuned"),
    "best": ("pretrained", "best"),
    "random_init": ("random_init", "frozen"),
    "supervised": ("supervised", "fine_tuned"),
    "raw_pixels": ("raw_pixels", "frozen"),
}
_NAMES = {"balanced_top1": "balanced_accuracy"}  # field of a record -> column figure, where they differ
FIGURES = tuple(FewLabelFigures.model_fields)


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One figure; the fields are the columns, in order, and docs/results.md says what they hold."""

    experiment: str
    seed: int | None
    protocol: str
    competitor: str
    use: str
    budget: float | str
    labels_trained: int | None
    labels_chosen: int | None
    draw: int | None = None
    stage: str | None = None
    split: str = "test"
    figure: str = "top1"
    value: float
    low: float | None = None
    high: float | None = None


COLUMNS = tuple(field.name for field in fields(ResultRow))


def result_rows(experiments: Iterable[Experiment]) -> list[ResultRow]:
    """The rows of these experiments: linear probe, kNN, their yardsticks, then every label budget and draw."""
    return [row for experiment in experiments for row in _rows(experiment)]


def as_records(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """For JSON: a mapping per row, keys in the order of COLUMNS, None where a column does not apply."""
    return [asdict(row) for row in rows]


def as_csv(rows: Sequence[ResultRow]) -> str:
    """A header line and a line per row, ended by a line feed; an empty cell where a column does not apply."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_records(rows))
    return text.getvalue()


def _rows(experiment: Experiment) -> Iterator[ResultRow]:
    linear, few = experiment.linear.result, experiment.finetune.result
    if linear is not None:
        yield from _linear(experiment, linear)
    if few is not None:
        for name, budget in few.budgets.items():
            row = _row(experiment, few.protocol, budget, name)
            for competitor, found in budget.competitors.items():
                yield from _few_labels(row, competitor, found)


def _linear(experiment: Experiment, result: LinearResult) -> Iterator[ResultRow]:
    """With all labels. Rows of stages that were not chosen have no interval."""
    shared = ResultRow(
        experiment=experiment.name,
        seed=experiment.seed,
        protocol=result.protocol,
        competitor="pretrained",
        use="frozen",
        budget=ALL,
        labels_trained=result.labels_trained,
        labels_chosen=result.labels_chosen,
        value=0.0,
    )
    probe = replace(shared, stage=result.best_stage)
    yield _with_interval(probe, result.test.top1, result.test.top1_ci95)
    yield replace(probe, figure="balanced_accuracy", value=result.test.balanced_top1)
    if result.test.top5 is not None:
        yield replace(probe, figure="top5", value=result.test.top5)
    yield from _stages(shared, result.stages, result.best_stage)
    for knn in [found for found in (result.knn, result.knn_best_stage) if found]:
        yield from _neighbours(shared, knn)
    for name, baseline in result.baselines.items():
        yield from _baseline(replace(shared, competitor=name), baseline, result.knn)


def _stages(shared: ResultRow, stages: Mapping[str, StageProbe], best: str) -> Iterator[ResultRow]:
    """On validation for every stage, on test for those that were not chosen, whose row has been given."""
    for name, probe in stages.items():
        yield replace(shared, stage=name, split="validation", value=probe.validation_top1)
        if name != best:
            yield replace(shared, stage=name, value=probe.test_top1)


def _neighbours(shared: ResultRow, knn: Knn) -> Iterator[ResultRow]:
    row = replace(shared, protocol=knn.protocol, use="knn", stage=knn.stage, labels_chosen=0)
    yield _with_interval(row, knn.top1, knn.top1_ci95)
    yield replace(row, figure="balanced_accuracy", value=knn.balanced_top1)


def _baseline(shared: ResultRow, baseline: Baseline, knn: Knn) -> Iterator[ResultRow]:
    probe = replace(shared, stage=baseline.best_stage or None)
    yield _with_interval(probe, baseline.top1, baseline.top1_ci95)
    yield replace(probe, figure="balanced_accuracy", value=baseline.balanced_top1)
    yield from _stages(shared, baseline.stages, baseline.best_stage)
    neighbours = replace(shared, protocol=knn.protocol, use="knn", stage=knn.stage, labels_chosen=0)
    if baseline.knn_top1 is not None:
        yield replace(neighbours, value=baseline.knn_top1)
    if baseline.knn_balanced_top1 is not None:
        yield replace(neighbours, figure="balanced_accuracy", value=baseline.knn_balanced_top1)


def _row(experiment: Experiment, protocol: str, budget: BudgetResult, name: str) -> ResultRow:
    return ResultRow(
        experiment=experiment.name,
        seed=experiment.seed,
        protocol=protocol,
        competitor="",
        use="",
        budget=ALL if name == ALL else budget.per_class,
        labels_trained=budget.labels_trained,
        labels_chosen=budget.labels_chosen,
        value=0.0,
    )


def _few_labels(shared: ResultRow, name: str, found: Competitor) -> Iterator[ResultRow]:
    """The mean over draws with its interval, then each draw."""
    competitor, use = COMPETITORS[name]
    row = replace(shared, competitor=competitor, use=use)
    for figure in FIGURES:
        mean = replace(row, figure=_NAMES.get(figure, figure), value=getattr(found, figure))
        yield _with_interval(mean, found.top1, found.top1_ci95) if figure == "top1" else mean
        for number, draw in enumerate(found.draws):
            yield replace(mean, draw=number, stage=draw.stage, value=getattr(draw, figure))


def _with_interval(row: ResultRow, value: float, interval: tuple[float, float] | None) -> ResultRow:
    low, high = interval or (None, None)
    return replace(row, value=value, low=low, high=high)
