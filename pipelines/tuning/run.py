"""`contrast tune EXPERIMENT`: run trials until the time is up, then write what won.

Around the search: the lock, the images, signals, the clock. What comes next is decided in `search`, what a trial is in
`trial`; neither knows the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cl_core.errors import ConfigError, Interrupted, did_you_mean
from pipelines.gpus import gpu_slots
from pipelines.locks import locked
from pipelines.planning import LOCKS, STATE, require_project
from pipelines.stage_process import Killed, Stop, set_up_torch

if TYPE_CHECKING:
    from cl_core.project import Experiment, Project
    from pipelines.tuning.search import Job, Search
    from pipelines.tuning.show import Screen
    from pipelines.tuning.trial import Trials

TUNE = STATE / "tune"


@dataclass(frozen=True, kw_only=True)
class Options:
    """minutes: for new trials. trials: candidates at most. images: of the smallest trials. methods: to try."""

    minutes: float
    trials: int | None = None
    images: int | None = None
    methods: Sequence[str] | None = None


def run(folder: Path, experiment: str, options: Options) -> int:
    """Search, show, write; returns the exit code of a stage that did the same.

    Raises ContrastError for what is the user's to fix.
    """
    set_up_torch()
    stop = Stop()
    stop.listen()
    try:
        root = require_project(folder)
        address = f"tune@{experiment}"
        with locked(root / LOCKS / f"{address}.lock", f"the search {address}"), gpu_slots(address):
            _tune(root, experiment, options, stop.requested)
    except Killed as killed:
        print(f"{killed}: tune stopped; run the same command to continue", file=sys.stderr)
        return killed.exit_code
    except Interrupted as interrupted:
        print(f"stopped: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    return 0


def _tune(root: Path, name: str, options: Options, stop: Callable[[], bool]) -> None:
    from cl_core.project import load_project, read_experiment
    from pipelines.tuning import outcome
    from pipelines.tuning.search import Search, budgets
    from pipelines.tuning.show import Screen
    from pipelines.tuning.space import Space
    from pipelines.tuning.trial import Data, Trials

    project = load_project(root)
    start = _find(project, name)
    folder = root / TUNE / name
    outcome.require_ours(root, name, folder)
    _require_store(project)
    data = Data.of(project, start, folder)
    rungs = budgets(data.images * start.config.schedule.epochs, options.images)
    document = read_experiment(root, name)
    space = Space.around(project, start, document, options.methods, min(data.images, rungs[0]))
    search = Search(space, start.seed, rungs, options.trials)
    screen = Screen(search)
    screen.begin(data.queries)
    ended = _search(search, Trials(space, data, folder, stop), Clock(options.minutes), screen, stop=stop)
    screen.end(ended, outcome.write(search, folder))


def _search(search: Search, trials: Trials, clock: Clock, screen: Screen, *, stop: Callable[[], bool]) -> str:
    """Run trials, or read what they gave before, until time or space is used up; returns which it was, in words."""
    while (job := search.next_job()) is not None:
        edit, images = job.candidate.edit, search.rungs[job.rung]
        result = trials.find(edit, images)
        if result is None:
            if stop():
                raise Interrupted("stopped between two trials; run the same command to continue")
            wanted = clock.estimate(search, job, images)
            if wanted > clock.left:
                return screen.too_late(wanted, clock.left)
            result = trials.run(edit, images, screen.progress(job, clock))
            screen.trial(job, result, clock.left)
        if result.score is None and not result.failure:
            raise ConfigError(
                "trials of this experiment give no figure to judge them by: its images have no labels and its method "
                "logs none; label some validation images, or name another experiment"
            )
        job.candidate.results[job.rung] = result
    return "everything that the search may change has been tried" if search.limit is None else "all trials are done"


class Clock:
    """The time that new trials have, and how long one takes."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self._end - self._now(), 0.0)

    def estimate(self, search: Search, job: Job, images: int) -> float:
        """Seconds of a trial, by those of its method so far, else by all; 0 before the first."""
        known = [(c, result) for c in search.candidates for result in c.results.values() if not result.failure]
        alike = [pair for pair in known if pair[0].values.get("method") == job.candidate.values.get("method")]
        results = [result for _, result in alike or known]
        trained = sum(result.images for result in results)
        return images * sum(result.seconds for result in results) / trained if trained else 0.0


def _find(project: Project, name: str) -> Experiment:
    known = {experiment.name: experiment for experiment in project.experiments}
    if name not in known:
        raise ConfigError(
            f"no experiment is called {name!r}{did_you_mean(name, known)}; params.yaml lists: {', '.join(known)}"
        )
    method = known[name].method["name"]
    if not getattr(project.registry.get("method", method).factory, "trains", True):
        raise ConfigError(f"experiment {name} has nothing to tune: {method} trains nothing; name another")
    return known[name]


def _require_store(project: Project) -> None:
    """Ingest the images unless the store holds them as the settings say."""
    from cl_core.data.files import read_json
    from cl_core.resolve import write_resolved
    from pipelines.stages import DATASET, ingest

    manifest, data = project.root / DATASET / "manifest.json", project.params.data
    if manifest.is_file():
        stored = read_json(manifest)
        wanted = {"source": project.source, "image_size": data.size, "layout": data.layout}
        if {key: stored.get(key) for key in wanted} == wanted:
            return
    with locked(project.root / LOCKS / "ingest.lock", "stage ingest"):
        write_resolved(project.root)
        ingest(project.root)
