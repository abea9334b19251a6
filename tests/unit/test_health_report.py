"""Health in the report: side by side, held against the probe where there is one, first where there are no labels."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from test_report import (
    COUNTS,
    finetune_metrics,
    linear_metrics,
    rows_of,
    text_of,
    write_features,
    write_metrics,
    write_pretraining,
    write_resolved,
    write_store,
)

from cl_core.data.files import read_json, write_json
from cl_core.errors import DataError
from cl_core.report.collect import collect
from cl_core.report.groups import group_seeds
from cl_core.report.health import FIGURES, HealthTable, health, wilson
from cl_core.report.page import write_report

BASE = {"self_match": 0.5, "rankme": 8.0, "lidar": 6.0, "alpha_req": 1.5, "alignment": 0.4, "uniformity": -2.0}


def health_of(figures: dict[str, float], *, embedding: bool = True, images: int = 164) -> dict[str, Any]:
    def method(last: dict[str, float]) -> dict[str, Any]:
        stages = {"stage1": {"dim": 16, "rankme": 3.0}, "stage3": {"dim": 64} | last}
        return {"stages": stages, "embedding": {"dim": 32, **last} if embedding else None}

    where = {"protocol": "health/corners-v1", "input": "rgb", "split": "validation", "images": images, "views": 4}
    return {**where, "trained": method(BASE | figures), "untrained": method(BASE | {"rankme": 2.0})}


def write_member(
    artifacts: Path, name: str, found: dict[str, Any], *, top1: float | None, method: str = "", seed: int = 0
) -> None:
    write_resolved(artifacts, name, method=method or name, seed=seed)
    write_pretraining(artifacts, name)
    skipped = {"skipped": "the dataset has no labels"}
    labelled = top1 is not None
    write_metrics(
        artifacts, name, linear_metrics(top1) if labelled else skipped, finetune_metrics(top1) if labelled else skipped
    )
    write_features(artifacts, name, counts=COUNTS, classes=3 if labelled else 0)
    write_json(artifacts / "runs" / name / "embed" / "health.json", found)


def table_of(artifacts: Path, names: list[str]) -> HealthTable:
    (found,) = health(group_seeds(collect(artifacts, names)))
    return found.last


def page_of(artifacts: Path, names: list[str]) -> str:
    return write_report(artifacts, artifacts / "report.html", experiments=names).read_text()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four experiments: RankMe orders them as the probe does, alignment the wrong way round, alpha by nearness to 1."""
    artifacts = tmp_path_factory.mktemp("four") / "artifacts"
    write_store(artifacts, counts=COUNTS)
    for k, (top1, alpha) in enumerate([(0.5, 3.0), (0.6, 0.4), (0.7, 1.3), (0.8, 0.9)]):
        figures = {"rankme": 4.0 + k, "alignment": 0.2 + 0.1 * k, "alpha_req": alpha, "lidar": [5.0, 7, 6, 8][k]}
        write_member(artifacts, f"m{k}", health_of(figures), top1=top1)
    return artifacts


def test_figures_are_correlated_with_the_probe_by_rank_and_signed_so_that_one_is_the_right_order(four: Path) -> None:
    table = table_of(four, [f"m{k}" for k in range(4)])
    found = dict(zip([figure.key for figure in FIGURES], table.agreements, strict=True))
    assert (found["rankme"].spearman, found["rankme"].kendall) == pytest.approx((1, 1))
    assert found["alignment"].spearman == pytest.approx(-1)  # less is better, and here the best has most
    assert found["alpha_req"].spearman == pytest.approx(1)
    # One neighbouring pair the wrong way round: 1 - 6 * 2 / (4 * 15), and (5 - 1) / 6.
    assert (found["lidar"].spearman, found["lidar"].kendall) == pytest.approx((0.8, 4 / 6))
    assert math.isnan(found["self_match"].spearman or 0)  # all are equal, which is no order


def test_the_table_holds_each_figure_with_the_untrained_one_below_and_its_correlation(four: Path) -> None:
    rows = rows_of(page_of(four, [f"m{k}" for k in range(4)]), "results health")
    cells = [re.sub(r"\s+", " ", " | ".join(cell.strip() for cell in row)) for row in rows]
    text = text_of(page_of(four, [f"m{k}" for k in range(4)]))
    assert "stage3 of resnet8 (width=16), 64 values per image; 164 validation images" in text
    assert "over 4 experiments" in text
    assert "even a perfect order may be luck" in text
    first = next(row for row in cells if row.startswith("m0"))
    assert all(text in first for text in ("50.0", "4.0", "2.0"))
    spearman = next(row for row in cells if row.startswith("Spearman"))
    assert all(text in spearman for text in ("1.00", "\N{MINUS SIGN}1.00", "0.80"))


def test_fewer_than_four_experiments_show_no_correlation_and_that_is_said(four: Path) -> None:
    names = ["m0", "m1", "m2"]
    assert all(agreement.spearman is None for agreement in table_of(four, names).agreements)
    text = text_of(page_of(four, names))
    assert "It takes at least 4 experiments of one encoder; here are 3." in text
    assert "Spearman, with" not in text


def test_only_experiments_of_one_encoder_and_the_same_images_share_a_table(four: Path, tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_member(tmp_path, "a", health_of({}), top1=0.5)
    write_member(tmp_path, "b", health_of({}, images=100), top1=0.6)
    found = health(group_seeds(collect(tmp_path, ["a", "b"])))
    assert [[row.group.label for row in each.last.rows] for each in found] == [["a"], ["b"]]


def test_seeds_are_one_experiment_and_their_figures_a_mean(tmp_path: Path) -> None:
    write_member(tmp_path, "a-seed0", health_of({"rankme": 4.0}), top1=0.5, method="a", seed=0)
    write_member(tmp_path, "a-seed1", health_of({"rankme": 6.0}), top1=0.6, method="a", seed=1)
    (row,) = table_of(tmp_path, ["a-seed0", "a-seed1"]).rows
    assert row.cells[1] == ("5.0", "2.0")


def test_the_embedding_and_earlier_stages_stand_behind_the_last_stage(four: Path) -> None:
    (found,) = health(group_seeds(collect(four, ["m0", "m1"])))
    assert [table.place for table in (found.last, *found.further)] == ["stage3", "embedding", "stage1"]
    assert found.further[1].rows[0].cells[0] == ("\u2013", "\u2013")  # no figure, no number


def test_an_unlabelled_project_leads_with_health_and_neighbours_and_says_what_labels_would_tell(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS, classes=())
    write_member(tmp_path, "a", health_of({"self_match": 0.9, "rankme": 5.0}), top1=None)
    page = page_of(tmp_path, ["a"])
    order = [page.index(f'id="{name}"') for name in ("health", "neighbours", "summary", "training")]
    assert order == sorted(order)
    text = text_of(page)
    assert "Without labels no accuracy is known. a against its untrained encoder: self-match 90.0 against 50.0" in text
    assert "What cannot be known without labels" in text
    assert "an accuracy of 80 % then lies between 71.1 and 86.7 %, and a gain" in text
    assert "shows from 8.8 points on" in text
    assert "rank correlation" not in text
    assert page.count('id="neighbours"') == 1


def test_a_labelled_project_leads_with_its_accuracies(four: Path) -> None:
    page = page_of(four, ["m0", "m1"])
    order = [page.index(f'id="{name}"') for name in ("summary", "results", "stages", "health", "training")]
    assert order == sorted(order)
    assert "What cannot be known without labels" not in page


@pytest.mark.parametrize(("right", "n"), [(80, 100), (10, 20), (950, 1000)])
def test_intervals_of_an_accuracy_are_wilson_s(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_damaged_health_is_named_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    write_member(tmp_path, "a", health_of({}), top1=0.5)
    path = tmp_path / "runs" / "a" / "embed" / "health.json"
    write_json(path, read_json(path) | {"images": 0})
    with pytest.raises(DataError, match=r"health\.json is damaged: images: .*`dvc repro embed@a`"):
        collect(tmp_path, ["a"])
