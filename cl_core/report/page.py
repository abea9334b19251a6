"""One self-contained HTML page over all experiments: `write_report` reads `artifacts/`, writes a file, fetches nothing.

The page has no script, and its content security policy forbids the browser every request. Texts from users (names,
classes, options) are escaped by the template; only SVG made by `figures` and our own style sheet go in as they are.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from cl_core.config import ClaimConfig
from cl_core.data.files import write_bytes
from cl_core.data.store import Store
from cl_core.report.budgets import budget_title
from cl_core.report.claims import judge
from cl_core.report.collect import Experiment, collect, read_panels, read_resolved, read_statistics
from cl_core.report.diagnoses import diagnoses
from cl_core.report.distillation import distillations
from cl_core.report.few_labels import HEADINGS
from cl_core.report.figures import swatch
from cl_core.report.groups import MINUS, NONE, Group, group_seeds, percent, points, share_name
from cl_core.report.health import ACCURACIES, DISAGREEMENT, FEWEST, FIGURES, health, in_a_sentence, what_labels_tell
from cl_core.report.judgement import Judgement, judgement
from cl_core.report.leaderboard import leaderboards
from cl_core.report.leakage import Leakage, SecondLook, leakage, second_look
from cl_core.report.plots import (
    Plot,
    curve_plots,
    label_limits,
    label_plot,
    overview_plot,
    profiles,
)
from cl_core.report.records import ViewStatistics
from cl_core.report.results import FURTHER, Table, further, gaps, tables
from cl_core.report.retrieval import Retrieval, retrieve
from cl_core.report.timeline import timeline


@dataclass(frozen=True)
class Dataset:
    """What the page says about the images. warnings: sentences."""

    facts: list[tuple[str, str]]
    warnings: list[str]
    splits: dict[str, Mapping[str, Any]]
    classes: list[str]
    source: Mapping[str, Any]
    digest: str


@dataclass(frozen=True)
class Preview:
    """Views of a group: preview.png as a data URI, "" where there is none; the operations of each chain; statistics."""

    image: str
    chains: dict[str, str]
    statistics: ViewStatistics | None


def write_report(
    artifacts: Path,
    out: Path,
    *,
    experiments: Sequence[str],
    title: str = "contrast",
    claims: Sequence[ClaimConfig] = (),
    timing: bool = True,
) -> Path:
    """Write the page to `out` and return its path.

    artifacts: the folder with dataset/, resolved/ and runs/. experiments: names, in the order of the page. claims: what
    to hold the results against.
    timing: state training times, which differ between two runs of the same input; without them the page has the same
    bytes for the same inputs.
    Raises DataError for a missing dataset and for a damaged file, naming what makes it again.
    """
    store = Store.open(artifacts / "dataset")
    collected = collect(artifacts, experiments, timing=timing)
    groups = group_seeds(collected)
    shown = tables(groups)
    judged = [judgement(group) for group in groups]
    page = _environment().get_template("template.html")
    leaks = leakage(store)
    subset = next((e.config["subset"] for e in collected if e.config.get("subset")), None)
    dataset = _dataset(store, subset, leaks)
    html = page.render(
        title=title,
        css=_resource("style.css"),
        experiments=collected,
        groups=groups,
        dataset=dataset,
        headline=_headline(dataset, collected, judged, shown),
        judged=judged,
        caveats=[(experiment.name, line) for experiment in collected for line in _caveats(experiment, dataset)],
        tables=[(table, overview_plot(table, f"overview-{k}")) for k, table in enumerate(shown)],
        boards=[(board, timeline(board, f"timeline-{k}")) for k, board in enumerate(leaderboards(shown))],
        outcomes=judge(claims, groups),
        profiles=profiles(groups),
        curves=curve_plots(groups),
        previews={group.index: _preview(group.first) for group in groups},
        retrievals={group.index: _retrieval(store, group.first) for group in groups},
        leakage=leaks,
        second_looks=_second_looks(store, groups),
        label_plots=_label_plots(groups),
        distillations=distillations(groups),
        panels=_panels(groups),
        health=health(groups),
        diagnosed=diagnoses(groups),
        ingest=read_resolved(artifacts / "resolved" / "ingest.json"),
        timing=timing,
    )
    write_bytes(out, html.encode())
    return out


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_resource),
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "share": share_name,
        "size": _size,
        "duration": _duration,
        "thousands": lambda number: f"{number:,.0f}",
        "data_uri": data_uri,
        "pretty": lambda value: json.dumps(value, indent=2, default=str, ensure_ascii=False),
        "swatch": swatch,
        "gaps": gaps,
        "further": further,
        "budget": budget_title,
        "code": _with_code,
        "significant": lambda figures: [(name, f"{value:.3g}") for name, value in figures.items()],
        "breakable": lambda text: Markup("_<wbr>").join(text.split("_")),
        "correlation": lambda value: f"{value:.2f}".replace("-", MINUS) if math.isfinite(value) else NONE,
        "figures": lambda values: ", ".join(f"{value:.2f}" for value in values),
    }
    environment.globals |= {
        "none_mark": NONE,
        "further_heads": tuple(FURTHER.values()),
        "references": HEADINGS,
        "health_figures": FIGURES,
        "fewest": FEWEST,
        "accuracies": ACCURACIES,
        "disagreement": DISAGREEMENT,
        "what_labels_tell": what_labels_tell,
    }
    return environment


def _with_code(text: str) -> Markup:
    """Escape a sentence and set what it has in backticks as code."""
    pieces = text.split("`")
    marked = [Markup("<code>{}</code>").format(piece) if k % 2 else escape(piece) for k, piece in enumerate(pieces)]
    return Markup("").join(marked)


def _resource(name: str) -> str:
    return resources.files("cl_core.report").joinpath(name).read_text(encoding="utf-8")


def data_uri(png: bytes) -> str:
    """PNG bytes as the source of an <img>."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _dataset(store: Store, subset: int | None, leaks: Leakage) -> Dataset:
    splits = {name: split for name, split in store.manifest["splits"].items() if split["count"]}
    quarantined = store.manifest["quarantined"]
    trained = splits["train"]["count"] if "train" in splits else 0
    used = [("of them used", f"{subset:,}")] if subset is not None and subset < trained else []
    facts = [
        ("images", f"{sum(split['count'] for split in splits.values()):,}"),
        ("classes", f"{len(store.classes):,}" if store.classes else "none"),
        ("for training", f"{trained:,}"),
        *used,
        *((name, f"{split['count']:,}") for name, split in splits.items() if name != "train"),
        ("size", f"{store.image_size} \N{MULTIPLICATION SIGN} {store.image_size} px"),
        ("quarantined", f"{quarantined:,}"),
        ("near duplicates across splits", leaks.across),
    ]
    return Dataset(
        facts=facts,
        warnings=list(_dataset_warnings(store, leaks, quarantined)),
        splits=splits,
        classes=store.classes,
        source=store.manifest["source"],
        digest=store.digest,
    )


def _dataset_warnings(store: Store, leaks: Leakage, quarantined: int) -> Iterator[str]:
    if leaks.warning:
        yield leaks.warning
    if quarantined:
        files = "1 file was" if quarantined == 1 else f"{quarantined:,} files were"
        yield f"{files} left out as unreadable; `artifacts/dataset/quarantine.csv` gives the reason for each."
    if not store.has_labels:
        yield "The training images have no labels of two classes, so representations were trained but not judged."


def _headline(
    dataset: Dataset, collected: Sequence[Experiment], judged: Sequence[Judgement], shown: Sequence[Table]
) -> list[str]:
    """The labels saved and what was gained or lost first, where anything was judged, then what was done."""
    groups = [found.group for found in judged]
    first = _outcome(judged, shown) if shown else [line for line in [in_a_sentence(groups)] if line]
    return [*first, _overview(dataset, collected, groups, judged=bool(shown))]


def _outcome(judged: Sequence[Judgement], shown: Sequence[Table]) -> list[str]:
    """The judgement of the highest linear probe of a single table, and the names of those that have lost."""
    rivals = [found for found in judged if not found.group.first.facts.yardstick]
    ranked = [found for found in rivals if found.group.linear]
    if len(shown) != 1 or not ranked:
        return []
    best = max(ranked, key=lambda found: found.group.linear.mean if found.group.linear else 0.0)
    saved = [best.saved] if best.saved else []
    if len(ranked) == 1 or best.group.linear is None:
        return [*saved, f"{best.group.label} {best.features.text}"]
    lost = [found.group.label for found in rivals if found.features.is_loss and found is not best]
    highest = f"Highest in the linear probe: {best.group.label} with {percent(best.group.linear.mean)} %"
    lines = [*saved, f"{highest}. It {best.features.text}"]
    return lines + ([f"Worse than the untrained encoder: {', '.join(lost)}"] if lost else [])


def _overview(dataset: Dataset, collected: Sequence[Experiment], groups: Sequence[Group], *, judged: bool) -> str:
    members = [experiment for group in groups for experiment in group.experiments]
    trained, total = (len({e.file or e.name for e in experiments}) for experiments in (members, collected))
    noun = "experiment" if total == 1 else "experiments"
    if len(collected) > total:
        noun += f" in {_of(len(members), len(collected))} runs"
    facts = dict(dataset.facts)
    classes = f" in {facts['classes']} classes" if dataset.classes else ""
    how = " and judged by linear probe, nearest neighbours and fine-tuning on few labels" if judged else ""
    source = dataset.source.get("name", "unnamed images")
    return f"{_of(trained, total)} {noun} on {source} ({facts['images']} images{classes}): encoders pretrained{how}"


def _of(some: int, whole: int) -> str:
    """ "3", or "2 of 3"."""
    return f"{some}" if some == whole else f"{some} of {whole}"


def _caveats(experiment: Experiment, dataset: Dataset) -> list[str]:
    trained_on = experiment.card.get("dataset", dataset.digest)
    if trained_on == dataset.digest:
        return gaps(experiment)
    return [*gaps(experiment), f"pretrained on another state of the dataset; run `{experiment.command}` to catch up"]


def _preview(experiment: Experiment) -> Preview:
    folder = experiment.folder / "views"
    image = folder / "preview.png"
    chains = experiment.config.get("chains") or {}
    return Preview(
        image=data_uri(image.read_bytes()) if image.is_file() else "",
        chains={name: ", ".join(str(spec["name"]) for spec in chain) for name, chain in chains.items()},
        statistics=read_statistics(folder / "statistics.json", f"dvc repro views@{experiment.name}"),
    )


def _retrieval(store: Store, experiment: Experiment) -> Retrieval:
    return retrieve(store, experiment.folder / "embed", experiment.command)


def _second_looks(store: Store, groups: Sequence[Group]) -> list[tuple[Group, SecondLook]]:
    looks = [(g, second_look(store, g.first.folder / "embed", g.first.command)) for g in groups]
    return [(group, found) for group, found in looks if found is not None]


def _label_plots(groups: Sequence[Group]) -> list[Plot]:
    tuned = [group for group in groups if group.budgets]
    limits = label_limits(tuned)
    return [label_plot(group, limits) for group in tuned]


def _panels(groups: Sequence[Group]) -> list[tuple[Group, list[tuple[str, str, str]]]]:
    found = []
    for group in groups:
        folder = group.first.folder / "pretrain" / "panels"
        panels = read_panels(folder, f"dvc repro pretrain@{group.first.name}")
        if panels:
            images = [(p.title, p.caption, data_uri((folder / p.file).read_bytes())) for p in panels]
            found.append((group, images))
    return found


def _size(count: int) -> str:
    power = min(int(math.log(count, 1000)), 3) if count >= 1000 else 0
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB')[power]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
