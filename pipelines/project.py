"""`contrast init`: make a folder in which `contrast run` works at once.

Writes the files of templates/project, sets up git where the folder is not under git yet, and DVC. Never overwrites a
project that is there already unless told to, and writes nothing before it has looked at the images.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from string import Template

from cl_core.data.files import write_bytes, write_json
from cl_core.errors import ConfigError
from pipelines import sizing

TEMPLATES = Path(__file__).parent / "templates" / "project"
# File of a project -> its template. The suffix keeps DVC from taking the template of dvc.yaml for a pipeline of ours.
STATIC = {  # equal in all projects
    "dvc.yaml": "dvc.yaml.tmpl",
    "prefect.yaml": "prefect.yaml.tmpl",
    ".dvcignore": "dvcignore.tmpl",
    ".dvc/config": "dvc_config.tmpl",
    ".dvc/.gitignore": "dvc_gitignore.tmpl",
}
SIZED = {"params.yaml": "params.yaml.tmpl", "experiments/simclr.yaml": "experiment.yaml.tmpl"}
NO_SCM = "[core]\n    no_scm = true\n"  # into .dvc/config.local, so that .dvc/config is the same with and without git


def create(folder: Path, images: Path | None = None, *, force: bool = False) -> list[str]:
    """Make a project; returns lines that say what was done.

    images: a folder in one of the layouts of the source image_folder; none means the embedded digits.
    Raises ConfigError where a project is there already, DataError where the images cannot be used.
    """
    folder = folder.resolve()
    _refuse_to_overwrite(folder, force)
    values, seen = _settings(folder, images)
    for path, template in STATIC.items():
        write_bytes(folder / path, (TEMPLATES / template).read_bytes())
    for path, template in SIZED.items():
        write_bytes(folder / path, Template((TEMPLATES / template).read_text()).substitute(values).encode())
    _extend_gitignore(folder, images)
    _write_schemas(folder)
    return [seen, f"wrote {folder}", *_set_up_git(folder), f"next: cd {folder} && contrast run"]


def _refuse_to_overwrite(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    there = [path for path in (*STATIC, *SIZED) if (folder / path).exists()]
    if there and not force:
        raise ConfigError(
            f"{folder} holds a project already ({', '.join(there)}); name another folder, or overwrite these files "
            f"with --force"
        )


def _settings(folder: Path, images: Path | None) -> tuple[Mapping[str, object], str]:
    """Values for the templates, and one line about the images."""
    title = json.dumps(folder.name)
    if images is None:
        return {"title": title, **sizing.digits_settings()}, "images: the embedded digits"
    path = images.expanduser().resolve()
    if folder.is_relative_to(path):
        raise ConfigError(f"the project {folder} would lie inside its images {path}; put it beside them")
    found = _look_at(path)
    labels = f"in {found.classes} classes" if found.classes else "without labels (so the evaluation will be skipped)"
    written = path.relative_to(folder) if path.is_relative_to(folder) else path
    source = f"{{name: image_folder, path: {json.dumps(str(written))}}}  # {found.count:,} images {labels}"
    values = sizing.settings(found, sizing.Machine.this())
    given = {"title": title, "source": source, "description": json.dumps(f"SimCLR on {path.name}")}
    return {**values, **given}, f"images: {found.count:,} {labels}, shorter side {found.side} pixels"


def _look_at(path: Path) -> sizing.Images:
    from cl_core.registry import load_registry

    source = load_registry().build("source", "image_folder", {"path": str(path)})
    return sizing.measure(list(source), path)


def _extend_gitignore(folder: Path, images: Path | None) -> None:
    """Add what is missing to .gitignore: a folder may be under git before it becomes a project."""
    wanted = (TEMPLATES / "gitignore.tmpl").read_text()
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
