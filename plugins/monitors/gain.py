"""Name early what will not get better by itself: features no better than untrained, loss at chance, shrinking spread.

Looks at the online evaluation (`knn_top1`, or `self_match` where there are no labels), at `loss` with
`information_bound`, and at `feature_std`. What is said follows from the logged figures alone, so a run that was stopped
goes on with what it has said already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_core.errors import NoGainError
from plugins.monitors.collapse import COLLAPSED_STD
from plugins.monitors.edits import likely_edits

if TYPE_CHECKING:
    from cl_core.types import RunInfo

FIGURES = {"knn_top1": "kNN", "self_match": "self-match"}
NEAR_CHANCE = 0.03  # of chance
GRACE = 0.1  # share of the run in which loss and spread are not judged
NEARLY_ALL = 0.9
NO_ROOM = 3  # standard errors; an untrained encoder gets 0.945 of 164 digits right, and a perfect one would 1.000
PATIENCE = 3  # logged steps in a row that a loss has to be near chance


@dataclass(frozen=True)
class Compared:
    """A share of `queries` images now and before the first update."""

    name: str
    now: float
    untrained: float
    queries: int

    @classmethod
    def of(cls, metrics: Mapping[str, float], untrained: Mapping[str, float], queries: int) -> Compared | None:
        """The online evaluation of a step, None where there is none."""
        found = [name for name in FIGURES if name in metrics and name in untrained]
        return cls(FIGURES[found[0]], metrics[found[0]], untrained[found[0]], queries) if found and queries else None

    @property
    def error(self) -> float:
        """Standard error of the difference, as if other images had been asked: the true one is smaller."""
        return math.sqrt(sum(share * (1 - share) for share in (self.now, self.untrained)) / self.queries)

    @property
    def is_better(self) -> bool:
        """By more than a standard error; NaN is not."""
        return self.now - self.untrained > self.error

    @property
    def leaves_room(self) -> bool:
        """Whether untrained features are not nearly perfect, or perfect ones would be told apart from them."""
        return self.untrained < NEARLY_ALL or 1 - self.untrained > NO_ROOM * self.error

    @property
    def is_worse(self) -> bool:
        """By more than a standard error."""
        return self.untrained - self.now > self.error

    def __str__(self) -> str:
        return f"{self.name} {self.now:.3f} against {self.untrained:.3f} untrained"


class GainMonitor:
    """Remarks on a run, each once until it changes; half way and at the end it judges what training has brought.

    Where the experiment says `train.on_no_gain: stop`, nothing gained half way is a NoGainError.
    """

    def start(self, run: RunInfo) -> None:
        """A run begins, or goes on with what it has logged."""
        self._run = run
        self._untrained: dict[str, float] = {}
        self._below_chance: float | None = None
        self._near_chance = 0
        self._highest_std = 0.0
        self._said: set[str] = set()
        for row in run.logged:
            self.look(int(row["step"]), row)

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """What is new at this step, a sentence without full stop each."""
        if step == 0:
            self._untrained = dict(metrics)
            return []
        compared = Compared.of(metrics, self._untrained, self._run.queries)
        judged = compared and step in (self._half_way, self._run.total_steps)
        remarks = []
        for what, text in self._findings(step, metrics, compared):
            if text and what not in self._said and not (judged and what == "worse"):
                remarks.append(text)
            self._said = self._said | {what} if text else self._said - {what}
        if compared and judged:
            remarks += [text] if (text := self._judge(step, compared)) else []
        return remarks

    @property
    def _half_way(self) -> int:
        return self._run.total_steps // 2

    def _findings(
        self, step: int, metrics: Mapping[str, float], compared: Compared | None
    ) -> Iterator[tuple[str, str]]:
        """(what, remark) for all that this step's figures allow to judge; no remark where all is well."""
        late = step > GRACE * self._run.total_steps
        if late and metrics.keys() >= {"loss", "information_bound"}:
            yield "chance", self._at_chance(metrics["loss"], metrics["information_bound"])
        if "feature_std" in metrics:
            yield "spread", self._shrunk(metrics["feature_std"]) if late else ""
            self._highest_std = max(self._highest_std, metrics["feature_std"])
        if compared:
            yield "worse", f"the features get worse: {compared}" if compared.is_worse else ""

    def _at_chance(self, loss: float, bound: float) -> str:
        chance = loss + bound
        self._below_chance = bound / chance
        self._near_chance = self._near_chance + 1 if self._below_chance < NEAR_CHANCE else 0
        if self._near_chance < PATIENCE:
            return ""
        where = "above" if bound < 0 else f"within {100 * NEAR_CHANCE:g} % of"
        return f"the loss {loss:.3g} is {where} chance ({chance:.3g}), so views do not find each other"

    def _shrunk(self, std: float) -> str:
        """Half of what it was, or a fifth less and near where the run would be stopped."""
        highest = self._highest_std
        if std >= highest / 2 and std >= min(2 * COLLAPSED_STD, 0.8 * highest):
            return ""
        return (
            f"the spread of the embeddings shrinks: feature_std {std:.2g}, at most {highest:.2g} before; below "
            f"{COLLAPSED_STD:g} they have collapsed"
        )

    def _judge(self, step: int, compared: Compared) -> str:
        """What half of the updates, or all, have brought; "" for a gain. Raises NoGainError where that is asked for."""
        if compared.is_better or not (compared.is_worse or compared.leaves_room):
            return ""
        who = "half of the updates have" if step == self._half_way else "training has"
        what = "made the features worse than" if compared.is_worse else "not made the features better than"
        config = (self._run.config.get("resolved") or {}).get("config") or {}
        edits = likely_edits(config, updates=self._run.total_steps, below_chance=self._below_chance)
        text = (
            f"{who} {what} untrained: {compared} (standard error of the difference {compared.error:.3f}); most likely "
            f"to help: {' and '.join(edits)}"
        )
        if step == self._half_way and self._run.on_no_gain == "stop":
            raise NoGainError(f"at step {step}, {text}; or set train.on_no_gain: warn to train on regardless")
        return text
