"""Sentences of papers held against the results: is one experiment better than another, and could that be chance?

Reads results and trains nothing. The linear probe is compared image by image, groups of several seeds pair by pair, and
anything else by the intervals of both sides, which is the weaker test; a logged figure of a single run has no test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cl_core.config import ClaimConfig
from cl_core.errors import DataError, did_you_mean
from cl_core.measures.metrics import mcnemar
from cl_core.report.collect import Experiment
from cl_core.report.groups import MINUS, Group, points

LEVEL = 0.05  #: a p value below it tells two experiments apart
LAST_PART = 10  #: of what is logged only the last tenth counts
Z95 = 1.96

State = Literal["holds", "does not hold", "not told apart", "not checked"]


@dataclass(frozen=True)
class Outcome:
    """A claim with what became of it.

    difference: of the better over the worse one, a share for accuracies. p: two-sided, None where there is no test.
    how: what was compared, or why nothing was.
    """

    claim: ClaimConfig
    state: State
    how: str
    difference: float | None = None
    p: float | None = None

    @property
    def shown_difference(self) -> str:
        """In percentage points for accuracies, as it is for logged figures, "" where there is none."""
        if self.difference is None:
            return ""
        if self.claim.kind == "metrics":
            return f"{self.difference:+.3g}".replace("-", MINUS)
        return points(self.difference)

    @property
    def shown_p(self) -> str:
        """ "0.012", "< 0.001", or "" where there is none."""
        return "" if self.p is None else "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"


class NotComparableError(DataError):
    """Two experiments cannot be compared in a figure; the message says why."""


@dataclass(frozen=True)
class Compared:
    """Difference of two experiments, its p value or None, and how that came about."""

    difference: float
    p: float | None
    how: str


def judge(claims: Sequence[ClaimConfig], groups: Sequence[Group]) -> list[Outcome]:
    """Every claim with its outcome, in order. Experiments without the figure give "not checked" and a reason."""
    return [_judged(claim, groups) for claim in claims]


def _judged(claim: ClaimConfig, groups: Sequence[Group]) -> Outcome:
    try:
        better, worse = (_group_of(name, groups) for name in (claim.better, claim.worse))
        seeds = _shared_seeds(better, worse)
        if len(seeds) > 1:
            found = _over_seeds(claim, seeds)
        else:
            pair = seeds[0] if seeds else (_named(claim.better, better), _named(claim.worse, worse))
            found = _COMPARE[claim.kind](claim, *pair)
    except NotComparableError as error:
        return Outcome(claim, "not checked", str(error))
    return Outcome(claim, _state(found), found.how, found.difference, found.p)


def _state(found: Compared) -> State:
    if found.difference == 0 or (found.p is not None and found.p >= LEVEL):
        return "not told apart"
    return "holds" if found.difference > 0 else "does not hold"


def _group_of(name: str, groups: Sequence[Group]) -> Group:
    found = [group for group in groups if any(name in (e.name, e.file) for e in group.experiments)]
    if not found:
        raise NotComparableError(f"{name} has no results yet; run `contrast run {name}`")
    return found[0]


def _named(name: str, group: Group) -> Experiment:
    return next(experiment for experiment in group.experiments if name in (experiment.name, experiment.file))


def _shared_seeds(better: Group, worse: Group) -> list[tuple[Experiment, Experiment]]:
    others = {experiment.seed: experiment for experiment in worse.experiments}
    return [(experiment, others[experiment.seed]) for experiment in better.experiments if experiment.seed in others]


def _over_seeds(claim: ClaimConfig, pairs: Sequence[tuple[Experiment, Experiment]]) -> Compared:
    """Student's paired t test over seeds."""
    differences = [_COMPARE[claim.kind](claim, *pair).difference for pair in pairs]
    return Compared(statistics.fmean(differences), _paired_t(differences), f"paired t test over {len(pairs)} seeds")


def _paired_t(differences: Sequence[float]) -> float:
    from scipy.stats import ttest_1samp

    if len(set(differences)) == 1:  # no spread at all: the statistic would be 0 / 0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(ttest_1samp(differences, 0.0).pvalue)


def _linear(_: ClaimConfig, better: Experiment, worse: Experiment) -> Compared:
    a, b = better.linear.result, worse.linear.result
    if a is None or b is None:
        raise NotComparableError(_no_result(worse if a else better, "linear probe"))
    _same_protocol(a.protocol, b.protocol)
    correct = [_answers(experiment) for experiment in (better, worse)]
    if correct[0].keys() != correct[1].keys():
        raise NotComparableError("they were judged on different test images")
    right = [torch.tensor([answers[row] for row in correct[0]], dtype=torch.bool) for answers in correct]
    return Compared(a.test.top1 - b.test.top1, mcnemar(*right), f"McNemar's test on {a.test.n:,} images")


def _answers(experiment: Experiment) -> dict[tuple[int, int], bool]:
    """{(row of the test split, label): whether the probe was right}."""
    path = experiment.folder / "linear_eval" / "predictions.safetensors"
    try:
        found = load_file(path)
        rows, labels, predicted = (found[name].tolist() for name in ("row", "label", "predicted"))
    except (SafetensorError, OSError, KeyError) as error:
        raise NotComparableError(
            f"the predictions {path.name} of {experiment.name} cannot be read ({error}); make them again with `dvc "
            f"repro linear_eval@{experiment.name}`"
        ) from None
    return {(row, label): label == guess for row, label, guess in zip(rows, labels, predicted, strict=True)}


def _knn(_: ClaimConfig, better: Experiment, worse: Experiment) -> Compared:
    a, b = better.linear.result, worse.linear.result
    if a is None or b is None:
        raise NotComparableError(_no_result(worse if a else better, "kNN"))
    _same_protocol(a.knn.protocol, b.knn.protocol)
    errors = [math.sqrt(r.knn.top1 * (1 - r.knn.top1) / r.test.n) for r in (a, b)]
    return _unpaired(a.knn.top1 - b.knn.top1, errors)


def _finetune(claim: ClaimConfig, better: Experiment, worse: Experiment) -> Compared:
    a, b = better.finetune.result, worse.finetune.result
    if a is None or b is None:
        raise NotComparableError(_no_result(worse if a else better, "fine-tuning"))
    _same_protocol(a.protocol, b.protocol)
    share = float(claim.argument)
    if share not in a.fractions or share not in b.fractions:
        raise NotComparableError(f"one of them was not fine-tuned with the share {share:g}; run it again")
    one, other = a.fractions[share], b.fractions[share]
    errors = [(found.top1_ci95[1] - found.top1_ci95[0]) / (2 * Z95) for found in (one, other)]
    return _unpaired(one.top1 - other.top1, errors)


def _metrics(claim: ClaimConfig, better: Experiment, worse: Experiment) -> Compared:
    difference = _logged(better, claim.argument) - _logged(worse, claim.argument)
    return Compared(difference, None, "last tenth of one run each, sign only")


def _logged(experiment: Experiment, name: str) -> float:
    """Mean of a logged figure over the last tenth of the logged steps that have it."""
    values = [value for value in experiment.curves.get(name, []) if value is not None]
    if not values:
        known = [column for column in experiment.curves if column not in ("step", "epoch")]
        hint = did_you_mean(name, known)
        raise NotComparableError(f"{experiment.name} logs no {name!r}{hint}; logged: {', '.join(known) or 'nothing'}")
    return statistics.fmean(values[-max(1, len(values) // LAST_PART) :])


def _unpaired(difference: float, errors: Sequence[float]) -> Compared:
    """Normal test of two independent accuracies: both saw the same images, so the true p value is smaller."""
    error = math.hypot(*errors)
    p = 1.0 if error == 0 else math.erfc(abs(difference) / error / math.sqrt(2))
    return Compared(difference, p, "unpaired test, one run each")


def _same_protocol(one: str, other: str) -> None:
    if one != other:
        raise NotComparableError(f"they were judged by different protocols, {one} and {other}")


def _no_result(experiment: Experiment, what: str) -> str:
    reasons = [*experiment.skipped.values(), f"run `{experiment.command}`"]
    return f"{experiment.name} has no result of {what}: {reasons[0]}"


_COMPARE: Mapping[str, Callable[[ClaimConfig, Experiment, Experiment], Compared]] = {
    "linear": _linear,
    "knn": _knn,
    "finetune": _finetune,
    "metrics": _metrics,
}
