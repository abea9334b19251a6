"""The only file that talks to DVC: look at what would run, run one stage, stop what runs.

Looking happens in process and read-only (about 0.3 s). Running starts `dvc repro --single-item` as a process group, so
that its output can be kept, it can be stopped as a whole, and DVC's locks, which know processes and not threads, hold.
Does not decide when or how often a stage is tried; that is the flow's.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import psutil
from ruamel.yaml import YAML, YAMLError

from cl_core.errors import ConfigError, ContrastError, did_you_mean
from pipelines import leash
from pipelines.cores import threads

RESOLVE = "resolve"  # always changed by design: `contrast run` does its work in process, so no plan contains it
USER_ERROR_EXITS = (1, 2)  # of `contrast stage`: a ContrastError, a wrong command line; trying again cannot help
RWLOCK = Path(".dvc/tmp/rwlock")
TAIL = 30  # lines of output kept for the error message
CHATTER = re.compile(
    r"Stage '.*' didn't change, skipping$|Data and pipelines are up to date\.$|Use `dvc push`|Updating lock file|"
    r"Generating lock file|Running stage '|> contrast stage |To track the changes|To enable auto staging|"
    r"\s*git add |\s*dvc config |$"
)


class Outcome(Enum):
    """How a stage came to be as it should be."""

    RAN = "ran"
    RESTORED = "restored"
    UP_TO_DATE = "up to date"


@dataclass(frozen=True)
class Stage:
    """A stage and the stages it takes its inputs from."""

    name: str
    parents: tuple[str, ...]

    @property
    def experiment(self) -> str | None:
        """The run: `simclr-s1` of `pretrain@simclr-s1`; None for stages that all experiments share."""
        return self.name.partition("@")[2] or None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What DVC sees in a project.

    stages: parents before children. changed: names of stages that DVC would touch. outputs: the hashes that dvc.lock
    holds per stage, only for stages whose outputs in the workspace are the ones that dvc.lock describes.
    """

    stages: tuple[Stage, ...]
    changed: frozenset[str]
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def experiments(self) -> list[str]:
        """Names of the runs, one per experiment and seed, in the order of the graph."""
        return list(dict.fromkeys(stage.experiment for stage in self.stages if stage.experiment))

    def only(self, experiments: Iterable[str]) -> Plan:
        """The shared stages and those of the named runs. Raises ConfigError for names that are not there."""
        wanted = list(experiments)
        known = self.experiments
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ConfigError(
                f"no experiment is called {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
                for name in unknown
            )
        kept = [stage for stage in self.stages if stage.experiment is None or stage.experiment in wanted]
        names = {stage.name for stage in kept}
        stages = tuple(Stage(stage.name, tuple(p for p in stage.parents if p in names)) for stage in kept)
        return Plan(stages=stages, changed=self.changed & names, outputs=self.outputs)


class StageFailed(ContrastError):  # noqa: N818 - it is the stage that failed
    """A stage ended badly; `exit_code` is that of `contrast stage`, or None where DVC itself failed."""

    def __init__(self, stage: str, reason: str, exit_code: int | None, log: Path) -> None:
        code = "" if exit_code is None else f" (exit {exit_code})"
        super().__init__(f"{stage} failed{code}: {reason} [{log}]")
        self.reason = reason
        self.exit_code = exit_code
        self._told = (stage, reason, exit_code, log)

    def __reduce__(self) -> tuple[type[StageFailed], tuple[str, str, int | None, Path]]:
        """It comes back from other machines, whole."""
        return type(self), self._told

    @property
    def worth_retrying(self) -> bool:
        """False where the user must change something first."""
        return self.exit_code not in USER_ERROR_EXITS


class Stopped(ContrastError):  # noqa: N818 - not an error, a stop that was asked for
    """A stage was not run, or was ended, because the run is being stopped."""


def look(project: Path) -> Plan:
    """Read the stage graph and which stages are not as dvc.lock describes them. Changes nothing.

    Raises ConfigError, with the remedy, where there is no dvc.yaml or DVC cannot read the project, and ContrastError
    where another DVC is running a stage.
    """
    for needed in ("dvc.yaml", ".dvc"):  # without a .dvc of its own a folder would count as part of one further up
        if not (project / needed).exists():
            raise ConfigError(f"{project} has no {needed}; copy it from a new project made by `contrast init`")
    logging.getLogger("dvc").setLevel(logging.ERROR)  # no progress bars, no hints on stderr
    with _explained(project):
        import networkx
        from dvc.repo import Repo

        with Repo(str(project), _wait_for_lock=True) as repo:
            graph = repo.index.graph  # an edge goes from a stage to one that it depends on
            ours = [
                s for s in networkx.dfs_postorder_nodes(graph) if s.path_in_repo == "dvc.yaml" and s.name != RESOLVE
            ]
            stages = [Stage(s.name, tuple(p.name for p in graph.successors(s) if p in ours)) for s in ours]
            status = repo.status()
            # `addressing` is relative to the current folder, which need not be the project; `name` is not.
            reasons = {s.name: status[s.addressing] for s in ours if s.addressing in status}
            hashes = {s.name: {out.def_path: out.hash_info.value for out in s.outs} for s in ours}
    intact = {name: hashes[name] for name in hashes if not _outputs_differ(reasons.get(name, []))}
    return Plan(stages=tuple(stages), changed=frozenset(reasons), outputs=intact)


@dataclass(frozen=True)
class Holder:
    """A process that DVC's lock file names as working in the project. stale: it is gone, or it is not DVC."""

    pid: int
    command: str
    stale: bool


def lock_holders(project: Path) -> list[Holder]:
    """Who DVC believes to be at work. DVC drops entries of processes that do not exist, but not those of zombies and
    of numbers that other processes have got since; such an entry blocks a stage until the file is removed.
    """
    try:
        entries = json.loads((project / RWLOCK).read_text())
    except (OSError, ValueError):
        return []
    writers = [entry for entry in entries.get("write", {}).values() if entry]
    readers = [entry for group in entries.get("read", {}).values() for entry in group]
    named = {(int(entry["pid"]), str(entry["cmd"])) for entry in [*writers, *readers]}
    return [Holder(pid, command, not _is_dvc(pid)) for pid, command in sorted(named)]


def _is_dvc(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any(Path(part).name == "dvc" for part in process.cmdline())
    except psutil.Error:
        return False


def recorded_outputs(project: Path, stage: str) -> dict[str, str] | None:
    """Output path -> hash of a stage as dvc.lock has it; None where it has none, or is just being rewritten."""
    try:
        lock = YAML(typ="safe").load(project / "dvc.lock")
        return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}
    except (OSError, YAMLError, KeyError, TypeError):
        return None


class Runner:
    """Runs stages of one project, several threads at a time, and can stop them all.

    Each stage's output goes to `logs/<stage>.log`, which is left alone where DVC finds nothing to do. jobs: how many
    run side by side at most; each gets its share of the cores. decode_threads: of each, None for its share.
    """

    def __init__(self, project: Path, logs: Path, jobs: int = 1, decode_threads: int | None = None) -> None:
        self.project = project
        self.logs = logs
        self.jobs, self.decode_threads = jobs, decode_threads
        self.stopping = False
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._tried: set[str] = set()

    def log_file(self, stage: str) -> Path:
        """Where the output of a stage is kept."""
        return self.logs / f"{stage}.log"

    def run(self, stage: str, on_line: Callable[[str], None] = lambda line: None) -> Outcome:
        """Bring one stage up to date; its parents must be so already. `on_line` gets each line of its output.

        Raises StageFailed, or Stopped when `stop` was called. Any exception raised in this thread ends the stage.
        """
        process = self._start(stage)
        output = _Output(stage, self.log_file(stage), on_line, append=stage in self._tried)
        self._tried.add(stage)
        pump = threading.Thread(target=output.pump, args=(process.stdout,), daemon=True)
        pump.start()
        try:
            while process.poll() is None:
                time.sleep(0.05)  # not wait(): an exception sent to this thread (a task's timeout) must get through
            pump.join(5)
        except BaseException:
            end_group(process)
            raise
        finally:
            with self._lock:
                self._running.remove(process)
        if process.returncode:
            raise Stopped(f"{stage} was stopped") if self.stopping else output.failure()
        return output.outcome

    def stop(self, grace: float = 30.0) -> None:
        """End all running stages and start no more: SIGINT, `grace` seconds to save, then by force.

        A KeyboardInterrupt while waiting ends them at once.
        """
        with self._lock:
            self.stopping = True
            running = list(self._running)
        try:
            _in_parallel(end_group, running, grace)
        except KeyboardInterrupt:
            _in_parallel(end_group, running, 0.0)

    def _start(self, stage: str) -> subprocess.Popen[str]:
        with self._lock:
            if self.stopping:
                raise Stopped(f"{stage} was not started")
            process = subprocess.Popen(
                leash.command("dvc", "--wait-for-lock", "repro", "--single-item", stage),
                cwd=self.project,
                env=child_environment(self.jobs, self.decode_threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.append(process)
        return process


class _Output:
    """Reads what DVC and the stage print; knows from DVC's own lines what became of the stage."""

    def __init__(self, stage: str, log: Path, on_line: Callable[[str], None], *, append: bool) -> None:
        self.outcome = Outcome.UP_TO_DATE
        self._stage = stage
        self._log = log
        self._append = append
        self._on_line = on_line
        self._tail: list[str] = []

    def pump(self, stream: TextIO) -> None:
        """Read until the stream ends; the log is opened at the first line that is not DVC's small talk."""
        file: TextIO | None = None
        with stream:
            for line in map(str.rstrip, stream):
                self._judge(line)
                if CHATTER.match(line):
                    continue
                file = file or self._open()
                print(line, file=file, flush=True)
                self._tail = [*self._tail[-TAIL:], line]
                self._on_line(line)
        if file:
            file.close()

    def failure(self) -> StageFailed:
        """The error that tells what went wrong, in the stage's own words where it was the stage that failed."""
        found = re.search(r"exited with (-?\d+)$", "\n".join(self._tail), re.MULTILINE)
        exit_code = int(found.group(1)) if found else None
        by_dvc = [line for line in self._tail if line.startswith("ERROR: ")]
        by_stage = [line for line in self._tail if not line.startswith("ERROR: ")]
        errors = [line for line in by_stage if line.startswith("error: ")]
        told = errors or (by_stage[-1:] if found else by_dvc) or ["it printed nothing"]
        reason = "; ".join(line.removeprefix("error: ").removeprefix("ERROR: ") for line in told)
        return StageFailed(self._stage, reason, exit_code, self._log)

    def _open(self) -> TextIO:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self._log.open("a" if self._append else "w")

    def _judge(self, line: str) -> None:
        if line == f"Running stage '{self._stage}':":
            self.outcome = Outcome.RAN
        elif line.startswith(f"Stage '{self._stage}' is cached - skipping run"):
            self.outcome = Outcome.RESTORED


def end_group(process: subprocess.Popen[Any], grace: float = 30.0) -> None:
    """End a process and its group: SIGINT first (DVC waits for its stage, the stage saves), then harder."""
    for sign, seconds in ((signal.SIGINT, grace), (signal.SIGTERM, min(grace, 5.0)), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None and not _group_exists(process.pid):
                return
            time.sleep(0.05)


def child_environment(jobs: int = 1, decode_threads: int | None = None) -> dict[str, str]:
    """Environment for DVC: our own `contrast` found first, output unbuffered, no telemetry, one of `jobs` shares of the
    cores, as many threads for decoding."""
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    shares = threads(jobs, decode_threads)
    return {**os.environ, **shares, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


def _in_parallel(function: Callable[..., None], processes: list[subprocess.Popen[str]], grace: float) -> None:
    threads = [threading.Thread(target=function, args=(process, grace), daemon=True) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _outputs_differ(reasons: list[Any]) -> bool:
    return any(isinstance(reason, dict) and "changed outs" in reason for reason in reasons)


@contextmanager
def _explained(project: Path) -> Iterator[None]:
    """Turn DVC's exceptions into a ContrastError with the remedy."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.scm import SCMError

    try:
        yield
    except SCMError as error:
        raise ConfigError(f"DVC: {error}; run `git init`, or `contrast doctor --fix` to work without git") from None
    except LockError:
        named = ", ".join(f"pid {holder.pid}" for holder in lock_holders(project)) or "another process"
        raise ContrastError(
            f"DVC is at work in {project} already ({named}); wait for it, or, if it is gone, `contrast doctor --fix`"
        ) from None
    except DvcException as error:
        raise ConfigError(f"DVC cannot read {project}: {error}") from None
