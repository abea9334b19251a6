"""`contrast doctor`: what is wrong around a project, and the fix for each.

Looks at versions, plugins, DVC's set-up and locks, leftovers of killed processes, Prefect's records and disk space.
Repairs only on request, and only what cannot lose anything. Does not judge settings; that is `contrast check`.
"""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from cl_core.errors import ContrastError
from pipelines import dvc_repo, locks, server
from pipelines.planning import LOCKS, STATE
from pipelines.project.create import under_git

PACKAGES = ("torch", "torchvision", "timm", "prefect", "fastapi", "dvc", "pluggy", "pydantic")
FASTAPI_LIMIT = (0, 151)  # from here on, flows of prefect 3.8 die with "Body() got an unexpected keyword argument"
PREFECT_PINS_FASTAPI = (3, 9)
LITTLE_SPACE = 2 * 1024**3  # bytes
SETTLED = 60.0  # seconds since the last write after which a leftover has no writer
LOCAL_CONFIG = Path(".dvc/config.local")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. remedy: what to do, empty where all is well. repair: does it, where that is safe."""

    text: str
    remedy: str = ""
    repair: Callable[[], None] | None = None


def examine(folder: Path, *, fix: bool) -> int:
    """Print what is found; returns 1 where something is left for the user to do, else 0."""
    left = 0
    for finding in findings(folder.resolve()):
        if not finding.remedy:
            click.echo(f"{click.style('ok', fg='green')}       {finding.text}")
        elif fix and finding.repair is not None:
            finding.repair()
            click.echo(f"{click.style('fixed', fg='green')}    {finding.text}")
        else:
            left += 1
            hint = " (`contrast doctor --fix` does it)" if finding.repair else ""
            click.echo(f"{click.style('problem', fg='red')}  {finding.text}\n         fix: {finding.remedy}{hint}")
    return 1 if left else 0


def findings(project: Path) -> Iterator[Finding]:
    """All that can be said of this installation, and of the project where the folder is one."""
    yield from check_versions()
    yield from check_plugins()
    yield check_path()
    if not (project / "params.yaml").is_file():
        yield Finding(f"{project} is not a project; looked at the installation only")
        return
    yield check_git(project)
    yield from check_locks(project)
    yield from check_leftovers(project)
    yield from check_prefect(project)
    yield check_space(project)


def check_versions() -> Iterator[Finding]:
    """Packages that are missing, or known not to work together."""
    found = {name: _version(name) for name in PACKAGES}
    shown = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield Finding(f"python {sys.version.split()[0]}, {shown}")
    for name in (name for name, number in found.items() if number is None):
        yield Finding(f"{name} is not installed", f"{sys.executable} -m pip install {name}")
    prefect, fastapi = (_numbers(found[name] or "0") for name in ("prefect", "fastapi"))
    if fastapi >= FASTAPI_LIMIT and prefect < PREFECT_PINS_FASTAPI:
        yield Finding(
            f"fastapi {found['fastapi']} breaks prefect {found['prefect']}: every flow would fail",
            f"{sys.executable} -m pip install 'fastapi<0.151'",
        )
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        yield Finding(
            f"torchvision does not work with this torch: {str(error).splitlines()[0]}",
            "install torch and torchvision together, from the same index",
        )


def check_plugins() -> Iterator[Finding]:
    """Plugins that could not be loaded, or claim one name."""
    from cl_core.registry import load_registry

    try:
        registry = load_registry()
    except ContrastError as error:
        yield Finding(str(error), "uninstall one of the two, or list its name under plugins.block in params.yaml")
        return
    yield Finding(f"{len(registry.entries())} parts from {len(registry.manager.list_name_plugin())} plugins")
    for broken in registry.broken:
        who = f"{broken.provider} {broken.version}"
        remedy = f"update or uninstall {broken.provider}, or list {broken.plugin!r} under plugins.block in params.yaml"
        yield Finding(f"plugin {broken.plugin!r} ({who}) does not load: {broken.error}", remedy)


def check_path() -> Finding:
    """Whether a plain `dvc repro` would find this `contrast`; `contrast run` always does."""
    ours = Path(sys.executable).parent
    found = shutil.which("contrast")
    if found is not None and Path(found).parent.resolve() == ours.resolve():
        return Finding(f"contrast on PATH is {found}")
    there = f"is {found}, another one" if found else "is missing"
    return Finding(f"contrast on PATH {there}, so `dvc repro` would not run this one", f'export PATH="{ours}:$PATH"')


def check_git(project: Path) -> Finding:
    """DVC refuses to work where it expects git and there is none, and the other way round."""
    if not (project / ".dvc" / "config").is_file():
        return Finding(f"{project} has no .dvc/config", "copy it from a new project made by `contrast init`")
    without_git, with_git = dvc_works_without_git(project), under_git(project)
    if without_git and with_git:
        text = "DVC is set to work without git, but there is a git repository, whose versions DVC then cannot see"
        return Finding(text, f"no_scm = false in {LOCAL_CONFIG}", lambda: set_no_scm(project, wanted=False))
    if not without_git and not with_git:
        text = "DVC expects a git repository, and there is none (or git is not installed)"
        remedy = f"`git init`, or no_scm = true in {LOCAL_CONFIG}"
        return Finding(text, remedy, lambda: set_no_scm(project, wanted=True))
    return Finding("DVC works " + ("with git" if with_git else "without git"))


def dvc_works_without_git(project: Path) -> bool:
    """Whether DVC's configuration says no_scm."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([project / ".dvc" / "config", project / LOCAL_CONFIG])
    return config.getboolean("core", "no_scm", fallback=False)


def set_no_scm(project: Path, *, wanted: bool) -> None:
    """Write no_scm into .dvc/config.local, which is the user's own and wins over .dvc/config."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read(project / LOCAL_CONFIG)
    if not config.has_section("core"):
        config.add_section("core")
    config.set("core", "no_scm", str(wanted).lower())
    with (project / LOCAL_CONFIG).open("w") as file:
        config.write(file)


def check_locks(project: Path) -> Iterator[Finding]:
    """Stages at work, and processes that DVC takes for being at work but that are gone."""
    for stage, pid in locks.held(project / LOCKS).items():
        yield Finding(f"{stage} is running as pid {pid}")
    holders = dvc_repo.lock_holders(project)
    stale = [holder for holder in holders if holder.stale]
    if not stale:
        yield Finding("no stale locks")
        return
    named = ", ".join(f"pid {holder.pid}" for holder in stale)
    path = project / dvc_repo.RWLOCK
    alone = len(stale) == len(holders)  # never under a DVC that is at work
    yield Finding(
        f"DVC's lock file names processes that are gone or are not DVC ({named}); their stages look busy",
        f"remove {path}" + ("" if alone else " when DVC is idle"),
        path.unlink if alone else None,
    )


def check_leftovers(project: Path) -> Iterator[Finding]:
    """Half-written files of processes that were killed."""
    if locks.held(project / LOCKS):
        return
    before = time.time() - SETTLED
    folders = [project / "artifacts", project / STATE]
    paths = [path for folder in folders for path in folder.rglob(".*.partial") if path.stat().st_mtime < before]
    if not paths:
        return

    def repair() -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    size = sum(path.stat().st_size for path in paths) / 1e6
    shown = ", ".join(str(path.relative_to(project)) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    yield Finding(f"{len(paths)} half-written files of killed processes, {size:.1f} MB: {shown}", "delete them", repair)


def check_prefect(project: Path) -> Iterator[Finding]:
    """Flow runs that Prefect believes running though their process is gone."""
    if not server.configured() and not (project / server.HOME / "prefect.db").is_file():
        return
    try:
        with server.available(project):
            from pipelines.flows import crash_dead_runs

            dead = crash_dead_runs(apply=False)
    except Exception as error:  # whatever Prefect or the network raises, the other checks must go on
        where = "PREFECT_API_URL" if server.configured() else str(project / server.HOME)
        yield Finding(f"Prefect does not answer: {type(error).__name__}: {error}", f"look at {where}")
        return
    if not dead:
        yield Finding("no flow run without a process")
        return

    def repair() -> None:
        with server.available(project):
            crash_dead_runs()

    yield Finding(f"flow runs without a process: {', '.join(dead)}", "mark them as crashed", repair)


def check_space(project: Path) -> Finding:
    """Room for the store, DVC's cache and the checkpoints."""
    free = shutil.disk_usage(project).free
    text = f"{free / 1024**3:.1f} GB of disk space free"
    return Finding(text, "free some; `dvc gc --workspace` drops results of old settings" if free < LITTLE_SPACE else "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
