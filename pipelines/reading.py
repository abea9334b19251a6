"""Read the results of a project for the commands that show them; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_core.errors import ConfigError, did_you_mean
from cl_core.report.collect import Experiment, collect, read_resolved
from cl_core.report.comparison import find
from cl_core.report.groups import Group, group_seeds
from pipelines.planning import require_project

ARTIFACTS = Path("artifacts")


def collected(folder: Path, names: Sequence[str] = ()) -> list[Experiment]:
    """What the stages left of the named experiments, or of all that params.yaml lists.

    Raises ConfigError for a folder that is no project, one in which nothing has run, and an unknown name; DataError for
    a damaged file.
    """
    artifacts = require_project(folder) / ARTIFACTS
    report = read_resolved(artifacts / "resolved" / "report.json")
    if report is None:
        raise ConfigError(f"{folder} has no results yet; run `contrast run` first")
    known = list(report.config.get("experiments", {}))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no experiment is called {name!r}{did_you_mean(name, known)}; params.yaml lists: {', '.join(known)}"
            )
    return collect(artifacts, names or known, timing=False)


def evaluated(folder: Path, name: str | None = None) -> list[Group]:
    """Groups of runs that differ in seed alone; with a name only the one it belongs to. Raises as `collected`."""
    groups = group_seeds(collected(folder))
    found = groups if name is None else find([name], groups)
    if not found:
        raise ConfigError(f"{folder} has no results yet; run `contrast run` first")
    return found
