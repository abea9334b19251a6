"""What a run would do: settings checked and resolved, DVC's graph looked at, the asked-for experiments picked.

Shared by the command line, which may find that there is nothing to do, and by the flow, which may be started by a
deployment without the command line. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML

from cl_core.data.files import read_json
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


def plan_run(project: Path, experiments: Sequence[str] = (), seeds: Sequence[int] = ()) -> dvc_repo.Plan:
    """Write the resolved inputs of all stages, then read which stages are out of date.

    experiments, seeds: what to restrict the plan to; none means all. Raises ConfigError with every mistake in the
    settings.
    """
    bring_resolved_up_to_date(project)
    plan = dvc_repo.look(project)
    sweeps = read_sweeps(project)
    _require_stages(plan, [run for sweep in sweeps.values() for run in sweep])
    return plan.only(chosen_runs(sweeps, experiments, seeds)) if experiments or seeds else plan


Sweeps = Mapping[str, Mapping[str, int]]  # experiment -> run -> seed


def read_sweeps(project: Path) -> Sweeps:
    """The runs of every experiment, as last resolved; {} where nothing has been."""
    from cl_core.resolve import RESOLVED

    resolved = project / RESOLVED / "report.json"
    sweeps: Sweeps = read_json(resolved)["config"]["runs"] if resolved.is_file() else {}
    return sweeps


def chosen_runs(sweeps: Sweeps, names: Iterable[str], seeds: Sequence[int] = ()) -> list[str]:
    """The runs of the named experiments, all where none is named, that have one of the seeds, any where none is given.

    names: of experiments, or of single runs; others are left for `Plan.only` to refuse. Raises ConfigError for a seed
    that no chosen experiment has, and for a named one that has none of the seeds.
    """
    runs = {run: {run: seed} for sweep in sweeps.values() for run, seed in sweep.items()}
    known, named = {**runs, **sweeps}, list(names)
    chosen = {name: known[name] for name in named or sweeps if name in known}
    if seeds:
        _require_seeds(chosen, seeds, every=bool(named))
    found = [run for sweep in chosen.values() for run, seed in sweep.items() if not seeds or seed in seeds]
    return found + [name for name in named if name not in known]


def _require_seeds(chosen: Sweeps, seeds: Sequence[int], *, every: bool) -> None:
    """Raise ConfigError for a seed that is nowhere, and, with `every`, for an experiment with none of the seeds."""
    found = {seed for sweep in chosen.values() for seed in sweep.values()}
    problems = [f"no chosen experiment has the seed {seed}" for seed in seeds if seed not in found]
    without = [name for name, sweep in chosen.items() if every and not set(seeds) & set(sweep.values())]
    problems = problems or [f"{name} has none of the seeds {', '.join(map(str, seeds))}" for name in without]
    if problems:
        have = "; ".join(f"{name} has {', '.join(map(str, sweep.values()))}" for name, sweep in chosen.items())
        raise ConfigError(f"--seeds: {problem} ({have}); add it to `seeds` of its file" for problem in problems)


def _require_stages(plan: dvc_repo.Plan, runs: Iterable[str]) -> None:
    absent = [run for run in runs if run not in plan.experiments]
    if absent:
        raise ConfigError(
            f"dvc.yaml makes no stages of {', '.join(absent)}; copy it from a new project made by `contrast init`, "
            f"whose dvc.yaml loops over the runs in runs.yaml"
        )
