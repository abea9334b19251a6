"""Which trial comes next: successive halving over candidates that Optuna proposes. Trains nothing, reads no clock.

Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2) with one worker: of the candidates of a
rung the best third goes on to one with three times the images; where nobody may, a new candidate begins. So the trials
are a sequence that depends on the seed and the scores alone, and more time only makes it longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_core.data.sampling import mix
from cl_core.errors import ContrastError
from pipelines.tuning.space import Axis, Edit, Space, Value, Values
from pipelines.tuning.trial import Result

try:
    import optuna
except ImportError as error:
    raise ContrastError(f"contrast tune needs Optuna ({error}); install it: pip install 'contrast[tune]'") from error

ETA = 3  # of so many candidates one goes on, to so many times the images
RUNGS = 3
# Of a full run's images, so that nine candidates and their promotions cost about as much as one full run.
SMALLEST_SHARE = ETA**RUNGS
SMALLEST_TRIAL = 10_000  # images; fewer updates than these make tell little, whatever the batch
STARTUP = 8  # candidates drawn at random before their scores are looked at
TRIES = 50  # proposals that turn out to be known, or impossible, before the space counts as searched
_STREAM = 0x7E5E


@dataclass(kw_only=True)
class Candidate:
    """Values of all axes, the edit that they make, and the result of each rung that it has been through."""

    number: int
    values: Values
    edit: Edit
    results: dict[int, Result] = field(default_factory=dict)

    def score(self, rung: int) -> float:
        """Of a rung, -inf where its trial failed."""
        score = self.results[rung].score
        return -math.inf if score is None else score


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial to be run."""

    candidate: Candidate
    rung: int


class Search:
    """The candidates so far and what comes next. The first is the experiment as it is."""

    def __init__(self, space: Space, seed: int, rungs: Sequence[int], limit: int | None = None) -> None:
        """rungs: training images of each. limit: candidates at most, None for as many as the space has."""
        self.space, self.seed, self.rungs, self.limit = space, seed, rungs, limit
        self.candidates: list[Candidate] = []

    @property
    def start(self) -> Candidate:
        """The experiment as it is."""
        return self.candidates[0]

    def next_job(self) -> Job | None:
        """The trial that comes next; its result belongs into the candidate. None where nothing is left to try."""
        for rung in reversed(range(1, len(self.rungs))):
            candidate = self._promoted(rung)
            if candidate is not None:
                return Job(candidate=candidate, rung=rung)
        values = self._propose() if self.candidates else self.space.origin
        if values is None:
            return None
        candidate = Candidate(number=len(self.candidates), values=values, edit=self.space.edit(values))
        self.candidates.append(candidate)
        return Job(candidate=candidate, rung=0)

    @property
    def tried(self) -> list[Candidate]:
        """The candidates that have a result."""
        return [candidate for candidate in self.candidates if candidate.results]

    def reached(self, rung: int) -> list[Candidate]:
        """The candidates that have been through a rung, best first."""
        there = [candidate for candidate in self.candidates if rung in candidate.results]
        return sorted(there, key=lambda candidate: (-candidate.score(rung), candidate.number))

    def _promoted(self, rung: int) -> Candidate | None:
        """Who may enter a rung now. The start never opens one, and follows whoever does, to be compared with."""
        there = self.reached(rung)
        if there and self.start not in there:
            return self.start
        below = self.reached(rung - 1)
        best = below[: len(below) // ETA]
        waiting = (c for c in best if c not in there and c is not self.start and c.score(rung - 1) > -math.inf)
        return next(waiting, None)

    def _propose(self) -> Values | None:
        """Values that have not been tried, or None."""
        if self.limit is not None and len(self.candidates) >= self.limit:
            return None
        tried = [candidate.edit for candidate in self.candidates]
        for values in self._proposals():
            if self.space.edit(values) not in tried and self.space.admits(values):
                return values
        return None

    def _proposals(self) -> Iterator[Values]:
        """What Optuna's TPE makes of the scores so far: a function of these and the seed, with nothing to be saved.

        Candidates are told by their scores in the first rung, which all of them have been through.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = {axis.name: _distribution(axis) for axis in self.space.axes}
        told = [_told(candidate, self.space.axes, distributions) for candidate in self.candidates]
        for attempt in range(TRIES):
            seed = mix(self.seed, len(told), attempt, _STREAM) % 2**32
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.add_trials(told)
            drawn = study.ask(distributions).params
            yield {axis.name: axis.choices[drawn[axis.name]] for axis in self.space.axes}


def winner(search: Search) -> tuple[Candidate, int] | None:
    """The candidate that beat the start by more than one standard error in the highest rung where the start had a
    rival, and that rung; None where none did."""
    reached = [search.reached(rung) for rung in range(len(search.rungs))]
    shared = [rung for rung, there in enumerate(reached) if len(there) > 1 and search.start in there]
    if not shared:
        return None
    rung = shared[-1]
    best, start = reached[rung][0], search.start
    noise = best.results[rung].noise
    return (best, rung) if best.score(rung) > start.score(rung) + noise else None


def budgets(full_run: int, smallest: int | None = None) -> list[int]:
    """Training images of a trial in each rung, none more than a full run. smallest: of the first rung."""
    first = min(smallest or max(full_run // SMALLEST_SHARE, SMALLEST_TRIAL), full_run)
    return [images for rung in range(RUNGS) if (images := first * ETA**rung) <= full_run]


def _distribution(axis: Axis) -> Any:
    """Positions in an axis: numbers where neighbours are alike, names where they are not."""
    last = len(axis.choices) - 1
    if axis.ordered:
        return optuna.distributions.IntDistribution(0, last)
    return optuna.distributions.CategoricalDistribution(tuple(range(last + 1)))


def _told(candidate: Candidate, axes: Sequence[Axis], distributions: Mapping[str, Any]) -> Any:
    positions = {axis.name: _position(axis, candidate.values[axis.name]) for axis in axes}
    return optuna.trial.create_trial(params=positions, distributions=dict(distributions), value=candidate.score(0))


def _position(axis: Axis, value: Value) -> int:
    return list(axis.choices).index(value)
