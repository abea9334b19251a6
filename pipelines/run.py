"""`contrast run`: say what is up to date, run the rest as a Prefect flow, end with the results and the report.

Where nothing is out of date and no Prefect server is configured it stops there, without importing prefect.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cl_core.errors import ContrastError
from pipelines.board import Board, Terminal
from pipelines.dvc_repo import Outcome, Plan
from pipelines.planning import exclusive, plan_run, require_project
from pipelines.server import Server, configured, reach_configured, set_environment

REPORT = Path("artifacts/report/index.html")


def run(
    folder: Path,
    experiments: Sequence[str],
    seeds: Sequence[int] = (),
    *,
    jobs: int | None = None,
    record: bool = False,
) -> None:
    """Bring a project, or the named experiments and seeds of it, up to date and show the results.

    record: run the flow even where nothing is out of date, so that Prefect has a record of it.
    Raises ContrastError (ConfigError for wrong settings, PipelineFailed for failed stages), KeyboardInterrupt.
    """
    project = require_project(folder)
    console = Terminal()
    with console.status("checking settings and looking for changes"), exclusive(project):
        plan = plan_run(project, experiments, seeds)
    failed: ContrastError | None = None
    if plan.changed or record or configured():
        try:
            _run_flow(project, experiments, seeds, jobs, console)
        except ContrastError as error:  # what the other stages gave is still worth showing
            failed = error
    else:
        _say_up_to_date(plan, console)
    _show_results(project, plan.experiments, console)
    if failed is not None:
        raise failed


def _run_flow(
    project: Path, experiments: Sequence[str], seeds: Sequence[int], jobs: int | None, console: Console
) -> None:
    with console.status("starting Prefect (about 15 s the first time)"):
        server = _reach_or_start_server(project)
        with warnings.catch_warnings():  # of Prefect's own dependencies; the user can do nothing about them
            warnings.simplefilter("ignore")
            from pipelines.flows import run_pipeline
        if server is not None:  # it starts while we import
            server.wait()
    run_pipeline(project, experiments, seeds, jobs)


def _reach_or_start_server(project: Path) -> Server | None:
    """Our own server, still starting, or None where the user has one."""
    set_environment(project)
    if not configured():
        return Server(project)
    reach_configured()
    return None


def _say_up_to_date(plan: Plan, console: Console) -> None:
    with Board((stage.name for stage in plan.stages), console) as board:
        for stage in plan.stages:
            board.end(stage.name, Outcome.UP_TO_DATE.value)


def _show_results(project: Path, experiments: Sequence[str], console: Console) -> None:
    from pipelines.summary import print_results  # imports more than the first line on the terminal may wait for

    print_results(project / "artifacts", experiments, console)
    if (project / REPORT).is_file():
        console.print(f"report: {escape(str(project / REPORT))}", soft_wrap=True)
