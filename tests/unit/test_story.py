"""docs/story.md: its numbers, experiments, figures and references are those of the code."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from cl_core.registry import load_registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "story.md"
TEXT = PAGE.read_text()
STORY = ROOT / "benchmarks" / "story"
FIGURES = ROOT / "docs" / "figures"
REDRAWN = ("problem", "jigsaw", "rotation", "principle", "ours")  # the cheap ones


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


numbers = module(STORY / "write_numbers.py")


@pytest.fixture(scope="module")
def figures():
    sys.path.insert(0, str(FIGURES))  # as for `python docs/figures/make.py`
    yield importlib.import_module("make").FIGURES
    sys.path.remove(str(FIGURES))


RESULT = {
    "linear": 0.6212,
    "linear_ci95": [0.6116, 0.6307],
    "random_init": 0.4811,
    "knn": 0.5021,
    "best_stage": "stage3",
    "finetune": {"0.01": 0.31, "1.0": 0.7},
    "from_scratch": {"0.01": 0.25, "1.0": 0.71},
}


def test_numbers_and_experiment_files_on_the_page_are_the_measured_ones():
    made = numbers.rewritten(TEXT, json.loads(numbers.RESULTS.read_text()))
    assert made == TEXT, "run python benchmarks/story/write_numbers.py"


def test_the_page_asks_for_experiments_of_the_project_and_lists_all_of_them():
    asked = {name for names in re.findall(r"numbers: \w+ (.*?) ?-->", TEXT) for name in names.split()}
    assert asked <= set(numbers.experiments())
    table = TEXT.partition("<!-- numbers: table -->")[2].partition("<!-- /numbers -->")[0]
    assert re.findall(r"^\| \[([\w-]+)\]", table, re.MULTILINE) == numbers.experiments()


def test_a_measured_experiment_is_shown_with_its_file_interval_and_yardsticks():
    page = numbers.rewritten("<!-- numbers: experiment byol --><!-- /numbers -->", {"byol": RESULT})
    shown = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]
    assert YAML(typ="safe").load(shown) == YAML(typ="safe").load((STORY / "experiments" / "byol.yaml").read_text())
    assert (
        "Our number: linear probe **62.1 %** (61.2 to 63.1) at stage3; the same encoder untrained 48.1; kNN 50.2; "
        "fine-tuned on 1 % / 100 % of the labels 31.0 / 70.0, from scratch 25.0 / 71.0." in page
    )
    assert numbers.rewritten(page, {"byol": RESULT}) == page


def test_what_was_not_measured_says_so_and_invents_nothing():
    page = "<!-- numbers: cell byol --><!-- /numbers --> <!-- numbers: labels simclr byol --><!-- /numbers -->"
    assert numbers.rewritten(page, {}).count("not measured") == 2
    shown = numbers.rewritten(page, {"byol": RESULT})
    assert "-->62.1 %<!--" in shown
    assert "| from scratch | 25.0 | 71.0 |" in shown
    assert "simclr.yaml" not in shown
    table = numbers.rewritten("<!-- numbers: table --><!-- /numbers -->", {"byol": RESULT})
    assert "byol.yaml) | 62.1 | 48.1 | +14.0 | 50.2 | stage3 | 31.0 |  | 70.0 |" in table
    assert table.count("not measured") == len(numbers.experiments()) - 1


def test_results_are_collected_from_the_stages_files(tmp_path):
    accuracy = {"top1": 0.62124, "top1_ci95": [0.6116, 0.63071], "top5": 0.9, "n": 100}
    linear = {"test": accuracy, "best_stage": "stage3", "knn": {"top1": 0.5021}}
    linear["baselines"] = {"random_init": {"top1": 0.4811}}
    tuned = {"budgets": {"0.01": {"competitors": {"fine_tuned": {"top1": 0.31}, "supervised": {"top1": 0.25}}}}}
    for name, stage, metrics in (
        ("byol", "linear_eval", linear),
        ("byol", "finetune", tuned),
        ("dino", "linear_eval", {"skipped": "no labels"}),
    ):
        path = tmp_path / "runs" / name / stage / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(metrics))
    expected = {**RESULT, "linear_ci95": [0.6116, 0.6307], "finetune": {"0.01": 0.31}, "from_scratch": {"0.01": 0.25}}
    assert numbers.collect(tmp_path) == {"byol": expected}


SECTIONS = [part for part in re.split(r"\n(?=## )", TEXT) if part.startswith("## ") and "## References" not in part]
TASKS = [part for part in re.split(r"\n(?=###? )", TEXT) if part.startswith("### ") and "numbers: experiment" in part]


@pytest.mark.parametrize("section", [*SECTIONS, *TASKS], ids=lambda section: section.partition("\n")[0].strip("# "))
def test_every_section_has_a_figure_an_experiment_and_a_snippet(section):
    if not section.startswith("## What came between"):  # a table of ideas
        assert re.search(r"!\[[^\]]{40,}\]\(figures/\w+\.png\)", section), "an image with a text that describes it"
    assert "<!-- numbers: experiment" in section
    assert "```python\n" in section


def test_every_figure_is_shown_made_by_the_code_and_small(figures):
    files = {path.stem for path in FIGURES.glob("*.png")}
    assert files == set(figures) == set(re.findall(r"\(figures/(\w+)\.png\)", TEXT))
    for name in files:
        assert (FIGURES / f"{name}.png").stat().st_size < 60_000, name


@pytest.mark.parametrize("name", REDRAWN)
def test_figures_look_as_the_code_draws_them(figures, name):
    kept = np.asarray(Image.open(FIGURES / f"{name}.png").convert("RGB")).astype(float)
    drawn = figures[name]().astype(float)
    assert kept.shape == drawn.shape, f"run python docs/figures/make.py {name}"
    # Few colours cost about one grey level; another draw of views or other numbers cost more than ten.
    assert np.abs(kept - drawn).mean() < 4, f"run python docs/figures/make.py {name}"


def test_every_paper_is_in_the_references_under_its_number():
    body, references = TEXT.split("## References")
    named = set(re.findall(r"\[arXiv:([\d.]+)\]\(https://arxiv\.org/abs/\1\)", references))
    assert named == set(re.findall(r"arxiv\.org/abs/([\d.]+)", TEXT))
    assert named == set(re.findall(r"arxiv\.org/abs/([\d.]+)", body)), "a reference that no sentence needs"
    title = re.search(r"\[arXiv:1604\.07379\]", references)
    assert "Context Encoders" in references[: title.start()].rsplit("- ", 1)[1]


def test_the_page_cites_the_paper_that_each_method_names_as_its_source():
    registry = load_registry()
    for name in numbers.experiments():
        experiment = YAML(typ="safe").load((STORY / "experiments" / f"{name}.yaml").read_text())
        if "name" in experiment.get("method", {}):
            source = re.search(r"arXiv:([\d.]+\d)", registry.get("method", experiment["method"]["name"]).summary)
            assert source is None or source[1] in TEXT, name
