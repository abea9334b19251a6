"""What a run would do: settings checked and resolved, DVC's graph looked at, the asked-for experiments picked.

Shared by the command line, which may find that there is nothing to do, and by the flow, which may be started by a
deployment without the command line. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML

from cl_core.errors import ConfigError
from pipelines import dvc_repo
from pipelines.locks import locked
from pipelines.ranks import SHARED_STAGES

STATE = Path(".contrast")  # below the project: all that is neither an input nor an output
LOGS = STATE / "logs"
LOCKS = STATE / "locks"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Section `run` of params.yaml; see `cl_core.config.RunConfig`."""

    jobs: int = 1
    retries: int = 1
    decode_threads: int | None = None
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    task_runner: Literal["threads", "dask"] = "threads"

    @classmethod
    def read(cls, project: Path) -> RunSettings:
        """Read them from params.yaml; planning has checked the file before."""
        params = YAML(typ="safe", pure=True).load(project / "params.yaml")
        return cls(**(params.get("run") or {}))

    def processes_of(self, stage: str) -> tuple[int, int]:
        """On how many devices of how many machines a stage runs."""
        return (self.devices, self.num_nodes) if stage in SHARED_STAGES else (1, 1)


def require_project(folder: Path) -> Path:
    """The absolute path of a project. Raises ConfigError where the folder is none."""
    if not (folder / "params.yaml").is_file():
        raise ConfigError(
            f"{folder.resolve()} is not a contrast project: it has no params.yaml; go to one, name one with --project, "
            f"or make one with `contrast init DIR`"
        )
    return folder.resolve()


@contextmanager
def exclusive(project: Path) -> Iterator[None]:
    """Keep other runs of the project away. Raises ContrastError naming the process that runs already."""
    with locked(project / STATE / "run.lock", f"a run of {project}"):
        yield


def bring_resolved_up_to_date(project: Path) -> None:
    """Resolve, unless nothing that resolving reads has changed. Raises ConfigError with every mistake in them."""
    from pipelines import receipt  # loads the registry, which only planning needs

    if receipt.still_holds(project):
        return
    from cl_core.resolve import write_resolved  # loads torch, through the parts that it looks at

    inputs = receipt.begin(project)
    write_resolved(project)
    receipt.keep(project, inputs)


def plan_run(project: Path, experiments: Iterable[str] = ()) -> dvc_repo.Plan:
    """Write the resolved inputs of all stages, then read which stages are out of date.

    experiments: names to restrict the plan to; none means all. Raises ConfigError with every mistake in the settings.
    """
    bring_resolved_up_to_date(project)
    plan = dvc_repo.look(project)
    wanted = list(experiments)
    return plan.only(wanted) if wanted else plan
