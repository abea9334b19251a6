"""The frozen probe of few labels: logistic regression on one stage; stage and penalty chosen by what may be looked at.

What a practitioner tries first, and what fine-tuning starts from. Features are standardised with the statistics of all
training images, with or without a label. Choices are made by log loss after temperature, out of fold inside the given
labels, or on validation; with one label per class, where nothing can be held out, the last stage and C = 0.1 are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_core.evaluation.features import Features
from cl_core.evaluation.folds import Fold
from cl_core.measures.calibration import fit_temperature, log_loss
from cl_core.measures.logistic import Classifier, fit_classifiers, standardised, statistics_of
from cl_core.measures.span import solve

COSTS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  #: scikit-learn's C, 1 / (l2 * n)
DEFAULT_COST = 0.1
_SPAN = 2048  # examples up to which their Gram matrix is the smaller problem, where features are no fewer
_WIDER = 10.0  # factor by which a grid grows once at the end at which its winner stands


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a classifier learns from and what its choices may look at.

    rows: (n,) of the training split. folds: of positions in `rows`, [] where nothing can be held out. validation:
    labelled features that choices are made on instead, or None.
    """

    rows: Tensor
    folds: Sequence[Fold]
    validation: Features | None = None

    @property
    def parts(self) -> list[Tensor]:
        """Rows of each of the classifiers by which is chosen."""
        if self.validation is not None:
            return [self.rows]
        return [self.rows[torch.from_numpy(fold.learnt)] for fold in self.folds]

    @property
    def held(self) -> list[Tensor]:
        """Rows that each of `parts` is judged on, where those are labels inside the given ones."""
        return [self.rows[torch.from_numpy(fold.held)] for fold in self.folds]


@dataclass(frozen=True, kw_only=True)
class FrozenProbe:
    """The chosen probe.

    starts: the classifier of each of the folds, at the same stage and penalty. selection_loss: in nats, None where
    nothing could be held out. temperature: 1 there.
    """

    stage: str
    cost: float
    classifier: Classifier
    starts: list[Classifier]
    selection_loss: float | None
    temperature: float


@dataclass(frozen=True)
class _Stage:
    """Features of one stage, standardised; statistics (D,) each."""

    features: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Stage:
        mean, scale = statistics_of(features)
        return cls(features, mean, scale)

    def classifiers(
        self, labels: Tensor, parts: Sequence[Tensor], costs: Sequence[float], num_classes: int, max_iter: int
    ) -> list[list[Classifier]]:
        """For each of the parts (rows) one per cost."""
        largest = max(len(rows) for rows in parts)
        if largest > min(_SPAN, self.features.shape[1]):
            return [self._primal(labels, rows, costs, num_classes, max_iter) for rows in parts]
        used = torch.cat(list(parts)).unique()
        examples = standardised(self.features[used], self.mean, self.scale).double()
        local = [torch.searchsorted(used, rows) for rows in parts]
        options = {"num_classes": num_classes, "max_iter": max_iter}
        found = solve(examples @ examples.T, labels[used], local, costs, **options)
        return [
            [
                Classifier(self.mean, self.scale, (one.dual @ examples[one.rows]).float(), one.bias.float())
                for one in solutions
            ]
            for solutions in found
        ]

    def _primal(
        self, labels: Tensor, rows: Tensor, costs: Sequence[float], num_classes: int, max_iter: int
    ) -> list[Classifier]:
        ordered = sorted(costs)
        penalties = [1 / (cost * len(rows)) for cost in ordered]
        statistics = self.mean, self.scale
        fitted = fit_classifiers(
            self.features[rows], labels[rows], num_classes, penalties, max_iter=max_iter, statistics=statistics
        )
        found = dict(zip(ordered, fitted, strict=True))
        return [found[cost] for cost in costs]


class FrozenProbes:
    """Fits probes of several draws of labels on the features of one encoder (or of pixels).

    train: features of all training images. max_iter: of L-BFGS, for each penalty.
    """

    def __init__(self, train: Features, num_classes: int, max_iter: int = 200) -> None:
        self.labels, self.num_classes, self.max_iter = train.labels, num_classes, max_iter
        self.stages = {name: _Stage.of(features) for name, features in train.probe.items()}

    def fit(self, given: Labels) -> FrozenProbe:
        """The probe for these labels."""
        if not given.parts:
            stage = list(self.stages)[-1]
            (classifier,) = self._fit(stage, [given.rows], [DEFAULT_COST])[0]
            return FrozenProbe(
                stage=stage,
                cost=DEFAULT_COST,
                classifier=classifier,
                starts=[],
                selection_loss=None,
                temperature=1.0,
            )
        tried = [choice for stage in self.stages for choice in self._tried(stage, given)]
        best = min(reversed(tried), key=lambda choice: choice.loss)  # the later stage where they are equal
        (classifier,) = self._fit(best.stage, [given.rows], [best.cost])[0]
        return FrozenProbe(
            stage=best.stage,
            cost=best.cost,
            classifier=classifier,
            starts=best.starts,
            selection_loss=best.loss,
            temperature=best.temperature,
        )

    def _tried(self, stage: str, given: Labels) -> list[_Choice]:
        """Each penalty of the grid, widened once where the best stands at an end."""
        found = self._judged(stage, given, COSTS)
        best = min(found, key=lambda choice: choice.loss).cost
        if best in (COSTS[0], COSTS[-1]):
            found += self._judged(stage, given, [best / _WIDER if best == COSTS[0] else best * _WIDER])
        return found

    def _judged(self, stage: str, given: Labels, costs: Sequence[float]) -> list[_Choice]:
        by_part = self._fit(stage, given.parts, costs)
        choices = []
        for number, cost in enumerate(costs):
            starts = [classifiers[number] for classifiers in by_part]
            if given.validation is None:
                features = self.stages[stage].features
                pairs = zip(starts, given.held, strict=True)
                logits = torch.cat([classifier.scores(features[rows]) for classifier, rows in pairs])
                labels = self.labels[torch.cat(given.held)]
            else:
                logits, labels = starts[0].scores(given.validation.probe[stage]), given.validation.labels
            temperature = fit_temperature(logits, labels)
            loss = log_loss(logits / temperature, labels)
            choices.append(_Choice(stage=stage, cost=cost, starts=starts, loss=loss, temperature=temperature))
        return choices

    def _fit(self, stage: str, parts: Sequence[Tensor], costs: Sequence[float]) -> list[list[Classifier]]:
        return self.stages[stage].classifiers(self.labels, parts, costs, self.num_classes, self.max_iter)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A stage and a penalty, the classifiers that they are judged by, and how these did after their temperature."""

    stage: str
    cost: float
    starts: list[Classifier]
    loss: float
    temperature: float


def scores_of(probe: FrozenProbe, features: Mapping[str, Tensor]) -> Tensor:
    """Logits (N, C) for the features of every stage, {stage: (N, D)}, after temperature."""
    return probe.classifier.scores(features[probe.stage]) / probe.temperature
