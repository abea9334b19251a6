"""The panels of the report: which figures of which group go into which plot, and how each is described in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cl_core.report.budgets import OURS, YARDSTICKS, budget_title
from cl_core.report.collect import Experiment
from cl_core.report.figures import (
    SERIES,
    Axis,
    Bar,
    Level,
    Line,
    line_panel,
    overview,
    swatch,
    thinned,
    yardstick_swatch,
)
from cl_core.report.groups import NONE, Group, Measured, budget_names, percent
from cl_core.report.results import Table

#: column of curves.csv -> heading of its panel; these are shown first, in this order.
HEADINGS = {
    "loss": "Loss",
    "knn_top1": "Online kNN, top-1 in %",
    "self_match": "Views that find each other, in %",
    "rankme": "Rank of the features (RankMe)",
    "feature_std": "Embedding spread",
    "effective_rank": "Embedding rank",
}
#: the same for panels that come later
LATER_HEADINGS = {
    "alpha_req": "Decay of the spectrum (alpha-ReQ)",
    "alignment": "Distance of two views (alignment)",
    "uniformity": "Crowding on the sphere (uniformity)",
}
#: of the online evaluation: the first point, from before training, is drawn as a line across
ONLINE = ("knn_top1", "self_match", "rankme", *LATER_HEADINGS)
TICKS = 6  #: more category labels than this do not fit under a panel


@dataclass(frozen=True)
class Plot:
    """A panel with its heading and legend: [(swatch as SVG, name)]."""

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Profile:
    """Accuracies along the encoder: a plot, and the same as a table of [(label, test top-1 per stage)].

    yardsticks: the same of untrained encoders.
    """

    plot: Plot
    stages: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    yardsticks: tuple[tuple[str, tuple[float, ...]], ...]


def overview_plot(table: Table, name: str) -> Plot | None:
    """Linear probe of every group of a table with its yardsticks; None where nothing was probed."""
    bars = [_bar(group, group.linear) for group in table.groups if group.linear]
    if not bars:
        return None
    alt = "Linear probe, top-1: " + "; ".join(f"{bar.label} {percent(bar.value)} %{_beside(bar)}" for bar in bars)
    yardsticks = dict.fromkeys(name for bar in bars for name in bar.yardsticks)
    legend = tuple((yardstick_swatch(name), name) for name in yardsticks)
    return Plot("Linear probe against the yardsticks", overview(name, alt, bars, "test top-1 in %"), legend)


def profiles(groups: Iterable[Group]) -> list[Profile]:
    """Test accuracy per encoder stage; groups whose encoders have the same stages share a panel."""
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if group.first.linear.result:
            families.setdefault(tuple(group.first.linear.result.stages), []).append(group)
    panels = [
        (stages, members[k : k + len(SERIES)])
        for stages, members in families.items()
        for k in range(0, len(members), len(SERIES))
    ]
    return [_profile(f"profile-{k}", stages, members) for k, (stages, members) in enumerate(panels)]


def curve_plots(groups: Sequence[Group]) -> dict[int, tuple[list[Plot], list[Plot]]]:
    """Per group index: the panels of curves.csv, first those of HEADINGS, then the method's own and the learning rate.

    Online kNN shares its axis over all groups, because it alone compares between methods.
    """
    shared = _shared_limits(groups, "knn_top1")
    return {group.index: _group_curves(group, shared) for group in groups if group.first.curves}


def label_plot(group: Group, limits: tuple[float, float]) -> Plot:
    """Accuracy against the number of labels: frozen, fine-tuned, and the yardsticks on the same labels."""
    counts = {name: float(group.at(name)[0].labels_trained) for name in group.budgets}
    lines, legend, words = [], [], []
    for competitor in ("frozen", "fine_tuned"):
        hollow = competitor == "fine_tuned"
        known = [(counts[name], m) for name in counts if (m := group.few_labels(competitor, name))]
        if known:
            lines.append(_label_line(group, known, hollow=hollow))
            legend.append((swatch(group.index, hollow=hollow), OURS[competitor]))
            words.append(f"{OURS[competitor]}: {_in_words(known)}")
    for competitor, shown in YARDSTICKS.items():
        known = [(counts[name], m) for name in counts if (m := group.few_labels(competitor, name))]
        if known:
            lines.insert(0, Line([x for x, _ in known], [m.mean for _, m in known], yardstick=shown))
            legend.append((yardstick_swatch(shown, lined=True), shown))
    svg = line_panel(
        f"labels-{group.index}",
        f"Accuracy of {group.label} against labels. {'; '.join(words)}",
        lines,
        x=Axis("label budget, and labels trained on", ticks=_label_ticks(counts), log=len(set(counts.values())) > 1),
        y=Axis("test top-1 in %", limits, percent=True),
    )
    return Plot(group.label, svg, tuple(legend))


def _label_ticks(counts: Mapping[str, float]) -> dict[float, str]:
    """{labels: "4\\n40"}: budgets that select as many stand together."""
    ticks: dict[float, list[str]] = {}
    for name, count in counts.items():
        ticks.setdefault(count, []).append(budget_title(name).removesuffix(" per class"))
    return {count: f"{', '.join(names)}\n{count:,.0f}" for count, names in ticks.items()}


def _in_words(known: Sequence[tuple[float, Measured]]) -> str:
    return ", ".join(f"{percent(m.mean)} % with {count:,.0f} labels" for count, m in known)


def label_limits(groups: Sequence[Group]) -> tuple[float, float]:
    """One axis for the label curves of all groups."""
    shown = ("frozen", "fine_tuned", *YARDSTICKS)
    found = [
        m
        for group in groups
        for name in budget_names([group])
        for competitor in shown
        if (m := group.few_labels(competitor, name))
    ]
    return padded([value for m in found for value in (m.mean, *_ends(m))])


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Limits a little outside the values; (0, 1) where there are none."""
    if not values:
        return 0.0, 1.0
    margin = 0.08 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


def _bar(group: Group, spread: Measured) -> Bar:
    names = {"random init": "random_init", "raw pixels": "raw_pixels"}
    yardsticks = {shown: m.mean for shown, name in names.items() if (m := group.baseline(name))}
    low, high = _ends(spread) or (spread.mean, spread.mean)
    return Bar(short(group.label), group.index, spread.mean, low, high, yardsticks)


def _beside(bar: Bar) -> str:
    beside = ", ".join(f"{name} {percent(value)} %" for name, value in bar.yardsticks.items())
    return f" ({beside})" if beside else ""


def short(text: str, length: int = 40) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip(", ") + "\N{HORIZONTAL ELLIPSIS}"


def _profile(name: str, stages: tuple[str, ...], groups: list[Group]) -> Profile:
    step = -(-len(stages) // TICKS)
    ticks = {float(k): stage if k % step == 0 else "" for k, stage in enumerate(stages)}
    rows = tuple((group.label, _stage_accuracies(group, stages)) for group in groups)
    words = "; ".join(
        f"{label}: " + ", ".join(f"{stage} {percent(v)} %" for stage, v in zip(stages, values, strict=True))
        for label, values in rows
    )
    svg = line_panel(
        name,
        f"Linear probe per encoder stage. {words}",
        [Line(range(len(stages)), row[1], group.index, markers=True) for group, row in zip(groups, rows, strict=True)],
        x=Axis("", (-0.25, len(stages) - 0.75), ticks=ticks),
        y=Axis("test top-1 in %", percent=True),
        levels=_random_init_levels(groups),
    )
    legend = tuple((swatch(group.index), group.label) for group in groups)
    return Profile(Plot("", svg, legend), stages, rows, _untrained(groups, stages))


def _stage_accuracies(group: Group, stages: tuple[str, ...]) -> tuple[float, ...]:
    """Test top-1 of every stage, mean over seeds."""
    results = [e.linear.result for e in group.experiments if e.linear.result]
    return tuple(statistics.fmean(r.stages[stage].test_top1 for r in results) for stage in stages)


def _untrained(groups: list[Group], stages: tuple[str, ...]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Random init per stage, mean over seeds, once per encoder; equal ones are merged."""
    found: dict[tuple[float, ...], list[Group]] = {}
    for group in groups:
        known = [e.linear.result.baselines.get("random_init") for e in group.experiments if e.linear.result]
        probes = [baseline.stages for baseline in known if baseline and set(stages) <= set(baseline.stages)]
        if probes:
            values = tuple(round(statistics.fmean(p[stage].test_top1 for p in probes), 6) for stage in stages)
            found.setdefault(values, []).append(group)
    names = _names([(owners[0].encoder, owners) for owners in found.values()])
    return tuple((f"random init, {name}", values) for name, values in zip(names, found, strict=True))


def _names(candidates: list[tuple[str, list[Group]]]) -> list[str]:
    """The first of each pair; with the groups it stands for, where several share it (other seeds, for example)."""
    taken = [name for name, _ in candidates]
    return [
        name if taken.count(name) == 1 else f"{name}; for {', '.join(group.label for group in owners)}"
        for name, owners in candidates
    ]


def _random_init_levels(groups: list[Group]) -> list[Level]:
    values: dict[float, list[Group]] = {}
    for group in groups:
        if baseline := group.baseline("random_init"):
            values.setdefault(round(baseline.mean, 6), []).append(group)
    names = _names([(encoder.name if (encoder := o[0].first.spec("encoder")) else NONE, o) for o in values.values()])
    texts = [f" of {name}" for name in names] if len(names) > 1 else [""]
    return [Level(value, f"random init{text}, best stage") for value, text in zip(values, texts, strict=False)]


def _label_line(group: Group, known: list[tuple[float, Measured]], *, hollow: bool = False) -> Line:
    ends = [_ends(m) for _, m in known]
    whole = all(ends)
    return Line(
        [x for x, _ in known],
        [m.mean for _, m in known],
        group.index,
        markers=True,
        hollow=hollow,
        low=[end[0] for end in ends] if whole else (),
        high=[end[1] for end in ends] if whole else (),
    )


def _ends(measured: Measured) -> tuple[float, ...]:
    """The interval of one run, or one standard deviation around the mean of several; () where neither is known."""
    if len(measured.values) > 1:
        deviation = statistics.stdev(measured.values)
        return measured.mean - deviation, measured.mean + deviation
    return measured.interval or ()


def _shared_limits(groups: Iterable[Group], column: str) -> tuple[float, float]:
    runs = [e for group in groups for e in group.experiments]
    return padded([v for run in runs for v in run.curves.get(column, []) if v is not None])


def _group_curves(group: Group, knn_limits: tuple[float, float]) -> tuple[list[Plot], list[Plot]]:
    columns = [name for name in group.first.curves if name not in ("step", "epoch")]
    known = [name for name in columns if any(v is not None for v in group.first.curves[name])]
    main = [name for name in HEADINGS if name in known]
    limits: Mapping[str, tuple[float, float]] = {"knn_top1": knn_limits}
    plots = {name: _curve(group, name, limits.get(name)) for name in known}
    return [plots[name] for name in main], [plots[name] for name in known if name not in main]


def _curve(group: Group, column: str, limits: tuple[float, float] | None) -> Plot:
    lines = [_run_line(run, column, group.index) for run in group.experiments if column in run.curves]
    values = [v for line in lines for v in line.y if v is not None]
    share = column.endswith(("top1", "accuracy", "self_match")) and all(0 <= v <= 1 for v in values)
    trivial = (group.first.card.get("trivial") or {}).get(column)
    levels = [] if trivial is None else [Level(float(trivial), "constant predictor")]
    levels += _untrained_level(group, column)
    if column in ("feature_std", "effective_rank"):
        limits = (0.0, 1.08 * max([*values, *(level.value for level in levels)]) or 1.0)
    heading = (HEADINGS | LATER_HEADINGS).get(column, column.replace("_", " "))
    alt = f"{heading} of {group.label}: from {_figure(values[0], share)} to {_figure(values[-1], share)}"
    alt += "".join(f"; {level.label}: {_figure(level.value, share)}" for level in levels)
    name = f"curve-{group.index}-{list(group.first.curves).index(column)}"
    svg = line_panel(
        name, alt, lines, x=Axis("step", whole=True), y=Axis("", limits, percent=share), levels=levels, small=True
    )
    return Plot(heading, svg)


def _untrained_level(group: Group, column: str) -> list[Level]:
    """The online figure from before the first step, mean over seeds."""
    begun = [run.curves for run in group.experiments if run.curves.get("step", [None])[:1] == [0.0]]
    values = [value for curves in begun if (value := curves.get(column, [None])[0]) is not None]
    return [Level(statistics.fmean(values), "untrained")] if values and column in ONLINE else []


def _run_line(run: Experiment, column: str, series: int) -> Line:
    y = run.curves[column]
    x = [float(k) if v is None else v for k, v in enumerate(run.curves.get("step", range(len(y))))]
    thin_x, thin_y = thinned(x, y)
    return Line(thin_x, thin_y, series, markers=len(thin_y) <= 12)


def _figure(value: float, share: bool) -> str:
    return f"{percent(value)} %" if share else f"{value:.3g}"
