"""The leaderboard, its figure, and the claims: what is shown of many methods, in which order, against what."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_report import (
    COUNTS,
    finetune_metrics,
    linear_metrics,
    rows_of,
    text_of,
    write_metrics,
    write_pretraining,
    write_resolved,
    write_store,
)
from toy_results import answers, few_label_metrics, write_answers, write_predictions

from cl_core.config import ClaimConfig
from cl_core.data.files import read_json, write_json
from cl_core.report.claims import judge
from cl_core.report.collect import collect
from cl_core.report.groups import group_seeds
from cl_core.report.leaderboard import leaderboards
from cl_core.report.page import write_report
from cl_core.report.results import tables
from cl_core.report.timeline import aside, spread, timeline
from pipelines.summary import print_results

NONE = "\u2013"
# name, method, year, family, linear top-1
STORY = [
    ("denoising_autoencoder", "denoising_autoencoder", 2010, "reconstruction", 0.43),
    ("context_prediction", "context_prediction", 2015, "pretext", 0.48),
    ("jigsaw", "jigsaw", 2016, "pretext", 0.51),
    ("context_encoder", "context_encoder", 2016, "reconstruction", 0.452),
    ("colorization", "colorization", 2016, "reconstruction", 0.455),
    ("split_brain", "split_brain", 2017, "reconstruction", 0.47),
    ("counting", "counting", 2017, "pretext", 0.44),
    ("rotation", "rotation", 2018, "pretext", 0.54),
    ("simclr", "simclr", 2020, "contrastive", 0.57),
    ("moco_v2", "moco_v2", 2020, "contrastive", 0.56),
    ("byol", "byol", 2020, "self-distillation", 0.55),
    ("swav", "swav", 2020, "clustering", 0.565),
    ("supcon", "supcon", 2020, "supervised", 0.63),
    ("moco_v3", "moco_v3", 2021, "contrastive", 0.561),
    ("nnclr", "nnclr", 2021, "contrastive", 0.559),
    ("simsiam", "simsiam", 2021, "self-distillation", 0.54),
    ("barlow_twins", "barlow_twins", 2021, "redundancy reduction", 0.558),
    ("dino", "dino", 2021, "self-distillation", 0.5),
    ("vicreg", "vicreg", 2022, "redundancy reduction", 0.557),
    ("mae", "mae", 2022, "reconstruction", 0.46),
    ("simclr-no-jitter", "simclr", 2020, "contrastive", 0.49),
    ("colorization-no-rebalance", "colorization", 2016, "reconstruction", 0.45),
    ("byol-tau0", "byol", 2020, "self-distillation", 0.41),
    ("supervised", "supervised", None, "supervised", 0.72),
    ("random_init", "random_init", None, "yardstick", 0.40),
    ("raw_pixels", "random_init", None, "yardstick", 0.385),
]
NAMES = [name for name, *_ in STORY]


def write_member(artifacts: Path, name: str, method: str, facts: dict[str, Any], top1: float, seed: int = 0) -> None:
    """An experiment that was trained and judged, with the facts of its method in the card."""
    write_resolved(artifacts, name, method=method, seed=seed, temperature=0.1 if "-" in name else 0.5)
    write_pretraining(artifacts, name)
    card = artifacts / "runs" / name / "pretrain" / "encoder.json"
    write_json(card, read_json(card) | facts)
    write_metrics(artifacts, name, linear_metrics(top1, random_init=0.4), finetune_metrics(top1))


def write_story(artifacts: Path, names: list[str] | None = None) -> Path:
    write_store(artifacts, counts=COUNTS)
    for name, method, year, family, top1 in STORY:
        if names is None or name in names:
            yardstick = family in {"supervised", "yardstick"}
            units = 0.0 if family == "yardstick" else 2.0
            cost = {"units_per_image": units, "units": 80_000 * units}
            facts = {"year": year, "family": family, "yardstick": yardstick, **cost}
            write_member(artifacts, name, method, facts, top1)
    raw = artifacts / "resolved" / "raw_pixels" / "pretrain.json"
    if raw.is_file():
        resolved = read_json(raw)
        resolved["config"]["encoder"] = {"name": "pixels", "options": {}}
        write_json(raw, resolved)
    return artifacts


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_story(tmp_path_factory.mktemp("story") / "artifacts")


@pytest.fixture(scope="module")
def page(story: Path) -> str:
    return write_report(story, story / "report" / "index.html", experiments=NAMES, title="Story").read_text()


def board_of(artifacts: Path, names: list[str]):
    (board,) = leaderboards(tables(group_seeds(collect(artifacts, names))))
    return board


def test_the_best_linear_probe_stands_first_with_year_family_units_time_and_gain(page: str) -> None:
    names = re.findall(r'<th scope="row">(.*?)<span', page.partition('id="summary"')[0])
    assert names[:3] == ["supervised", "supcon", "simclr"]
    assert names[-1] == "raw_<wbr>pixels"
    rows = rows_of(page.replace('<tr class="dim">', "<tr>"), "results leaderboard")
    assert rows[2] == [
        "simclr 2020, contrastive 160,000 units, 372 s stage2",
        *["2020", "contrastive", "160,000", "372", "stage2", "57.0 55.0 to 59.0", "+17.0"],
        *["54.0 52.0 to 56.0", "47.0", "52.0", "62.0"],
    ]
    assert rows[-1][1:4] == [NONE, "yardstick", "0"]


def test_yardsticks_are_dimmed_and_nothing_else_is(page: str) -> None:
    dimmed = re.findall(r'<tr class="dim"><th scope="row">(.*?)<span', page)
    assert sorted(name.replace("<wbr>", "") for name in dimmed) == ["random_init", "raw_pixels", "supcon", "supervised"]


def test_a_card_without_facts_gives_dashes(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_member(tmp_path, "old", "simclr", {}, 0.6)
    write_member(tmp_path, "new", "byol", {"year": 2020, "family": "self-distillation"}, 0.5)
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["old", "new"]).read_text()
    assert rows_of(page, "results leaderboard")[0][1:4] == [NONE, NONE, NONE]
    assert "Linear probe by year" not in page, "one dated point is no figure"


def test_a_project_of_one_method_has_no_leaderboard(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    for name in ("simclr", "simclr-cold"):
        write_member(tmp_path, name, "simclr", {"year": 2020, "family": "contrastive"}, 0.6)
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["simclr", "simclr-cold"]).read_text()
    assert "leaderboard" not in page.partition("</style>")[2]


def test_experiments_of_different_protocols_are_never_in_one_leaderboard(tmp_path: Path) -> None:
    for name, method in (("a", "simclr"), ("b", "byol"), ("c", "jigsaw"), ("d", "mae")):
        write_member(tmp_path, name, method, {}, 0.6)
    for name in ("c", "d"):
        path = tmp_path / "runs" / name / "linear_eval" / "metrics.json"
        write_json(path, read_json(path) | {"protocol": "linear/other-v1"})
    boards = leaderboards(tables(group_seeds(collect(tmp_path, ["a", "b", "c", "d"]))))
    assert [[entry.group.label for entry in board.entries] for board in boards] == [["a", "b"], ["c", "d"]]


def test_seeds_share_a_line_and_their_gain_is_paired(tmp_path: Path) -> None:
    facts = {"year": 2020, "family": "contrastive"}
    for seed, top1 in ((0, 0.60), (1, 0.64)):
        write_member(tmp_path, f"simclr-seed{seed}", "simclr", facts, top1, seed=seed)
    write_member(tmp_path, "byol", "byol", facts, 0.5)
    first = board_of(tmp_path, ["simclr-seed0", "simclr-seed1", "byol"]).entries[0]
    assert first.gain.values == pytest.approx((0.20, 0.24))
    assert first.seconds == pytest.approx(372.4)


def test_the_figure_draws_methods_at_their_year_and_yardsticks_as_lines(story: Path) -> None:
    figure = timeline(board_of(story, NAMES), "t")
    assert ">simclr</text>" in figure.svg
    assert "simclr-no-jitter" not in figure.svg, "a variant of a method that is there already"
    assert {name for _, name in figure.legend} >= {"reconstruction", "pretext", "contrastive", "clustering"}
    alt = re.search(r'aria-label="([^"]*)"', figure.svg).group(1)
    assert "2010 denoising_autoencoder (reconstruction) 43.0 %" in alt
    assert alt.endswith("Lines across: supervised 72.0 %; random_init 40.0 %; raw_pixels 38.5 %")


def test_yardsticks_that_no_experiment_stands_for_come_from_the_baselines(story: Path) -> None:
    figure = timeline(board_of(story, ["simclr", "byol", "supervised"]), "t")
    assert "Lines across: supervised 72.0 %; random init 40.0 %; raw pixels 55.0 %" in figure.svg


def test_names_in_the_figure_do_not_lie_on_each_other(story: Path) -> None:
    svg = timeline(board_of(story, NAMES), "t").svg
    places = re.findall(
        r'translate\(([\d.]+) ([\d.]+)\)[^>]*>([a-z_0-9-]+)</text>|x="([\d.]+)" y="([\d.]+)"[^>]*>([a-z_0-9]+)<', svg
    )
    found = [(float(x or a), float(y or b), name or other) for x, y, name, a, b, other in places]
    assert {"simclr", "supervised", "raw_pixels"} <= {name for *_, name in found}
    for x, y, name in found:
        for other_x, other_y, other in found:
            if name < other and abs(y - other_y) < 11.9:
                left, right = sorted([(x, name), (other_x, other)])
                assert left[0] + 5.0 * len(left[1]) <= right[0], f"{name} and {other} overlap"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([5.0, 30.0], [5.0, 30.0]),
        ([10.0, 10.0], [5.0, 15.0]),
        ([12.0, 10.0], [16.0, 6.0]),
        ([0.0, 10.0, 11.0, 12.0], [-3.25 - 3.5, 3.25, 13.25, 23.25]),
    ],
)
def test_heights_are_moved_as_little_as_keeps_them_apart(heights: list[float], expected: list[float]) -> None:
    moved = spread(heights, 10.0)
    assert all(b - a >= 10 - 1e-9 for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False))
    assert [sorted(heights).index(h) for h in heights] == [sorted(moved).index(m) for m in moved] or heights[
        0
    ] == heights[1]
    if len(heights) < 4:
        assert moved == pytest.approx(expected)
    else:
        assert sum(moved) == pytest.approx(sum(heights)), "a block stays around its mean"


def test_more_families_than_colours_still_look_different(story: Path) -> None:
    marks = [mark for mark, _ in timeline(board_of(story, NAMES), "t").legend]
    assert len(marks) == len(set(marks)) == 7


def test_markers_that_would_hide_each_other_step_aside() -> None:
    assert aside([0.0, 50.0, 53.0, 56.0, 70.0], 8.0) == [0, 0, 1, 2, 0]
    assert aside([56.0, 50.0], 8.0) == [1, 0]


def test_terminal_table_of_many_experiments_keeps_to_80_columns(story: Path) -> None:
    terminal = io.StringIO()
    print_results(story, NAMES, Console(file=terminal, width=80))
    table = terminal.getvalue().partition("top-1 accuracy")[2].partition("linear/lbfgs-v1")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "\u2026" not in terminal.getvalue()
    for name in [name for name in NAMES if len(name) <= 22]:  # longer ones take two lines
        assert any(re.match(rf"\s*{name}\s+\d\d\.\d \(\d\d\.\d to \d\d\.\d\)", line) for line in table), name


def write_answered(artifacts: Path, name: str, right: list[bool], first_row: int = 0) -> None:
    """Predictions of linear probe and kNN, alike."""
    labels = torch.arange(len(right)) % 3
    predicted = torch.where(torch.tensor(right), labels, (labels + 1) % 3)
    folder = artifacts / "runs" / name / "linear_eval"
    write_predictions(folder, {"predicted": predicted, "knn_predicted": predicted.clone()}, first_row)


def claim(figure: str = "linear", better: str = "a", worse: str = "b") -> ClaimConfig:
    return ClaimConfig(claim="a beats b", better=better, worse=worse, figure=figure, source="nobody 2020")


def judged(artifacts: Path, *claims: ClaimConfig, names: tuple[str, ...] = ("a", "b")):
    return judge(claims, group_seeds(collect(artifacts, names)))


def write_pair(artifacts: Path, one: float = 0.6, other: float = 0.5) -> None:
    for name, method, top1 in (("a", "simclr", one), ("b", "byol", other)):
        write_member(artifacts, name, method, {}, top1)


@pytest.mark.parametrize(
    ("only_a", "only_b", "state", "p"),
    [(10, 0, "holds", 2 / 2**10), (0, 10, "does not hold", 2 / 2**10), (3, 1, "not told apart", 10 / 16)],
)
def test_linear_probes_are_compared_image_by_image(
    tmp_path: Path, only_a: int, only_b: int, state: str, p: float
) -> None:
    write_pair(tmp_path, 0.5 + 0.01 * (only_a - only_b), 0.5)
    write_answered(tmp_path, "a", [True] * only_a + [False] * only_b + [True] * 5)
    write_answered(tmp_path, "b", [False] * only_a + [True] * only_b + [True] * 5)
    (outcome,) = judged(tmp_path, claim())
    assert (outcome.state, outcome.p) == (state, pytest.approx(p))


def test_groups_of_several_seeds_are_compared_over_seeds_and_images_together(tmp_path: Path) -> None:
    for seed in range(3):
        for letter, method, top1 in (("a", "simclr", 0.80), ("b", "byol", 0.70)):
            write_member(tmp_path, f"{letter}-seed{seed}", method, {}, top1, seed=seed)
            predicted = {"knn_predicted": answers(top1, 10 * seed + ord(letter))}
            write_predictions(tmp_path / "runs" / f"{letter}-seed{seed}" / "linear_eval", predicted)
    names = tuple(f"{letter}-seed{seed}" for letter in "ab" for seed in range(3))
    (outcome,) = judged(tmp_path, claim("knn", "a-seed0", "b-seed0"), names=names)
    assert (outcome.state, outcome.shown_difference) == ("holds", "+10.0")
    assert outcome.how == "paired bootstrap over 3 seeds and 300 images"


def test_few_labels_are_compared_by_the_best_use_of_the_same_draws(tmp_path: Path) -> None:
    for name, method, frozen in (("a", "simclr", [0.80, 0.82]), ("b", "byol", [0.60, 0.62])):
        write_member(tmp_path, name, method, {}, 0.6)
        curve = {"frozen": {"5": frozen, "all": 0.9}, "fine_tuned": {"5": [0.5, 0.5], "all": 0.8}}
        metrics = few_label_metrics(curve, counts={"5": 15, "all": 1500})
        write_json(tmp_path / "runs" / name / "finetune" / "metrics.json", metrics)
        write_answers(tmp_path, name, metrics, seed=ord(name))
    far, near = judged(tmp_path, claim("few_labels 5"), claim("few_labels all", "b", "a"))
    assert (far.state, far.shown_difference) == ("holds", "+20.0")
    assert far.how == "paired bootstrap over 2 draws of labels and 300 images"
    assert (near.state, near.how) == ("not told apart", "McNemar's test on 300 images")


def test_a_logged_figure_is_taken_over_the_last_tenth_and_has_no_test(tmp_path: Path) -> None:
    write_pair(tmp_path)
    curves = "step,loss,accuracy\n" + "".join(f"{step},1,{0.1 if step < 37 else 0.8}\n" for step in range(1, 41))
    (tmp_path / "runs" / "a" / "pretrain" / "curves.csv").write_text(curves)
    (tmp_path / "runs" / "b" / "pretrain" / "curves.csv").write_text(curves.replace("0.8", "0.3"))
    (outcome,) = judged(tmp_path, claim("metrics.accuracy"))
    assert (outcome.state, outcome.shown_difference, outcome.p) == ("holds", "+0.5", None)


@pytest.mark.parametrize(
    ("figure", "worse", "reason"),
    [
        ("metrics.temprature", "b", r"a logs no 'temprature' - did you mean 'temperature'\?"),
        ("linear", "c", r"c has no results yet; run `contrast run c`"),
        ("linear", "b", r"the predictions predicted of a cannot be read .* `dvc repro linear_eval@a`"),
        ("few_labels 4", "b", r"a was not judged with the budget 4, only with 5, 50, all"),
    ],
)
def test_what_cannot_be_checked_says_why(tmp_path: Path, figure: str, worse: str, reason: str) -> None:
    write_pair(tmp_path)
    (outcome,) = judged(tmp_path, claim(figure, worse=worse))
    assert outcome.state == "not checked"
    assert re.search(reason, outcome.how)


def test_probes_of_other_test_images_or_protocols_are_not_compared(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_answered(tmp_path, "a", [True, False])
    write_answered(tmp_path, "b", [True, False], first_row=1)
    assert judged(tmp_path, claim())[0].how == "they were judged on different test images"
    path = tmp_path / "runs" / "b" / "linear_eval" / "metrics.json"
    write_json(path, read_json(path) | {"protocol": "linear/other-v1"})
    assert judged(tmp_path, claim())[0].how.startswith("they were judged by different protocols")


def test_claims_stand_in_the_report_with_their_outcome(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_pair(tmp_path)
    write_answered(tmp_path, "a", [True] * 9 + [False])
    write_answered(tmp_path, "b", [False] * 9 + [True])
    claims = [claim("knn"), claim("metrics.nothing")]
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["a", "b"], claims=claims).read_text()
    rows = rows_of(page, "results claims")
    assert rows[0][:4] == ["a beats b nobody 2020", "\u2713 holds", "+80.0", "0.021"]
    assert rows[1][1] == f"{NONE} not checked"
    assert "a over b, knn" in text_of(page)
