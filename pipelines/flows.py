"""The run as a Prefect flow; the only file that imports prefect. Deployable as `pipelines.flows.pipeline`.

The task graph is DVC's graph, one task per stage, and a task's final state says what became of its stage: Ran,
Restored or Up to date. Prefect decides when and how often a stage is tried, never whether: its caching is off.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from prefect import flow, get_run_logger, tags, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Crashed
from prefect.task_runners import ThreadPoolTaskRunner

from cl_core.errors import ConfigError, ContrastError
from pipelines.board import Board
from pipelines.dvc_repo import Outcome, Plan, Runner, Stage, StageFailed, Stopped, recorded_outputs
from pipelines.planning import LOGS, RunSettings, exclusive, plan_run, require_project

RETRY_DELAY = 3  # seconds
# How pretraining begins what its observers remark, and ingest what it found of test in train.
REMARK = re.compile(r"at step [\d,]+ of [\d,]+: |leakage: ")
STATE_NAMES = {Outcome.RAN: "Ran", Outcome.RESTORED: "Restored", Outcome.UP_TO_DATE: "Up to date"}


class PipelineFailed(ContrastError):  # noqa: N818 - it is the pipeline that failed
    """Some stages failed; the others are done. The message has one line per failed stage."""


@dataclass(eq=False)
class Session:
    """What the tasks of one flow run share."""

    plan: Plan
    runner: Runner
    board: Board
    workers: Any = None  # Dask's task runner, where stages run on its workers
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def needs_dvc(self, stage: Stage) -> bool:
        """Whether DVC must be asked: the stage is out of date, or a parent has new outputs."""
        return stage.name in self.plan.changed or any(self._has_new_outputs(parent) for parent in stage.parents)

    def bring_up_to_date(self, stage: Stage) -> Outcome:
        """Have DVC run, restore or skip a stage, shown on the board. Raises StageFailed or Stopped."""
        self.board.begin(stage.name)
        self.failures.pop(stage.name, None)
        log = get_run_logger()

        def show(line: str) -> None:
            log.info(line)
            self.board.line(stage.name, line)
            if REMARK.match(line):  # whoever waits should see it without a log file
                self.board.say(f"{stage.name}: {line}")

        try:
            return self.runner.run(stage.name, show)
        except StageFailed as error:
            self.failures[stage.name] = str(error)
            self.board.end(stage.name, "failed", error.reason)
            raise

    def settle(self, stage: Stage, state: State[Any]) -> None:
        """Take over from the final state of a task on a worker what a task of this process notes itself."""
        if state.is_completed():
            self.finish(stage, next(outcome for outcome, name in STATE_NAMES.items() if name == state.name))
        elif state.is_failed():
            error = state.result(raise_on_failure=False)
            self.failures[stage.name] = str(error)
            self.board.end(stage.name, "failed", getattr(error, "reason", str(error)))

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        """Note how a stage came to be as it should be."""
        self.outcomes[stage.name] = outcome
        self.board.end(stage.name, outcome.value)

    def _has_new_outputs(self, stage: str) -> bool:
        if self.outcomes[stage] is Outcome.UP_TO_DATE:
            return False
        before = self.plan.outputs.get(stage)
        return before is None or recorded_outputs(self.runner.project, stage) != before


def _worth_retrying(_task: Any, _run: Any, state: State[Any]) -> bool:
    error = state.data  # the exception itself: the engine asks before it has stored anything
    return not isinstance(error, ContrastError) or (isinstance(error, StageFailed) and error.worth_retrying)


_stage_task = partial(
    task,
    name="stage",
    task_run_name="{stage.name}",
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=_worth_retrying,
)


def _completed(stage: Stage, outcome: Outcome) -> State[str]:
    return Completed(name=STATE_NAMES[outcome], message=f"{stage.name}: {outcome.value}", data=outcome.value)


@_stage_task()
def run_stage(stage: Stage, session: Session) -> State[str]:
    """Bring one stage up to date."""
    try:
        outcome = session.bring_up_to_date(stage) if session.needs_dvc(stage) else Outcome.UP_TO_DATE
    except Stopped as stop:
        session.board.end(stage.name, "stopped")
        return Cancelled(message=str(stop))
    session.finish(stage, outcome)
    return _completed(stage, outcome)


@_stage_task()
def run_stage_on_worker(stage: Stage, project: Path, jobs: int, needed: bool) -> State[str]:
    """Bring one stage up to date on whatever machine this runs, which sees the project's folder under the same path.

    jobs: how many share the cores of that machine.
    """
    runner = Runner(project, project / LOGS, jobs, RunSettings.read(project).decode_threads)
    outcome = runner.run(stage.name, get_run_logger().info) if needed else Outcome.UP_TO_DATE
    return _completed(stage, outcome)


@flow(name="contrast", task_runner=ThreadPoolTaskRunner(), persist_result=False)
def pipeline(
    experiments: list[str] | None = None,
    project: str = ".",
    jobs: int | None = None,
    seeds: list[int] | None = None,
) -> dict[str, str]:
    """Bring the stages of some or all experiments of a project up to date.

    experiments: names from params.yaml, seeds: of theirs; none means all. jobs: stages side by side, which share the
    cores, by default run.jobs of params.yaml.
    Returns stage -> "ran", "restored" or "up to date". Raises PipelineFailed after the independent stages are done.
    """
    folder = require_project(Path(project))
    with exclusive(folder):
        plan = plan_run(folder, experiments or (), seeds or ())
        settings = RunSettings.read(folder)
        jobs = jobs or settings.jobs
        board = Board(stage.name for stage in plan.stages)
        runner = Runner(folder, folder / LOGS, jobs, settings.decode_threads)
        with _workers(settings, jobs) as workers:
            session = Session(plan, runner, board, workers)
            _run_to_the_end(session, jobs, settings.retries)
    _publish(folder, plan.experiments)
    if session.failures:
        raise PipelineFailed("\n".join(session.failures.values()))
    return {stage: outcome.value for stage, outcome in session.outcomes.items()}


def _run_to_the_end(session: Session, jobs: int, retries: int) -> None:
    with session.board:
        try:
            _drive(session, jobs, retries)
        except BaseException:  # Ctrl-C, SIGTERM, a cancellation from the UI
            session.board.say("stopping: running stages save their state (Ctrl-C again ends them at once)")
            session.runner.stop()
            raise


def _drive(session: Session, jobs: int, retries: int) -> None:
    """Submit each stage when its parents are done and one of `jobs` places is free, experiment by experiment.

    Tasks that wait for their parents inside the task runner would take places from stages that could run. The first
    experiments end first, so that there are results to look at long before the last one has trained.
    """
    rank = {name: place for place, name in enumerate(session.plan.experiments)}
    waiting = sorted(session.plan.stages, key=lambda stage: rank.get(stage.experiment or "", -1))
    running: dict[PrefectFuture[Any], Stage] = {}
    done: dict[str, PrefectFuture[Any]] = {}
    while waiting or running:
        ready = [stage for stage in waiting if all(parent in done for parent in stage.parents)]
        for stage in ready[: jobs - len(running)]:
            waiting.remove(stage)
            running[_submit(session, stage, [done[parent] for parent in stage.parents], retries)] = stage
        finished = next(as_completed(list(running)))
        stage = running.pop(finished)
        finished.wait()
        done[stage.name] = finished
        if session.workers is not None:
            session.settle(stage, finished.state)
        if finished.state.name == "NotReady":
            failed = [parent for parent in stage.parents if parent not in session.outcomes]
            session.board.end(stage.name, "not run", f"needs {', '.join(failed)}")


def _submit(session: Session, stage: Stage, parents: list[PrefectFuture[Any]], retries: int) -> PrefectFuture[Any]:
    if session.workers is None:
        return run_stage.with_options(retries=retries).submit(stage, session, wait_for=parents)
    needed = session.needs_dvc(stage) if all(parent in session.outcomes for parent in stage.parents) else True
    session.board.begin(stage.name)
    session.failures.pop(stage.name, None)
    sharing = session.runner.jobs if session.workers.address is None else 1
    parameters = {"stage": stage, "project": session.runner.project, "jobs": sharing, "needed": needed}
    future: PrefectFuture[Any] = session.workers.submit(
        run_stage_on_worker.with_options(retries=retries), parameters, wait_for=parents
    )
    return future


@contextmanager
def _workers(settings: RunSettings, jobs: int) -> Iterator[Any]:
    """Dask's task runner where `run.task_runner` asks for it, else None.

    It connects to the scheduler at DASK_SCHEDULER_ADDRESS, or starts `jobs` workers on this machine until the end.
    """
    if settings.task_runner == "threads":
        yield None
        return
    if importlib.util.find_spec("prefect_dask") is None:
        raise ConfigError(
            "params.yaml: run.task_runner is dask, and prefect-dask is not installed; install it with "
            "`pip install 'contrast[dask]'`, or set run.task_runner: threads"
        )
    from prefect_dask import DaskTaskRunner

    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    with DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=local) as workers:
        yield workers


def _publish(project: Path, experiments: Sequence[str]) -> None:
    """Show results and report among the run's artifacts in the Prefect UI."""
    from cl_core.report.results import results_table

    rows = results_table(project / "artifacts", experiments)
    if rows:
        create_table_artifact(rows, key="results", description=f"Results of {project.name}")
    page = project / "artifacts" / "report" / "index.html"
    if page.is_file():
        create_link_artifact(page.as_uri(), link_text=str(page), key="report", description="Report, one offline page")


def run_pipeline(project: Path, experiments: Sequence[str], seeds: Sequence[int], jobs: int | None) -> dict[str, str]:
    """Run the flow from the command line, tagged with this process so that a killed run can be told from a live one."""
    crash_dead_runs()
    with tags(*_process_tags()):
        state = pipeline(list(experiments) or None, str(project), jobs, list(seeds) or None, return_state=True)
    outcomes: dict[str, str] = state.result()
    return outcomes


def crash_dead_runs(*, apply: bool = True) -> list[str]:
    """Names of flow runs that Prefect believes running but whose process on this machine is gone.

    apply: mark them Crashed, which nobody else does for runs that no worker started.
    """
    active = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = {"tags": {"all_": [f"host:{socket.gethostname()}"]}, "state": {"type": {"any_": active}}}
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))
        dead = [run for run in runs if not _alive(run.tags)]
        for run in dead if apply else []:
            client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
    return [run.name for run in dead]


def _process_tags() -> tuple[str, str]:
    return f"host:{socket.gethostname()}", f"process:{os.getpid()}:{int(psutil.Process().create_time())}"


def _alive(run_tags: Sequence[str]) -> bool:
    """Whether the process of a run exists; the start time tells it from a later one with the same number."""
    for tag in run_tags:
        kind, _, rest = tag.partition(":")
        if kind == "process":
            pid, _, created = rest.partition(":")
            try:
                return abs(psutil.Process(int(pid)).create_time() - int(created)) < 2
            except psutil.NoSuchProcess:
                return False
    return True
