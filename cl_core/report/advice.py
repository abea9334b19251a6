"""What to do next with a group of runs, from what was measured and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from cl_core.report.budgets import in_words
from cl_core.report.collect import Experiment
from cl_core.report.few_labels import FewLabels
from cl_core.report.groups import Group, percent, points
from cl_core.report.records import RANDOM_INIT, SUPERVISED
from cl_core.report.verdict import verdict

RISING = 0.01  #: of online kNN over the last quarter: longer training still pays
FLAT = 0.003  #: below it longer training promises little
LEAST_POINTS = 4  #: of online kNN, to see whether it rises


def advice(group: Group, found: FewLabels) -> list[str]:
    """Sentences without full stop, the most useful first; [] where nothing was measured."""
    return [*_method(group, found), *_epochs(group), *_use(found), *_stage(group), *_seeds(group, found)]


def _method(group: Group, found: FewLabels) -> Iterator[str]:
    untrained = [contest for contest in found.against if contest.reference == RANDOM_INIT]
    beaten = [contest for contest in untrained if contest.state == "better"]
    supervised = [c.budget for c in found.against if c.reference == SUPERVISED and c.state == "worse"]
    if (untrained and not beaten) or (not untrained and verdict(group).is_loss):
        name = group.first.name
        yield f"change the views, the loss or the method before training longer: `contrast tune {name}` searches"
    if supervised:
        yield f"train from scratch with {in_words(supervised)}: that gives more than this encoder"


def _epochs(group: Group) -> Iterator[str]:
    rises = [rise for experiment in group.experiments if (rise := _last_quarter(experiment)) is not None]
    if not rises:
        return
    rise = statistics.fmean(rises)
    if rise >= RISING:
        yield f"train longer: online kNN still rose by {percent(rise)} points in the last quarter of training"
    elif abs(rise) < FLAT:
        yield f"more epochs alone promise little: online kNN moved by {points(rise)} points in the last quarter"


def _last_quarter(experiment: Experiment) -> float | None:
    """How much online kNN has risen since three quarters of the steps; None where it was not asked often enough."""
    steps, values = (experiment.curves.get(name, []) for name in ("step", "knn_top1"))
    known = [
        (step, value) for step, value in zip(steps, values, strict=False) if step is not None and value is not None
    ]
    if len(known) < 4 or known[-1][0] <= 0:
        return None
    last = known[-1]
    before = max(pair for pair in known if pair[0] <= 0.75 * last[0]) if known[0][0] <= 0.75 * last[0] else None
    return None if before is None else last[1] - before[1]


def _use(found: FewLabels) -> Iterator[str]:
    tuned = [contest for contest in found.uses if contest.state == "better"]
    kept = [contest for contest in found.uses if contest.state != "better"]
    if tuned:
        gains = [contest.difference.value for contest in tuned]
        shown = percent(gains[0]) if len(gains) == 1 else f"{percent(min(gains))} to {percent(max(gains))}"
        names = in_words([contest.budget for contest in tuned])
        yield f"fine-tune with {names}: {shown} points more than the frozen probe"
    if kept:
        names = in_words([contest.budget for contest in kept])
        yield f"the frozen probe is enough with {names}: fine-tuning shows no gain there"


def _stage(group: Group) -> Iterator[str]:
    results = [experiment.linear.result for experiment in group.experiments if experiment.linear.result]
    gains, last = [], ""
    for result in results:
        last = list(result.stages)[-1]
        gains.append(result.stages[result.best_stage].validation_top1 - result.stages[last].validation_top1)
    if gains and min(gains) > 0:
        gain = percent(statistics.fmean(gains))
        yield f"read {group.best_stage} and not {last}: {gain} points more on validation with all labels"


def _seeds(group: Group, found: FewLabels) -> Iterator[str]:
    widths = [(contest.difference.high - contest.difference.low) / 2 for contest in found.against]
    if len(group.experiments) == 1 and widths:
        yield (
            f"add seeds before building on a difference: this is one run, within which differences are known to "
            f"{_narrow(widths)} points"
        )


def _narrow(widths: Sequence[float]) -> str:
    low, high = percent(min(widths)), percent(max(widths))
    return f"\N{PLUS-MINUS SIGN} {low}" if low == high else f"\N{PLUS-MINUS SIGN} {low} to {high}"
