"""The page of the story, written from a small folder of artifacts."""

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_leaderboard import write_story
from toy_results import answers, write_predictions

from cl_core.config import ParamsConfig
from cl_core.data.files import read_json, write_json
from cl_core.documents import read_yaml, validate
from cl_core.errors import DataError
from cl_core.project import load_project

ROOT = Path(__file__).parents[2]
STORY = ROOT / "benchmarks" / "story"
SHOWN = ["simclr", "byol", "jigsaw", "mae", "supervised", "random_init"]


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.syspath_prepend(str(STORY))
    return importlib.import_module("write_story")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "story"
    artifacts = write_story(folder / "artifacts", SHOWN)
    report = artifacts / "resolved" / "report.json"
    resolved = read_json(report)
    claims = [
        {"claim": "A | B", "better": "simclr", "worse": "mae", "figure": "knn", "source": "he"},
        {"claim": "lost", "better": "simclr", "worse": "absent", "figure": "linear", "source": ""},
    ]
    write_json(report, {**resolved, "config": {**resolved["config"], "title": "A story", "claims": claims}})
    for name, accuracy in (("simclr", 0.9), ("mae", 0.5)):
        write_predictions(artifacts / "runs" / name / "linear_eval", {"knn_predicted": answers(accuracy, 0)})
    (folder / "CAVEATS.md").write_text("- one caveat\n")
    return folder


def test_the_page_holds_protocol_table_claims_and_the_caveats_kept_by_hand(writer, project, tmp_path):
    text = (
        writer.main(["--project", str(project), "--out", str(tmp_path / "STORY.md")])
        and (tmp_path / "STORY.md").read_text()
    )
    assert text.startswith("# A story\n")
    assert "- images: 40 for training (of 60), 12 for validation, 24 for testing, 12 px, 3 classes" in text
    assert "- seeds: 0" in text
    assert "torchvision 0.26.0" in text
    lines = text.splitlines()
    assert (
        "| *supervised* | \u2013 | supervised | 160,000 | 372 | stage2 | 72.0 (70.0 to 74.0) | +32.0 | 69.0 |" in text
    )
    rows = [line for line in lines if re.match(r"\| \*?(simclr|byol|jigsaw|mae|supervised|random_init)\*? \|", line)]
    assert len(rows) == len(SHOWN)
    assert "1 holds, 1 not checked." in text
    assert any(line.startswith("| A &#124; B (he) | **holds** | +40.0 |") for line in lines)
    assert text.endswith("## Caveats\n\n- one caveat\n")
    assert "](story/accuracy-by-year.svg)" in text


def test_the_figure_is_a_file_of_its_own_with_its_own_colours(writer, project, tmp_path):
    writer.main(["--project", str(project), "--out", str(tmp_path / "STORY.md")])
    svg = (project / "accuracy-by-year.svg").read_text()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own file
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", svg))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", svg))
    assert "prefers-color-scheme: dark" in svg


def test_the_same_artifacts_give_the_same_page(writer, project, tmp_path):
    texts = [writer.main(["--project", str(project), "--out", str(tmp_path / name)]).read_bytes() for name in "ab"]
    assert texts[0] == texts[1]


def test_a_project_that_was_not_run_says_what_to_run(writer, tmp_path):
    with pytest.raises(DataError, match=r"run `contrast run --project .*` first"):
        writer.read(tmp_path)


def test_the_story_project_is_sound_and_its_ablations_stand_before_the_yardsticks(tmp_path, monkeypatch):
    monkeypatch.setenv("CL_CIFAR10", str(tmp_path))
    names = [experiment.name for experiment in load_project(STORY).experiments]
    assert names[-4:] == ["supervised", "supervised_10", "random_init", "raw_pixels"]
    params = validate(ParamsConfig, read_yaml(STORY / "params.yaml", "params.yaml"))
    assert len(params.claims) > 20
    assert {name for name in names if "-" in name} <= {n for c in params.claims for n in (c.better, c.worse)}
