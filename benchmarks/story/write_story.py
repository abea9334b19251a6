"""Write benchmarks/STORY.md and its figure from the artifacts of this project, after `contrast run` has finished.

    python benchmarks/story/write_story.py

Everything but the caveats comes from files that the stages wrote; the caveats are CAVEATS.md, kept by hand. The machine
is the one this runs on, which has to be the one that trained.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_core.config import ClaimConfig
from cl_core.data.files import read_json, write_bytes
from cl_core.data.store import Store
from cl_core.errors import DataError
from cl_core.report.claims import Outcome, judge
from cl_core.report.collect import Experiment, collect
from cl_core.report.figures import standalone
from cl_core.report.groups import NONE, Measured, group_seeds, percent, points
from cl_core.report.leaderboard import Entry, Leaderboard, leaderboards
from cl_core.report.results import gaps, tables
from cl_core.report.timeline import timeline
from cl_core.training.precision import cpu_model

HERE = Path(__file__).parent
FIGURE = "accuracy-by-year.svg"
INTRODUCTION = """\
One experiment per method, all on the same images with the same budget, judged by the same protocols: does the order in
which the field went from pretext tasks to contrastive learning and beyond show at the size of a laptop? Written by
`benchmarks/story/write_story.py`; do not edit, but `benchmarks/story/CAVEATS.md`."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that the page tells. config: of the report, of `artifacts/resolved/report.json`."""

    config: Mapping[str, Any]
    store: Store
    experiments: list[Experiment]
    boards: list[Leaderboard]
    outcomes: list[Outcome]


def read(project: Path) -> Story:
    """Read a project's artifacts. Raises DataError where nothing has been judged or a file is damaged."""
    artifacts = project / "artifacts"
    path = artifacts / "resolved" / "report.json"
    if not path.is_file():
        raise DataError(f"there is no {path}; run `contrast run --project {project}` first")
    config = read_json(path)["config"]
    experiments = collect(artifacts, list(config["experiments"]))
    groups = group_seeds(experiments)
    boards = leaderboards(tables(groups))
    if not boards:
        raise DataError(f"{artifacts} has results of fewer than two methods; run `contrast run --project {project}`")
    claims = [ClaimConfig.model_validate(claim) for claim in config["claims"]]
    return Story(
        config=config,
        store=Store.open(artifacts / "dataset"),
        experiments=experiments,
        boards=boards,
        outcomes=judge(claims, groups),
    )


def page(story: Story, caveats: str, commit: str, figure: str | None) -> str:
    """The page as markdown. figure: path of the picture from where the page lies."""
    parts = [f"# {story.config['title']}", INTRODUCTION, "## Protocol", "\n".join(_protocol(story, commit))]
    parts += ["## Leaderboard", _LEGEND]
    parts += ["\n".join(_table(board)) for board in story.boards]
    if figure:
        parts.append(f"![Linear probe accuracy of every method against its year of publication]({figure})")
    parts += ["## Claims", _CLAIMS_LEGEND, "\n".join(_claims(story.outcomes))]
    missing = [f"- {e.name}: {line}" for e in story.experiments for line in gaps(e)]
    parts += ["## Not measured", "\n".join(missing)] if missing else []
    return "\n\n".join([*parts, "## Caveats", caveats.strip()]) + "\n"


_LEGEND = """\
Top-1 in percent on the test images; linear with the 95 % bootstrap interval of one run, or the standard deviation over
seeds. Gain: over the same encoder with the same input before training. Units: passes of the encoder forward and
backward over one image. *Italic*: yardsticks, which use labels or are not trained."""
_CLAIMS_LEGEND = """\
A claim says that the first experiment has the higher figure. It holds, or does not, where p < 0.05, or, for a figure
logged in training by one run each, by the sign alone."""


def _protocol(story: Story, commit: str) -> Iterator[str]:
    first = next(e for e in story.experiments if "pretrain" in e.resolved)
    splits = {name: split["count"] for name, split in story.store.manifest["splits"].items()}
    used = first.config.get("subset") or splits["train"]
    seeds = sorted({experiment.seed for experiment in story.experiments if experiment.seed is not None})
    engine = first.resolved["pretrain"].engine
    yield (
        f"- images: {used:,} for training (of {splits['train']:,}), {splits['validation']:,} for validation, "
        f"{splits['test']:,} for testing, {story.store.image_size} px, {len(story.store.classes)} classes"
    )
    yield f"- protocols: {', '.join(story.boards[0].protocols)}; the stage is chosen on validation, test is read once"
    if story.boards[0].budgets:
        budgets = "; ".join(f"{budget.title}: {budget.labels}" for budget in story.boards[0].budgets)
        yield f"- few labels: {budgets}; the best use, frozen or fine-tuned, as selection picked it"
    yield f"- seeds: {', '.join(map(str, seeds))}"
    yield f"- machine: {cpu_model()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    yield f"- libraries: {', '.join(f'{name} {version}' for name, version in engine.items() if name != 'source')}"
    yield f"- code: commit {commit}"
    yield "- again: `CL_CIFAR10=/path contrast run --project benchmarks/story`"


def _table(board: Leaderboard) -> Iterator[str]:
    tuned = [f"labels: {budget.title}" for budget in board.budgets]
    heads = ["experiment", "year", "family", "units", "seconds", "best stage", "linear", "gain", "kNN", *tuned]
    yield from _rows(heads, [_cells(entry) for entry in board.entries])


def _cells(entry: Entry) -> list[str]:
    facts, name = entry.facts, entry.group.label
    label = f"{name}, {entry.group.seeds}" if entry.group.seeds else name
    return [
        f"*{label}*" if facts.yardstick else label,
        str(facts.year or NONE),
        facts.family or NONE,
        NONE if facts.units is None else f"{facts.units:,.0f}",
        NONE if entry.seconds is None else f"{entry.seconds:,.0f}",
        entry.group.best_stage,
        NONE if entry.linear is None else str(entry.linear),
        NONE if entry.gain is None else points(entry.gain.mean),
        *(_mean(value) for value in (entry.knn, *entry.few_labels)),
    ]


def _mean(value: Measured | None) -> str:
    return NONE if value is None else percent(value.mean)


def _claims(outcomes: Sequence[Outcome]) -> Iterator[str]:
    if not outcomes:
        yield "None are listed in params.yaml."
        return
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in _STATES}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) + ".\n"
    rows = [
        [
            outcome.claim.claim + (f" ({outcome.claim.source})" if outcome.claim.source else ""),
            f"**{outcome.state}**",
            outcome.shown_difference or NONE,
            outcome.shown_p or NONE,
            f"{outcome.claim.better} over {outcome.claim.worse}, {outcome.claim.figure}; {outcome.how}",
        ]
        for outcome in outcomes
    ]
    yield from _rows(["claim", "outcome", "difference", "p", "compared"], rows)


_STATES = ("holds", "does not hold", "not told apart", "not checked")


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A markdown table; bars in cells would end them."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def _commit(project: Path) -> str:
    """The commit of the code, marked where tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=7", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (commit or "unknown") + (" with uncommitted changes" if changed else "")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write page and figure; returns the path of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--project", type=Path, default=HERE, help="the project whose artifacts are read")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "STORY.md", help="the page; the figure lies beside CAVEATS.md"
    )
    options = parser.parse_args(arguments)
    story = read(options.project)
    plot = timeline(story.boards[0], "story", legend_inside=True)
    figure = None
    if plot:
        write_bytes(options.project / FIGURE, standalone(plot.svg).encode())
        figure = os.path.relpath(options.project / FIGURE, options.out.parent)
    caveats = (options.project / "CAVEATS.md").read_text()
    write_bytes(options.out, page(story, caveats, _commit(options.project), figure).encode())
    return options.out


if __name__ == "__main__":
    print(f"wrote {main()}")
