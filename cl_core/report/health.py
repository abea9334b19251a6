"""Label-free figures side by side, how far each orders the experiments as the linear probe does, what labels would add.

A table holds experiments of one encoder, input and set of images, because nothing else compares. Reads results that
stages left; measures nothing on images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import kendalltau, spearmanr

from cl_core.report.groups import MINUS, NONE, Group, Measured, percent
from cl_core.report.records import HealthFigures, HealthResult, MethodHealth

FEWEST = 4  #: experiments below which a rank correlation says nothing
Z95 = 1.959964  #: of a two-sided 95 % interval
DISAGREEMENT = 0.2  #: share of images on which two encoders differ, for the smallest gain that labels show
LABELS = (20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Figure:
    """One of HealthFigures. wants: what is better, in words. sign: of its value's order, 0 for the nearest to 1."""

    key: str
    title: str
    wants: str
    sign: int
    show: Callable[[float], str]

    def order(self, value: float) -> float:
        """More is better."""
        return self.sign * value if self.sign else -abs(value - 1)


def _digits(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}".replace("-", MINUS)


FIGURES = (
    Figure("self_match", "self-match %", "more", 1, percent),
    Figure("rankme", "RankMe", "more", 1, _digits(1)),
    Figure("lidar", "LiDAR", "more", 1, _digits(1)),
    Figure("alpha_req", "alpha-ReQ", "near 1", 0, _digits(2)),
    Figure("alignment", "alignment", "less", -1, _digits(3)),
    Figure("uniformity", "uniformity", "less", -1, _digits(3)),
)


@dataclass(frozen=True)
class Row:
    """An experiment. dim: values per image. cells: (after training, before), NONE where there is no figure."""

    group: Group
    dim: int
    probe: Measured | None
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of a figure with the linear probe over `count` experiments, 1 for the same order; NaN for ties
    throughout; None for fewer than FEWEST."""

    count: int
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class HealthTable:
    """place: a stage, or "embedding", on which the loss acts. result: says what was looked at."""

    encoder: str
    place: str
    result: HealthResult
    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...]

    @property
    def judged(self) -> int:
        """Experiments with a linear probe."""
        return sum(row.probe is not None for row in self.rows)

    @property
    def luck(self) -> float:
        """What a rank correlation without meaning exceeds in about one case of 20; above 1 none proves a thing."""
        return Z95 / math.sqrt(max(self.judged - 1, 1))


@dataclass(frozen=True)
class Health:
    """Tables of one encoder, input and set of images: of the last stage, of the embedding, of the stages before."""

    last: HealthTable
    further: tuple[HealthTable, ...]


@dataclass(frozen=True)
class Labels:
    """What so many labels tell. intervals: 95 % interval in percent around each of ACCURACIES. gain: in points."""

    count: int
    intervals: tuple[str, ...]
    gain: str


ACCURACIES = (0.5, 0.8, 0.95)


def health(groups: Iterable[Group]) -> list[Health]:
    """One entry per encoder, input and set of images, in the order of the groups; those without health are left out."""
    families: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if found := group.first.health:
            key = (tuple(found.trained.stages), group.encoder, found.input, found.protocol, found.split, found.images)
            families.setdefault(key, []).append(group)
    return [_health(members, stages) for (stages, *_), members in families.items()]


def what_labels_tell() -> list[Labels]:
    """Wilson's 95 % interval of an accuracy on n labels; the paired gain between two encoders that differ on
    DISAGREEMENT of the images, Z95 * sqrt(DISAGREEMENT / n)."""
    return [
        Labels(
            n,
            tuple(" to ".join(percent(end) for end in wilson(share, n)) for share in ACCURACIES),
            percent(Z95 * math.sqrt(DISAGREEMENT / n)),
        )
        for n in LABELS
    ]


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share observed on n >= 1 draws (Wilson 1927)."""
    centre, scale = share + Z95**2 / (2 * n), 1 + Z95**2 / n
    margin = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return (centre - margin) / scale, (centre + margin) / scale


def in_a_sentence(groups: Sequence[Group]) -> str:
    """What can be said first where nothing was judged by labels; "" where there is no health either."""
    found = [group for group in groups if group.first.health]
    if not found:
        return ""
    if len(found) > 1:
        return f"Without labels no accuracy is known; the health of {len(found)} experiments is compared below"
    table = health(found)[0].last
    named = zip(FIGURES, table.rows[0].cells, strict=True)
    shown = [f"{figure.title.removesuffix(' %')} {now} against {before}" for figure, (now, before) in named]
    return (
        f"Without labels no accuracy is known. {found[0].label} against its untrained encoder: {', '.join(shown[:3])}"
    )


def _health(groups: list[Group], stages: Sequence[str]) -> Health:
    *early, last = stages
    embedded = [g for g in groups if g.first.health and g.first.health.trained.embedding]
    further = [_table(embedded, "embedding", lambda method: method.embedding)] if embedded else []
    return Health(_stage(groups, last), (*further, *(_stage(groups, stage) for stage in reversed(early))))


def _stage(groups: list[Group], stage: str) -> HealthTable:
    return _table(groups, stage, lambda method: method.stages.get(stage))


Pick = Callable[[MethodHealth], HealthFigures | None]


def _table(groups: list[Group], place: str, pick: Pick) -> HealthTable:
    results = {group.index: [e.health for e in group.experiments if e.health] for group in groups}
    trained = {index: _means([pick(r.trained) for r in found]) for index, found in results.items()}
    untrained = {index: _means([pick(r.untrained) for r in found]) for index, found in results.items()}
    rows = [
        Row(g, int(trained[g.index]["dim"]), g.linear, _cells(trained[g.index], untrained[g.index])) for g in groups
    ]
    agreements = [_agreement(figure, groups, trained) for figure in FIGURES]
    return HealthTable(groups[0].encoder, place, results[groups[0].index][0], tuple(rows), tuple(agreements))


def _means(found: Sequence[HealthFigures | None]) -> dict[str, float]:
    """Mean over seeds of every figure that all have."""
    dumps = [figures.model_dump(exclude_none=True) for figures in found if figures]
    shared = [key for key in dumps[0] if all(key in dump for dump in dumps)] if dumps else []
    return {key: statistics.fmean(dump[key] for dump in dumps) for key in shared}


def _cells(now: Mapping[str, float], before: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    def text(figure: Figure, values: Mapping[str, float]) -> str:
        return figure.show(values[figure.key]) if figure.key in values else NONE

    return tuple((text(figure, now), text(figure, before)) for figure in FIGURES)


def _agreement(figure: Figure, groups: list[Group], trained: Mapping[int, Mapping[str, float]]) -> Agreement:
    both = [(trained[g.index].get(figure.key), g.linear) for g in groups]
    known = [(figure.order(value), probe.mean) for value, probe in both if value is not None and probe]
    if len(known) < FEWEST:
        return Agreement(len(known), None, None)
    figures, probes = zip(*known, strict=True)
    if len(set(figures)) == 1 or len(set(probes)) == 1:
        return Agreement(len(known), math.nan, math.nan)
    return Agreement(
        len(known), float(spearmanr(figures, probes).statistic), float(kendalltau(figures, probes).statistic)
    )
