"""`contrast init`: make a folder in which `contrast run` works at once.

Looks at the images, asks what they cannot say, tries the machine, and only then writes: settings, a sheet of views, git
where the folder is not under git yet, and DVC. Never overwrites a project that is there already unless told to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cl_core.data.files import write_bytes, write_json
from cl_core.errors import ConfigError, DataError
from cl_core.examples import Source
from pipelines.project import measured, write
from pipelines.project.look import Images, look, spread
from pipelines.project.machine import Machine
from pipelines.project.questions import Answers, Ask, answers
from pipelines.project.speed import Speed, duration
from pipelines.project.start import Start, choose
from pipelines.yaml_text import flow

if TYPE_CHECKING:
    from pipelines.project.trial import Trial

SHEET = "views.png"
VERDICT = "then      contrast verdict: did pretraining help, how many labels did it save, and what to do next"
NO_SCM = "[core]\n    no_scm = true\n"  # into .dvc/config.local, so that .dvc/config is the same with and without git
LEAST_IMAGES = 4  # for training; of fewer there is nothing to compare
TRIED = 300  # images of a trial
TRIED_PIXELS = 400_000_000  # of their files, together

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user has said. mirror, colour: None where nothing. ask: puts questions to a person, where there is one.

    minutes: of pretraining; None for what suits the device. trial: whether to try the machine.
    """

    mirror: bool | None = None
    colour: bool | None = None
    minutes: float | None = None
    trial: bool = True
    ask: Ask | None = None


def create(
    folder: Path, images: Path | None = None, *, wishes: Wishes | None = None, force: bool = False, say: Say = print
) -> None:
    """Make a project and say what was seen, guessed, chosen and done, a line each.

    images: a folder in one of the layouts of the source image_folder; none means the embedded digits.
    Raises ConfigError where a project is there already, DataError where the images cannot be used.
    """
    folder = folder.resolve()
    _refuse_to_overwrite(folder, force)
    if images is None:
        say("images: the embedded digits")
        _write(folder, write.digits())
    else:
        _create_for(folder, images.expanduser().resolve(), wishes or Wishes(), say)
    for line in [*_set_up_git(folder), f"wrote     {folder}", f"next      cd {folder} && contrast run", VERDICT]:
        say(line)


def _create_for(folder: Path, path: Path, wishes: Wishes, say: Say) -> None:
    """The project for a folder of images."""
    if folder.is_relative_to(path):
        raise ConfigError(f"the project {folder} would lie inside its images {path}; put it beside them")
    source, machine = _source(path), Machine.this()
    images = look(source, path)
    _tell(say, "seen", images.told())
    if images.train < LEAST_IMAGES:
        raise DataError(
            f"{path}: of {images.count} images {images.train} are for training and the others for validation and test; "
            f"training takes {LEAST_IMAGES} at least, so add some"
        )
    answered = answers(images, mirror=wishes.mirror, colour=wishes.colour, ask=wishes.ask)
    _tell(say, "guessed", answered.told())
    plan = _Plan(folder, path, source, images, machine, answered, wishes)
    start, speed, sheet, decisions = plan.settle(say)
    _write(folder, plan.values(start), path)
    write_bytes(folder / SHEET, sheet)
    if decisions is not None:
        write_bytes(folder / ".contrast" / "decisions.json", decisions)
    _tell(say, "chosen", _chosen(start))
    _tell(say, "takes", _lasting(images, start, speed))
    _tell(say, "note", start.advice)
    say(f"look at   {folder / SHEET}: do all views of a row still show what is in its first picture?")


@dataclass(frozen=True)
class _Plan:
    """What the settings follow from."""

    folder: Path
    path: Path
    source: Source
    images: Images
    machine: Machine
    answers: Answers
    wishes: Wishes

    def values(self, start: Start) -> dict[str, Any]:
        """For the templates."""
        path = self.path
        written = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        return write.values(self.images, start, self.answers, name=path.name, path=str(written))

    def settle(self, say: Say) -> tuple[Start, Speed, bytes, bytes | None]:
        """The settings, the speed they were fitted to, a sheet of views, and the record of decisions of a trial."""
        speed = Speed.assumed(self.machine, measured.row(self.images, self.machine))
        start = self.choose(speed)
        with TemporaryDirectory(prefix="contrast-init-") as scratch:
            trial = self.rehearse(Path(scratch), start)
            if self.wishes.trial:
                say("trying    this machine with these images, half a minute ...")
                speed = trial.speed(self.images.classes)
                batch = self.choose(speed).batch
                if batch != start.batch:
                    trial = self.rehearse(Path(scratch), self.choose(speed, batch))
                    speed = trial.speed(self.images.classes)
                start = self.choose(speed, batch)
            record = Path(scratch) / ".contrast" / "decisions.json"
            return start, speed, trial.sheet(), record.read_bytes() if record.is_file() else None

    def choose(self, speed: Speed, batch: int | None = None) -> Start:
        """Settings for a speed, with a batch that has been settled."""
        minutes = self.wishes.minutes or measured.MINUTES[self.machine.kind]
        return choose(self.images, self.machine, self.answers, minutes, speed, batch=batch)

    def rehearse(self, scratch: Path, start: Start) -> Trial:
        """The project in a scratch folder, on some of the images."""
        from pipelines.project.trial import Trial

        write.write_settings(scratch, {"title": "trial", **self.values(start)})
        affordable = TRIED_PIXELS // max(1, self.images.pixels)
        examples = spread(self.source, self.images.count, max(32, min(TRIED, affordable)))
        return Trial(scratch, examples)


def _chosen(start: Start) -> list[str]:
    """Lines for the screen: each choice with its reason."""
    loss = "" if start.loss is None else f", loss {flow(start.loss)}"
    return [
        f'the row "{start.row}" of {write.TABLE}: {start.method["name"]}{loss}',
        f"encoder {flow(start.encoder)}: {start.why['encoder']}",
        f"size {start.size}: {start.why['size']}",
        f"views: {start.why['views']}",
        *([f"layout encoded: {start.why['layout']}"] if start.layout == "encoded" else []),
        f"batch {start.batch}: {start.why['batch']}",
        f"{start.epochs} epochs: {start.why['epochs']}",
    ]


def _lasting(images: Images, start: Start, speed: Speed) -> list[str]:
    """Lines for the screen: how long a run takes."""
    lasts = duration(images, start, speed)
    kind = "measured here" if speed.measured else "assumed, not measured"
    lines = [f"{_minutes(lasts.pretraining)} of pretraining, {_minutes(lasts.total)} for the whole run ({kind})"]
    if images.count >= measured.MANY:
        lines.append(f"one pass over the training images takes {_minutes(images.train / speed.training)}")
    return lines


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _tell(say: Say, what: str, lines: Sequence[str]) -> None:
    """Say lines, the first of them behind a word for what they are about."""
    for number, line in enumerate(lines):
        say(f"{'' if number else what:<10}{line}")


def _write(folder: Path, values: dict[str, Any], images: Path | None = None) -> None:
    """All files that do not depend on git."""
    for path, template in write.STATIC.items():
        write_bytes(folder / path, (write.TEMPLATES / template).read_bytes())
    write.write_settings(folder, {"title": json.dumps(folder.name), **values})
    _write_run_list(folder)
    _extend_gitignore(folder, images)
    _write_schemas(folder)


def _write_run_list(folder: Path) -> None:
    """DVC cannot read dvc.yaml without it."""
    from cl_core.project import load_project
    from cl_core.resolve import RUN_LIST, run_list

    write_bytes(folder / RUN_LIST, run_list(load_project(folder)))


def _source(path: Path) -> Source:
    from cl_core.registry import load_registry

    return load_registry().build("source", "image_folder", {"path": str(path)})


def _refuse_to_overwrite(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    there = [path for path in (*write.STATIC, "params.yaml") if (folder / path).exists()]
    if there and not force:
        raise ConfigError(
            f"{folder} holds a project already ({', '.join(there)}); name another folder, or overwrite these files "
            f"with --force"
        )


def _extend_gitignore(folder: Path, images: Path | None) -> None:
    """Add what is missing to .gitignore: a folder may be under git before it becomes a project."""
    wanted = (write.TEMPLATES / "gitignore.tmpl").read_text()
    if images is not None and images.resolve().is_relative_to(folder):
        wanted += f"# the images; `dvc add` versions them\n/{images.resolve().relative_to(folder)}/\n"
    path = folder / ".gitignore"
    present = path.read_text() if path.exists() else ""
    missing = [line for line in wanted.splitlines() if line not in present.splitlines()]
    if missing:
        start = present if not present or present.endswith("\n") else present + "\n"
        write_bytes(path, (start + "\n".join(missing) + "\n").encode())


def _write_schemas(folder: Path) -> None:
    from cl_core.listing import json_schemas
    from cl_core.registry import load_registry

    for name, schema in json_schemas(load_registry()).items():
        write_json(folder / ".contrast" / "schema" / f"{name}.json", schema)


def _set_up_git(folder: Path) -> list[str]:
    if shutil.which("git") is None:
        write_bytes(folder / ".dvc" / "config.local", NO_SCM.encode())
        return ["git is not installed: DVC works without it here; after a later `git init` run `contrast doctor --fix`"]
    if under_git(folder):
        return []
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return ["made a git repository"]


def under_git(folder: Path) -> bool:
    """Whether git is installed and the folder lies in a work tree."""
    if shutil.which("git") is None:
        return False
    answer = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() == "true"
