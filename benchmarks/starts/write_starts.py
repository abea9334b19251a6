"""Write benchmarks/STARTS.md from results.jsonl: what `contrast init` writes, and the grid that it was chosen from.

    python benchmarks/starts/write_starts.py

Every figure comes from the file; the text around the tables is PROTOCOL.md and CAVEATS.md beside this script.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
PAGE = HERE.parent / "STARTS.md"
SETS = ("digits", "hands", "cells", "letters", "cifar-1000", "cifar-3000", "cifar-10000")

Result = dict[str, Any]


def read(path: Path = RESULTS) -> list[Result]:
    """One result per line, of every cell that was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    texts = [(HERE / name).read_text() for name in ("PROTOCOL.md", "CAVEATS.md")]
    parts = [texts[0], *_starts(results), *_changes(results), texts[1]]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _starts(results: Sequence[Result]) -> Iterator[str]:
    yield "## 1. What `contrast init` writes, against the untrained encoder"
    head = ["set", "row", "images seen", "updates", "linear", "untrained, best size", "gain", "kNN", "untrained"]
    head += ["4 labels a class", "untrained", "raw pixels", "seeds"]
    rows = [_start(results, name, found) for name in SETS if (found := _of(results, name, "init"))]
    yield _table(head, rows)


def _start(results: Sequence[Result], name: str, found: Sequence[Result]) -> list[str]:
    cell, linear, knn = found[0]["cell"], _values(found, "linear"), _values(found, "knn")
    size, bare = max(_untrained(results, name, "linear").items(), key=lambda item: item[1])
    few = [result["few_labels"]["4"] for result in _of(results, name, "untrained")]
    return [
        name,
        cell["row"].removeprefix("init: "),
        f"{cell['images']:,}",
        f"{found[0]['updates']:,}",
        _spread(linear),
        f"{_percent(bare)} ({size} px)",
        f"**{100 * (_mean(linear) - bare):+.1f}**",
        _spread(knn),
        _percent(max(_untrained(results, name, "knn").values())),
        _spread([result["few_labels"]["4"] for result in found]),
        _percent(max(few)) if few else "-",
        _percent(max(result["pixels"] for result in results if result["cell"]["set"] == name)),
        ", ".join(str(result["cell"]["seed"]) for result in found),
    ]


def _untrained(results: Sequence[Result], name: str, figure: str) -> dict[int, float]:
    """{size: mean over seeds} of the untrained encoder, which every cell measures at its own size and seed."""
    found: dict[int, dict[int, float]] = {}
    for result in results:
        cell = result["cell"]
        if cell["set"] == name:
            found.setdefault(cell["size"], {})[cell["seed"]] = result[f"untrained_{figure}"]
    return {size: _mean(list(seeds.values())) for size, seeds in found.items()}


def _of(results: Sequence[Result], name: str, row: str) -> list[Result]:
    """The results of a set whose row begins so, by seed."""
    found = [r for r in results if r["cell"]["set"] == name and r["cell"]["row"].startswith(row)]
    return sorted(found, key=lambda result: result["cell"]["seed"])


def _changes(results: Sequence[Result]) -> Iterator[str]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        title, _, change = result["cell"]["row"].partition(": ")
        if change and title != "init":
            groups.setdefault(title, []).append(result)
    if groups:
        yield "## 2. One change at a time, best on validation first"
    for title, members in sorted(groups.items()):
        yield f"### {title}"
        members.sort(key=lambda result: -result["linear_validation"])
        head = ["", "updates", "linear, validation", "kNN, validation", "linear, test", "kNN, test"]
        yield _table([*head, "4 labels a class", "16", "loss"], [_change(result) for result in members])


def _change(result: Result) -> list[str]:
    return [
        result["cell"]["row"].partition(": ")[2],
        f"{result['updates']:,}",
        _percent(result["linear_validation"]),
        _percent(result["knn_validation"][-1]),
        _percent(result["linear"]),
        _percent(result["knn"]),
        *(_percent(result["few_labels"][count]) for count in ("4", "16")),
        f"{result['loss']:.2f}",
    ]


def _values(results: Iterable[Result], figure: str) -> list[float]:
    return [result[figure] for result in results]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _spread(values: Sequence[float]) -> str:
    text = _percent(_mean(values))
    return f"{text} ± {_percent(statistics.stdev(values))}" if len(values) > 1 else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(read()))
