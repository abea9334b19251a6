"""What few labels show, what is said of it, and experiments against each other, from predictions."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_report import COUNTS, linear_metrics, rows_of, text_of, write_metrics, write_pretraining, write_resolved
from test_report import write_store as store
from toy_results import few_label_metrics, write_answers

from cl_core.data.files import read_json, write_json
from cl_core.errors import ConfigError
from cl_core.measures.metrics import mcnemar
from cl_core.report.answers import linear_answers
from cl_core.report.collect import collect
from cl_core.report.comparison import compare, find
from cl_core.report.few_labels import conclusion, few_labels, saved_sentence
from cl_core.report.groups import group_seeds
from cl_core.report.judgement import judgement
from cl_core.report.page import write_report
from cl_core.report.table import COLUMNS, result_rows
from pipelines.cli import cli
from pipelines.commands.compare import command as compare_command
from pipelines.commands.results import command as results_command
from pipelines.commands.verdict import command as verdict_command

LABELS = {"1": 10, "10": 100, "all": 1000}
HELPED = {
    "frozen": {"1": [0.70, 0.72, 0.68], "10": [0.85, 0.85], "all": 0.95},
    "fine_tuned": {"1": [0.72, 0.74, 0.73], "10": [0.88, 0.88], "all": 0.95},
    "random_init": {"1": [0.50, 0.52, 0.48], "10": [0.70, 0.70], "all": 0.94},
    "raw_pixels": {"1": [0.40, 0.41, 0.42], "10": [0.60, 0.60], "all": 0.80},
    "supervised": {"1": [0.40, 0.42, 0.38], "10": [0.80, 0.80], "all": 0.94},
}
BEATEN = {**HELPED, "supervised": {"1": [0.40, 0.42, 0.38], "10": [0.97, 0.97], "all": 0.99}}


def write_judged(
    artifacts: Path, name: str, curves: Any, *, method: str = "simclr", seed: int = 0, **kind: Any
) -> None:
    """An experiment with results of every kind, and what it answered."""
    write_resolved(artifacts, name, method=method, seed=seed)
    write_pretraining(artifacts, name)
    metrics = few_label_metrics(curves, counts=LABELS, **kind)
    write_metrics(artifacts, name, linear_metrics(0.7), metrics)
    write_answers(artifacts, name, metrics, seed=seed + len(name))


def groups_of(artifacts: Path, *names: str):
    return group_seeds(collect(artifacts, names))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Of a project folder with one experiment that helped, in two seeds, and one that is beaten."""
    (tmp_path / "params.yaml").write_text("")
    write_judged(tmp_path / "artifacts", "good", HELPED)
    write_judged(tmp_path / "artifacts", "good-s1", HELPED, seed=1)
    write_judged(tmp_path / "artifacts", "beaten", BEATEN, method="mae")
    return tmp_path / "artifacts"


def test_gains_losses_and_no_difference_are_told_by_budget(artifacts: Path) -> None:
    good, beaten = (few_labels(group) for group in groups_of(artifacts, "good", "good-s1", "beaten"))
    assert conclusion(good) == (
        "pretraining helped with 1 and 10 labels per class, against the untrained encoder, raw pixels and supervised "
        "training; no difference shown from the untrained encoder and supervised training with all labels"
    )
    assert conclusion(beaten) == (
        "pretraining helped with 1 label per class, against the untrained encoder, raw pixels and supervised training; "
        "it did not pay with 10 labels per class and all labels, where supervised training does better"
    )
    first = good.at("1")[-1]
    assert (first.reference, round(first.accuracy, 2), round(first.difference.value, 2)) == ("supervised", 0.73, 0.33)
    assert first.difference.low < 0.33 < first.difference.high
    assert "2 seeds, 3 draws of labels and 300 images" in first.difference.test


def test_p_values_are_corrected_over_all_budgets_and_yardsticks(artifacts: Path) -> None:
    (found,) = map(few_labels, groups_of(artifacts, "beaten"))
    raw = sorted((contest.difference.p, contest.p) for contest in found.against)
    assert len(raw) == 9
    assert raw[0][1] == pytest.approx(9 * raw[0][0])
    assert all(before <= after for before, after in raw)


def test_labels_saved_lead_with_the_fewest_labels_and_say_more_than_all(artifacts: Path) -> None:
    group, _ = groups_of(artifacts, "good", "good-s1", "beaten")
    found = few_labels(group)
    sentence = saved_sentence(group, found)
    assert sentence.startswith("With 10 labels good reaches 73.0 %, for which supervised training needs ")
    supervised = found.saved[0].needed
    assert supervised.labels == pytest.approx(10 * 10 ** (0.33 / 0.4), rel=1e-3)
    assert supervised.low < supervised.labels < supervised.high
    assert found.saved[-1].text.startswith("more than 1,000 labels")


def test_what_to_do_next_follows_from_what_was_measured(artifacts: Path) -> None:
    good, beaten = (judgement(group) for group in groups_of(artifacts, "good", "good-s1", "beaten"))
    steps = " | ".join(good.next_steps)
    assert "train longer: online kNN still rose by 7.5 points in the last quarter" in steps
    assert "read stage2 and not stage3: 8.0 points more on validation" in steps
    assert "the frozen probe is enough with" in steps
    assert "add seeds" not in steps
    other = " | ".join(beaten.next_steps)
    assert "train from scratch with 10 labels per class and all labels" in other
    assert "add seeds before building on a difference" in other


def test_missing_predictions_are_named_and_nothing_is_claimed(artifacts: Path) -> None:
    (artifacts / "runs" / "beaten" / "finetune" / "predictions.safetensors").unlink()
    (found,) = map(judgement, groups_of(artifacts, "beaten"))
    assert (found.conclusion, found.saved) == ("", "")
    assert "make them again with `dvc repro finetune@beaten`" in found.few.problem


def test_the_report_leads_with_the_labels_saved_and_shows_every_test(artifacts: Path) -> None:
    store(artifacts, counts=COUNTS)
    page = write_report(artifacts, artifacts / "report.html", experiments=["good", "good-s1"]).read_text()
    lead = text_of(page[page.index('<p class="lead">') :].partition("</p>")[0])
    assert lead.strip().startswith("With 10 labels good reaches 73.0 %, for which supervised training needs")
    rows = rows_of(page, "results contests")
    assert [row[1] for row in rows] == ["1 per class", "10 per class", "all"]
    assert rows[0][5].startswith("+33.0")


def test_two_runs_are_compared_by_mcnemars_test_on_every_figure(artifacts: Path) -> None:
    found = compare(find(["good", "beaten"], groups_of(artifacts, "good", "beaten")))
    names = [(row.figure.name, row.figure.use, row.figure.budget) for row in found.rows]
    assert names[:3] == [("linear", "", ""), ("knn", "", ""), ("few_labels", "frozen", "1")]
    assert len(names) == 2 + 3 * 3
    experiments = collect(artifacts, ["good", "beaten"])
    import torch

    flags = [torch.from_numpy(linear_answers([e], "linear").runs.seeds[0][0]) for e in experiments]
    assert found.rows[0].difference.p == pytest.approx(mcnemar(*flags))
    assert found.notes == ()


def test_seeds_of_one_experiment_stand_for_themselves_when_both_are_named(artifacts: Path) -> None:
    one, other = find(["good", "good-s1"], groups_of(artifacts, "good", "good-s1"))
    assert [len(group.experiments) for group in (one, other)] == [1, 1]
    assert compare([one, other]).rows[0].difference.test == "McNemar's test on 300 images"


def test_other_protocols_are_refused_by_name_unless_asked_for(artifacts: Path) -> None:
    write_judged(artifacts, "old", HELPED, method="byol", protocol="finetune/simclr-v1")
    groups = find(["good", "old"], groups_of(artifacts, "good", "old"))
    message = (
        "good and old were judged by different protocols, finetune/lpft-v2.* and finetune/simclr-v1.*--across-protocols"
    )
    with pytest.raises(ConfigError, match=message):
        compare(groups)
    assert len(compare(groups, across_protocols=True).rows) == 11


def test_what_only_one_side_has_is_noted(artifacts: Path) -> None:
    path = artifacts / "runs" / "beaten" / "finetune" / "metrics.json"
    metrics = read_json(path)
    del metrics["budgets"]["10"]
    write_json(path, metrics)
    found = compare(find(["good", "beaten"], groups_of(artifacts, "good", "beaten")))
    assert found.notes == ("budget 10: good and beaten have seen 100 and none labels",)


def invoke(command: Any, artifacts: Path, *arguments: str) -> str:
    result = CliRunner().invoke(command, [*arguments, "--project", str(artifacts.parent)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_compare_prints_json_with_the_corrected_p_values(artifacts: Path) -> None:
    found = json.loads(invoke(compare_command, artifacts, "good", "beaten", "--json"))
    assert found["notes"] == []
    first = found["comparisons"][0]
    assert (first["a"], first["b"], first["figure"], first["budget"]) == ("good", "beaten", "linear", None)
    assert first["p_holm"] >= first["p"]
    assert "best of both, 10" in invoke(compare_command, artifacts, "good", "beaten")


def test_verdict_says_what_holds_and_what_to_do_next(artifacts: Path) -> None:
    said = invoke(verdict_command, artifacts, "good")
    assert "With 10 labels good reaches 73.0 %" in said
    assert "next: train longer" in said
    assert "beaten" not in said
    assert "beaten: pretraining helped with 1 label per class" in invoke(verdict_command, artifacts)


def test_an_unknown_experiment_and_a_project_without_results_say_what_to_do(artifacts: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    with pytest.raises(ConfigError, match="no experiment is called 'goood' - did you mean 'good'"):
        runner.invoke(cli, ["results", "goood", "--project", str(artifacts.parent)], catch_exceptions=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "params.yaml").write_text("")
    with pytest.raises(ConfigError, match="has no results yet; run `contrast run` first"):
        runner.invoke(cli, ["verdict", "--project", str(empty)], catch_exceptions=False)


def test_every_figure_is_one_row_with_the_promised_columns(artifacts: Path) -> None:
    rows = result_rows(collect(artifacts, ["good"]))
    assert (
        *("experiment", "seed", "protocol", "competitor", "use", "budget", "labels_trained", "labels_chosen", "draw"),
        *("stage", "split", "figure", "value", "low", "high"),
    ) == COLUMNS
    keys = [(r.protocol, r.competitor, r.use, r.budget, r.draw, r.stage, r.split, r.figure) for r in rows]
    assert len(keys) == len(set(keys)), "no figure stands twice"
    found = {(r.competitor, r.use, r.budget, r.draw): r for r in rows if r.figure == "top1" and "lpft" in r.protocol}
    mean = found["pretrained", "fine_tuned", 10 / 3, None]
    assert mean.value == pytest.approx(0.73)
    assert (mean.low, mean.high) == pytest.approx((0.70, 0.76))
    assert found["pretrained", "fine_tuned", 10 / 3, 1].value == 0.74
    assert found["supervised", "fine_tuned", "all", None].labels_trained == 1000
    uses = {(r.competitor, r.use) for r in rows}
    assert uses == {
        *(("pretrained", use) for use in ("frozen", "fine_tuned", "best", "knn")),
        *(("random_init", "frozen"), ("random_init", "knn"), ("raw_pixels", "frozen"), ("supervised", "fine_tuned")),
    }


def test_rows_are_printed_as_json_and_as_csv_alike(artifacts: Path) -> None:
    listed = json.loads(invoke(results_command, artifacts, "good", "--json"))
    lines = list(csv.DictReader(io.StringIO(invoke(results_command, artifacts, "good", "--csv"))))
    assert tuple(lines[0]) == COLUMNS == tuple(listed[0])
    assert [line["value"] for line in lines] == [str(row["value"]) for row in listed]
    assert lines[0]["draw"] == ""
    assert "fine_tuned" in invoke(results_command, artifacts, "good")
