"""What a search ends with: an experiment file with the reason beside each value, its name in params.yaml, a summary.

A file that somebody else wrote, or edited, is never overwritten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cl_core.config import ExperimentConfig
from cl_core.data.files import read_json, sha256_bytes, sha256_file, write_bytes, write_json
from cl_core.documents import read_yaml
from cl_core.errors import ConfigError
from cl_core.project import merge
from pipelines.tuning.search import Candidate, Search, winner
from pipelines.tuning.space import Axis, Edit, Space, Values
from pipelines.tuning.trial import FIGURES
from pipelines.yaml_text import flow

SUMMARY = "summary.json"
SCHEMA = "# yaml-language-server: $schema=../.contrast/schema/experiment.json"
UNITS_ALIKE = 1.05  # costs within this factor leave the epochs as they are


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What to say at the end, and the experiment that was written, if any."""

    lines: list[str]
    path: Path | None = None


def require_ours(root: Path, name: str, folder: Path) -> None:
    """Raise ConfigError where the file to be written is there and is not as the last search left it."""
    path, summary = root / _file(name), folder / SUMMARY
    if not path.is_file():
        return
    if sha256_file(path) not in _written(summary):
        raise ConfigError(
            f"{_file(name)} is there and is not, or no longer, what a search wrote; rename it (and its name in "
            f"params.yaml) or delete it, so that `contrast tune {name}` can write there"
        )


def write(search: Search, folder: Path) -> Outcome:
    """Write the winner as an experiment of the project, if there is one, and the summary."""
    root, name = search.space.project.root, search.space.start.name
    found, summary = winner(search), folder / SUMMARY
    if found is None:
        write_json(summary, _summary(search, None, None, _written(summary)))
        return Outcome(lines=[_nothing_better(search)])
    path, text = root / _file(name), _text(search, *found).encode()
    # First, so that the file counts as ours wherever a kill falls.
    write_json(summary, _summary(search, found, path.name, [*_written(summary), sha256_bytes(text)]))
    write_bytes(path, text)
    listed = _list_in_params(root / "params.yaml", f"{name}-tuned", name)
    return Outcome(lines=_better(search, *found, listed), path=path)


def words(space: Space, values: Values) -> str:
    """What differs from the experiment: "batch 64, rate 0.5, byol"."""
    named = [
        str(values[axis.name]) if axis.name == "method" else f"{axis.name} {values[axis.name]}"
        for axis in space.changed(values)
    ]
    return ", ".join(named) or f"{space.start.name} as it is"


def list_experiment(text: str, name: str, after: str) -> str:
    """params.yaml with a name behind another one under `experiments`; nothing else of the text changes."""
    root: Any = YAML(typ="safe", pure=True).compose(text)
    names = next(value for key, value in root.value if key.value == "experiments")
    node = next(item for item in names.value if item.value == after)
    end = node.end_mark.index
    if names.flow_style:
        return f"{text[:end]}, {name}{text[end:]}"
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    indent = text[: node.start_mark.index].rpartition("\n")[2]
    return f"{text[:line_end]}\n{indent}{name}{text[line_end:]}"


def _file(name: str) -> Path:
    return Path("experiments") / f"{name}-tuned.yaml"


def _list_in_params(path: Path, name: str, after: str) -> bool:
    """Whether the name was added; it may be there from an earlier search."""
    if name in read_yaml(path, "params.yaml").data["experiments"]:
        return False
    write_bytes(path, list_experiment(path.read_text(), name, after).encode())
    return True


def _text(search: Search, best: Candidate, rung: int) -> str:
    """The experiment file."""
    space = search.space
    name, figure = space.start.name, _figure(best, rung)
    edit, reasons = _edit(search, best, rung), _reasons(search, best, rung)
    head = [
        SCHEMA,
        f"# Written by `contrast tune {name}`: {best.score(rung):.3f} {figure} after {search.rungs[rung]:,} images, "
        f"{_shown(search.start, rung)} with",
        f"# the values of {name}; {len(search.tried)} settings tried, seed {search.seed}. No test image was looked at.",
        "# Reasons compare the best short trials with either value; other values differed between them.",
        f"extends: {name}",
        f"description: {json.dumps(f'{space.start.config.description or name}, tuned')}",
        "",
    ]
    order = list(ExperimentConfig.model_fields)
    sections = {key: edit[key] for key in sorted(edit, key=order.index)}
    return "\n".join([*head, *_lines(sections, reasons, ())]) + "\n"


def _edit(search: Search, best: Candidate, rung: int) -> Edit:
    """The winner's edit, with as many epochs as cost what the experiment's cost."""
    start = search.space.start.config
    edit = merge({"distil": None} if start.distil else {}, best.edit)
    factor = _cost(search, best, rung)
    if 1 / UNITS_ALIKE < factor < UNITS_ALIKE:
        return edit
    epochs = max(1, round(start.schedule.epochs / factor))
    warmup = float(f"{start.schedule.warmup_epochs * epochs / start.schedule.epochs:.3g}")
    return merge(edit, {"schedule": {"epochs": epochs, "warmup_epochs": min(warmup, epochs)}})


def _cost(search: Search, best: Candidate, rung: int) -> float:
    """How many times as much an image costs the winner's method as the experiment's; see `Method.units`."""
    ours, theirs = (candidate.results[rung].units_per_image for candidate in (search.start, best))
    return theirs / ours if ours and theirs else 1.0


def _reasons(search: Search, best: Candidate, rung: int) -> dict[tuple[str, ...], str]:
    """{place of a value: why it stands there}."""
    reasons = {}
    for axis in search.space.changed(best.values):
        edit = axis.edit(best.values[axis.name])
        reasons[_first_place(edit)] = _reason(search, axis, best)
    reasons["schedule", "epochs"] = (
        f"as much computing as {search.space.start.config.schedule.epochs} epochs of {search.space.start.name}: an "
        f"image costs {_cost(search, best, rung):.2g} times as much"
    )
    reasons["distil",] = "params.yaml does not list this one under distil"
    return reasons


def _reason(search: Search, axis: Axis, best: Candidate) -> str:
    """How trials with this value did against those with the experiment's own, in the rung that all went through."""
    new, old = best.values[axis.name], axis.start
    if new == old:
        return "as before"
    ours, theirs = (
        [c.score(0) for c in search.candidates if 0 in c.results and c.values[axis.name] == value]
        for value in (new, old)
    )
    figure, gain = _figure(best, 0), max(ours) - max(theirs)
    if gain == math.inf:
        return f"all trials with {old} failed ({len(theirs)}), {new} gave {max(ours):.2g} {figure} at best"
    if gain > 0:
        return f"{new} beat {old} by {gain:.2g} {figure} (best of {len(ours)} and of {len(theirs)})"
    return f"part of the best setting, though trials with {old} did as well (best of {len(ours)} and of {len(theirs)})"


def _lines(edit: Mapping[str, Any], reasons: Mapping[tuple[str, ...], str], at: tuple[str, ...]) -> Iterator[str]:
    """YAML, two spaces a level, each value with its reason behind it; lists of parts one part a line."""
    indent = "  " * len(at)
    for key, value in edit.items():
        place = (*at, key)
        why = f"  # {reasons[place]}" if place in reasons else ""
        if isinstance(value, Mapping):
            yield f"{indent}{key}:{why}"
            yield from _lines(value, reasons, place)
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            yield f"{indent}{key}:{why}"
            yield from (f"{indent}  - {flow(item)}" for item in value)
        else:
            yield f"{indent}{key}: {flow(value)}{why}"


def _first_place(edit: Mapping[str, Any]) -> tuple[str, ...]:
    """Path of the first value that is not a section."""
    key, value = next(iter(edit.items()))
    return (key, *_first_place(value)) if isinstance(value, Mapping) else (key,)


def _better(search: Search, best: Candidate, rung: int, listed: bool) -> list[str]:
    space = search.space
    name, result = space.start.name, best.results[rung]
    return [
        f"{words(space, best.values)}: {result.score:.3f} {_figure(best, rung)} after {search.rungs[rung]:,} images, "
        f"{name} as it is: {_shown(search.start, rung)}.",
        f"wrote {_file(name)}" + (f" and added {name}-tuned to experiments in params.yaml" if listed else ""),
        f"next: contrast run {name}-tuned",
    ]


def _nothing_better(search: Search) -> str:
    if len(search.tried) < 2:
        return (
            f"The time was enough for {search.space.start.name} alone, so there is nothing to compare; give more "
            f"--minutes, or smaller trials with --images below {search.rungs[0]}. Nothing was written."
        )
    return (
        f"None of {len(search.tried) - 1} other settings beat {search.space.start.name} as it is by more than chance "
        f"would. Nothing was written."
    )


def _written(summary: Path) -> list[str]:
    """sha256 of every text that searches gave the file."""
    return list(read_json(summary)["written"]) if summary.is_file() else []


def _summary(
    search: Search, found: tuple[Candidate, int] | None, file: str | None, written: list[str]
) -> dict[str, Any]:
    chosen = None
    if found is not None:
        best, rung = found
        chosen = {
            "number": best.number,
            "images": search.rungs[rung],
            "score": best.score(rung),
            "start": search.start.results[rung].score,
        }
    return {
        "experiment": search.space.start.name,
        "seed": search.seed,
        "images": list(search.rungs),
        "winner": chosen,
        "file": file,
        "written": list(dict.fromkeys(written)),
        "candidates": [
            {
                "number": candidate.number,
                "setting": words(search.space, candidate.values),
                "results": [asdict(result) for result in candidate.results.values()],
            }
            for candidate in search.tried
        ],
    }


def _figure(candidate: Candidate, rung: int) -> str:
    return FIGURES[str(candidate.results[rung].figure)]


def _shown(candidate: Candidate, rung: int) -> str:
    score = candidate.results[rung].score
    return "a failure" if score is None else f"{score:.3f}"
