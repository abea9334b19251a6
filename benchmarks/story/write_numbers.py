"""Our numbers in docs/story.md: take them from a measured run, write them where the page asks for them.

    python benchmarks/story/write_numbers.py                       rewrite the page from results.json
    python benchmarks/story/write_numbers.py --collect artifacts   take results.json from a run first

The page asks by comments, and what stands between two of them is written by this script:

    <!-- numbers: experiment NAME -->  the experiment's file and its figures
    <!-- numbers: labels NAME ... -->  fine-tuning on few labels, and training from scratch on the same
    <!-- numbers: cell NAME -->        the linear probe alone
    <!-- numbers: table -->            all experiments
    <!-- /numbers -->

tests/unit/test_story.py fails where page and results.json differ.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "story.md"
FROM_PAGE = "../benchmarks/story/experiments"  # where the page finds the experiments
NOT_MEASURED = "not measured"

_ASKED = re.compile(r"(<!-- numbers: (\w+)([^>]*?) -->)(.*?)(<!-- /numbers -->)", re.DOTALL)

Result = dict[str, Any]
Results = dict[str, Result]


def collect(artifacts: Path) -> Results:
    """{experiment: figures} of every experiment of a run that has a linear probe; accuracies in [0, 1]."""
    found = {}
    for path in sorted(artifacts.glob("runs/*/linear_eval/metrics.json")):
        linear = json.loads(path.read_text())
        tuned_path = path.parents[1] / "finetune" / "metrics.json"
        tuned = json.loads(tuned_path.read_text()) if tuned_path.exists() else {}
        if "skipped" not in linear:
            found[path.parents[1].name] = _result(linear, tuned.get("budgets", {}))
    return found


def _result(linear: Result, budgets: Result) -> Result:
    return {
        "linear": _rounded(linear["test"]["top1"]),
        "linear_ci95": [_rounded(end) for end in linear["test"]["top1_ci95"]],
        "random_init": _rounded(linear["baselines"]["random_init"]["top1"]),
        "knn": _rounded(linear["knn"]["top1"]),
        "best_stage": linear["best_stage"],
        "finetune": _few_labels(budgets, "fine_tuned"),
        "from_scratch": _few_labels(budgets, "supervised"),
    }


def _few_labels(budgets: Result, competitor: str) -> Result:
    """{budget: top-1}, budgets by share with all labels as 1.0, as the page asks for them."""
    return {
        "1.0" if name == "all" else name: _rounded(found["competitors"][competitor]["top1"])
        for name, found in budgets.items()
    }


def _rounded(value: float) -> float:
    return round(value, 4)


def rewritten(page: str, results: Results) -> str:
    """The page with everything between its comments made anew."""

    def fill(match: re.Match[str]) -> str:
        opening, kind, names, _, closing = match.groups()
        return f"{opening}{KINDS[kind](names.split(), results)}{closing}"

    return _ASKED.sub(fill, page)


def _experiment(names: list[str], results: Results) -> str:
    (name,) = names
    lines = (HERE / "experiments" / f"{name}.yaml").read_text().splitlines()
    yaml = "\n".join(line for line in lines if not line.startswith("#"))
    return f"\nThe experiment {_link(name)}:\n\n```yaml\n{yaml}\n```\n\nOur number: {_sentence(results.get(name))}.\n"


def _sentence(result: Result | None) -> str:
    if result is None:
        return NOT_MEASURED
    low, high = result["linear_ci95"]
    linear = f"linear probe **{_percent(result['linear'])} %** ({_percent(low)} to {_percent(high)})"
    parts = [
        f"{linear} at {result['best_stage']}",
        f"the same encoder untrained {_percent(result['random_init'])}",
        f"kNN {_percent(result['knn'])}",
    ]
    if result["finetune"]:
        shares = " / ".join(_share(share) for share in result["finetune"])
        tuned, scratch = (" / ".join(map(_percent, result[key].values())) for key in ("finetune", "from_scratch"))
        parts.append(f"fine-tuned on {shares} of the labels {tuned}, from scratch {scratch}")
    return "; ".join(parts)


def _labels(names: list[str], results: Results) -> str:
    measured = {name: results[name] for name in names if results.get(name, {}).get("finetune")}
    if not measured:
        return f"\n{NOT_MEASURED}\n"
    first = next(iter(measured.values()))
    shares = list(first["finetune"])
    rows = [
        [_link(name), *(_percent(result["finetune"][share]) for share in shares)] for name, result in measured.items()
    ]
    rows.append(["from scratch", *(_percent(first["from_scratch"][share]) for share in shares)])
    return _table(["top-1, %", *(f"{_share(share)} of the labels" for share in shares)], rows)


def _cell(names: list[str], results: Results) -> str:
    (name,) = names
    return f"{_percent(results[name]['linear'])} %" if name in results else NOT_MEASURED


def _everything(names: list[str], results: Results) -> str:
    header = ["experiment", "linear", "untrained", "gain", "kNN", "stage", "1 %", "10 %", "100 %"]
    return _table(header, [_row(name, results.get(name)) for name in experiments()])


def _row(name: str, result: Result | None) -> list[str]:
    if result is None:
        return [_link(name), NOT_MEASURED, *[""] * 7]
    gain = 100 * (result["linear"] - result["random_init"])
    figures = [_percent(result["linear"]), _percent(result["random_init"]), f"{gain:+.1f}", _percent(result["knn"])]
    tuned = [
        _percent(result["finetune"][share]) if share in result["finetune"] else "" for share in ("0.01", "0.1", "1.0")
    ]
    return [_link(name), *figures, result["best_stage"], *tuned]


def experiments() -> list[str]:
    """Names of the project's experiments, in its order."""
    return list(YAML(typ="safe").load((HERE / "params.yaml").read_text())["experiments"])


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def _link(name: str) -> str:
    return f"[{name}]({FROM_PAGE}/{name}.yaml)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _share(share: str) -> str:
    return f"{100 * float(share):g} %"


KINDS: dict[str, Callable[[list[str], Results], str]] = {
    "experiment": _experiment,
    "labels": _labels,
    "cell": _cell,
    "table": _everything,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Write our numbers into docs/story.md.")
    parser.add_argument("--collect", type=Path, metavar="ARTIFACTS", help="take results.json from this folder first")
    artifacts = parser.parse_args().collect
    if artifacts:
        RESULTS.write_text(json.dumps(collect(artifacts), indent=1) + "\n")
    PAGE.write_text(rewritten(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
