"""Experiments that differ only in seed are one group, and each figure of a group is a mean with its spread.

Accuracies are shares in [0, 1] inside and percent in texts; differences are percentage points. A mean never mixes
configurations or protocol ids.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cl_core.report.collect import Experiment
from cl_core.report.records import Accuracy, BudgetResult, FinetuneResult, Knn

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
UNBALANCED = 1.5  #: times as many images in the largest class as in the smallest: balanced accuracy is shown

Protocols = tuple[str | None, str | None, str | None]
_SELECTION = {"labels": "the same labels"}  # what hyper-parameters were chosen on; "validation" is its own name


@dataclass(frozen=True)
class Measured:
    """One figure of a group: a value per seed and draw of labels, and the 95 % interval where there is a single one.

    balanced: mean of the balanced accuracy; None where classes are balanced, so that it need not be shown.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    balanced: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds and draws."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> str:
        """What stands beside the mean: "+- 0.4" over several, "43.9 to 45.9" for one run, "" where neither is known."""
        if len(self.values) > 1:
            return f"{PLUS_MINUS} {percent(statistics.stdev(self.values))}"
        return "" if self.interval is None else f"{percent(self.interval[0])} to {percent(self.interval[1])}"

    def __str__(self) -> str:
        """Percent with its spread, for a terminal."""
        if len(self.values) > 1:
            return f"{percent(self.mean)} {self.spread}"
        return f"{percent(self.mean)} ({self.spread})" if self.spread else percent(self.mean)


@dataclass(frozen=True)
class Group:
    """Experiments that differ in nothing but the seed (often just one), at least one of them evaluated or trained.

    index: position among the groups, which fixes colour and marker. label: name of the experiment; of several that
    differ by the seed alone, what their names begin with.
    """

    index: int
    experiments: tuple[Experiment, ...]
    label: str

    @property
    def first(self) -> Experiment:
        """The experiment whose pictures stand for the group."""
        return self.experiments[0]

    @property
    def seeds(self) -> str:
        """ "3 seeds (0, 1, 2)", or "" for a single run."""
        if len(self.experiments) == 1:
            return ""
        return f"{len(self.experiments)} seeds ({', '.join(str(experiment.seed) for experiment in self.experiments)})"

    @property
    def method(self) -> str:
        """Name of the method, or a dash where the resolved configuration is missing."""
        method = self.first.spec("method")
        return method.name if method else NONE

    @property
    def encoder(self) -> str:
        """Encoder with its options, or a dash."""
        encoder = self.first.spec("encoder")
        return encoder.title if encoder else NONE

    @property
    def protocols(self) -> Protocols:
        """Protocol ids of linear probe, kNN and fine-tuning; None where there is no result."""
        return _protocols(self.first)

    @property
    def budgets(self) -> list[str]:
        """Names of the label budgets, the fewest labels first."""
        return budget_names([self])

    @property
    def constant(self) -> float | None:
        """What a constant answer gets where classes are unbalanced, else None."""
        found = [e.linear.result.classes for e in self.experiments if e.linear.result]
        return next((classes.constant_top1 for classes in found if classes.imbalance >= UNBALANCED), None)

    @property
    def linear(self) -> Measured | None:
        """Linear probe of the best stage."""
        return self._measured([e.linear.result.test for e in self.experiments if e.linear.result])

    @property
    def knn(self) -> Measured | None:
        """Weighted nearest neighbours on the last stage."""
        return self._measured([e.linear.result.knn for e in self.experiments if e.linear.result])

    @property
    def knn_best_stage(self) -> Measured | None:
        """Weighted nearest neighbours on the best stage, None where that is the last one."""
        found = [e.linear.result.knn_best_stage for e in self.experiments if e.linear.result]
        return self._measured([knn for knn in found if knn])

    @property
    def best_stage(self) -> str:
        """Stage chosen on validation, or all that were chosen where seeds disagree."""
        stages = [e.linear.result.best_stage for e in self.experiments if e.linear.result]
        return ", ".join(dict.fromkeys(stages)) or NONE

    def few_labels(self, competitor: str, budget: str) -> Measured | None:
        """Top-1 of a competitor at a label budget, a value per seed and draw."""
        found = [r.competitors[competitor] for r in self.at(budget) if competitor in r.competitors]
        if not found:
            return None
        draws = [tuple(draw.top1 for draw in one.draws) for one in found]
        if len(set(draws)) == 1:  # a yardstick that all seeds share
            draws = draws[:1]
        values = tuple(value for some in draws for value in some)
        interval = found[0].top1_ci95 if len(values) == 1 else None
        return Measured(values, interval, self._shown([one.balanced_top1 for one in found]))

    def figure(self, competitor: str, budget: str, name: str) -> float | None:
        """Mean over seeds and draws of a figure of `FewLabelFigures`."""
        found = [r.competitors[competitor] for r in self.at(budget) if competitor in r.competitors]
        return statistics.fmean(getattr(one, name) for one in found) if found else None

    def at(self, budget: str) -> list[BudgetResult]:
        """The results of every seed at a label budget."""
        found = [e.finetune.result.budgets.get(budget) for e in self.experiments if e.finetune.result]
        return [result for result in found if result]

    def baseline(self, name: str, figure: str = "top1") -> Measured | None:
        """`top1` or `knn_top1` of a baseline of the linear protocol."""
        known = [e.linear.result.baselines.get(name) for e in self.experiments if e.linear.result]
        found = [b for b in known if b and getattr(b, figure) is not None]
        balanced = [getattr(b, figure.replace("top1", "balanced_top1")) for b in found]
        return _yardstick([getattr(b, figure) for b in found], self._shown(balanced))

    def _measured(self, found: Sequence[Accuracy]) -> Measured | None:
        if not found:
            return None
        interval = found[0].top1_ci95 if len(found) == 1 else None
        return Measured(tuple(f.top1 for f in found), interval, self._shown([f.balanced_top1 for f in found]))

    def _shown(self, balanced: Sequence[float | None]) -> float | None:
        """The mean of balanced accuracies where classes are unbalanced."""
        known = [value for value in balanced if value is not None]
        return statistics.fmean(known) if known and self.constant is not None else None


def percent(share: float) -> str:
    """0.4487 -> "44.9"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.061 -> "+6.1", with a true minus sign."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def budget_names(groups: Iterable[Group]) -> list[str]:
    """Names of all label budgets of some groups, the fewest labels first."""
    results = [e.finetune.result for group in groups for e in group.experiments if e.finetune.result]
    found = {name: budget.labels_trained for result in results for name, budget in result.budgets.items()}
    return sorted(found, key=lambda name: (found[name], name == "all"))


def share_name(fraction: float) -> str:
    """0.01 -> "1 %"."""
    return f"{100 * fraction:g} %"


def group_seeds(experiments: Iterable[Experiment]) -> list[Group]:
    """Put experiments together that differ only in seed and were judged alike; those without any output are left out.

    Alike means: the same resolved settings of pretraining, linear_eval and finetune, the same parts and protocol ids.
    """
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        if experiment.encoder_sha256 or experiment.linear.result or experiment.finetune.result:
            groups.setdefault(_identity(experiment), []).append(experiment)
    labels = _labels(list(groups.values()))
    return [
        Group(k, tuple(members), label) for k, (members, label) in enumerate(zip(groups.values(), labels, strict=True))
    ]


def _labels(groups: list[list[Experiment]]) -> list[str]:
    """The experiment of each group, or what its names begin with, where that tells the groups apart; else all names."""
    stems = [_stem(group) for group in groups]
    return [
        ", ".join(experiment.name for experiment in group) if not stem or stems.count(stem) > 1 else stem
        for stem, group in zip(stems, groups, strict=True)
    ]


def _stem(group: list[Experiment]) -> str:
    """ "simclr" of its seeds, and of the experiments "simclr-seed0" and "simclr-seed1"."""
    names, files = [experiment.name for experiment in group], {experiment.file for experiment in group}
    if len(names) == 1:
        return names[0]
    if len(files) == 1 and "" not in files:
        return files.pop()
    shared = "".join(
        a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    )
    return re.sub(r"([-_.](seed|s))?[-_.]*$", "", shared)


def _yardstick(values: list[float], balanced: float | None) -> Measured | None:
    """A yardstick that several runs share is one value, not a mean without spread."""
    if not values:
        return None
    return Measured(tuple(values[:1] if len(set(values)) == 1 else values), balanced=balanced)


def _protocols(experiment: Experiment) -> Protocols:
    linear, finetune = experiment.linear.result, experiment.finetune.result
    return (
        linear.protocol if linear else None,
        _knn_protocol(linear.knn) if linear else None,
        _few_labels_protocol(finetune) if finetune else None,
    )


def _knn_protocol(knn: Knn) -> str:
    """The id with k and T, which it names itself only where k was reduced to the size of the bank."""
    k = "" if "(k=" in knn.protocol else f"(k={knn.k})"
    return f"{knn.protocol}{k}, T={knn.temperature:g}"


def _few_labels_protocol(result: FinetuneResult) -> str:
    """The id with what choices were made on."""
    return f"{result.protocol}, chosen on {_SELECTION.get(result.selection, result.selection)}"


def _identity(experiment: Experiment) -> str:
    if "pretrain" not in experiment.resolved:
        return experiment.name
    stages = {stage: experiment.resolved.get(stage) for stage in ("pretrain", "linear_eval", "finetune")}
    settings = {
        stage: (_without_seed(resolved.config), [part.model_dump() for part in resolved.parts])
        for stage, resolved in stages.items()
        if resolved is not None
    }
    return json.dumps([settings, _protocols(experiment)], sort_keys=True, default=str)


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "seed"}
