"""What a user can get wrong: each gets a clear error or a recorded entry, never only a traceback or a silent skip."""

import csv
import json
import os

import pytest
from PIL import Image

from cl_core.data.sampling import mix

FOLDER_PARAMS = """\
experiments: [tiny]
diagnose: []
distil: []
data:
  source: {name: image_folder, path: images}
  size: 16
  splits: {validation: 4, test: 4}
evaluation:
  linear: {l2: [0.1]}
  finetune: {per_class: [all], lr: [1e-3], supervised_lr: [1e-2], epochs: 1, min_steps: 2, max_steps: 2}
"""


def fill(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        colour = tuple(mix(index, channel) % 256 for channel in range(3))
        Image.new("RGB", (20, 18), colour).save(folder / f"{index}.png")


@pytest.fixture
def with_images(project):
    return project({"params.yaml": FOLDER_PARAMS})


def stages(contrast, folder, *names):
    for name in names:
        done = contrast(folder, "stage", *name.split("@"))
        assert done.returncode == 0, done.stdout + done.stderr


def fails(done, *said):
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    for text in said:
        assert text in output
    return output


def test_every_mistake_of_a_project_is_reported_by_one_check(contrast, project):
    params = "experiments: [tiny, gone]\nsedd: 1\ndiagnose: []\ndistil: []\ndata: {source: {name: digits}, size: 4}\n"
    experiment = "method: {name: simclr, hiden_dim: 3}\nencoder: {name: resnet9}\ntrain: {batch_size: 1}\n"
    done = contrast(project({"params.yaml": params, "experiments/tiny.yaml": experiment}), "check")
    fails(done, "params.yaml:2: sedd", "'seed'", "data.size", "experiments/gone.yaml")
    fails(done, "train.batch_size")


def test_a_missing_folder_is_named(contrast, with_images):
    fails(contrast(with_images, "check"), "images", "does not exist")


def test_an_empty_folder_is_named(contrast, with_images):
    (with_images / "images").mkdir()
    fails(contrast(with_images, "check"), "images", "no image")


def test_an_unset_variable_in_the_path_is_named(contrast, with_images):
    path = with_images / "params.yaml"
    path.write_text(path.read_text().replace("path: images", "path: '${NO_SUCH_FOLDER}'"))
    fails(contrast(with_images, "check"), "NO_SUCH_FOLDER is not set")


def test_one_unreadable_image_is_quarantined_with_its_reason(contrast, with_images):
    fill(with_images / "images" / "a", 8)
    fill(with_images / "images" / "b", 8, start=8)
    (with_images / "images" / "a" / "broken.png").write_bytes(b"no image")
    stages(contrast, with_images, "resolve", "ingest")
    with (with_images / "artifacts" / "dataset" / "quarantine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["a/broken.png"]
    assert rows[0]["reason"]


def test_fewer_images_than_a_batch_says_which_number_to_lower(contrast, with_images):
    fill(with_images / "images", 20)
    stages(contrast, with_images, "resolve", "ingest", "views@tiny")
    fails(contrast(with_images, "stage", "pretrain", "tiny"), "batch_size", "12")


@pytest.mark.parametrize("classes", [[], ["only"]])
def test_without_labels_or_with_one_class_pretraining_runs_and_evaluation_is_skipped_with_the_reason(
    contrast, with_images, classes
):
    fill(with_images / "images" / (classes[0] if classes else ""), 40)
    path = with_images / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("batch_size: 64", "batch_size: 16"))
    stages(contrast, with_images, "resolve", "ingest", "views@tiny", "pretrain@tiny", "embed@tiny")
    stages(contrast, with_images, "linear_eval@tiny", "finetune@tiny", "report")
    reason = "the dataset has one class only" if classes else "the dataset has no labels"
    for stage in ("linear_eval", "finetune"):
        metrics = json.loads((with_images / "artifacts" / "runs" / "tiny" / stage / "metrics.json").read_text())
        assert metrics == {"skipped": reason}
    assert reason in (with_images / "artifacts" / "report" / "index.html").read_text()


def test_a_plugin_that_raises_on_import_is_reported_and_costs_only_itself(contrast, project, install):
    site = install("broken", "broken-plugin", "1/0").parent
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = contrast(project(), "check", env=environment)
    assert done.returncode == 0, done.stderr
    listed = contrast(project(), "plugins", "--json", env=environment)
    assert json.loads(listed.stdout)["broken"][0]["plugin"] == "broken-plugin"
    folder = project({"experiments/tiny.yaml": "method: {name: theirs}\nencoder: {name: resnet8}\n"})
    fails(contrast(folder, "check", env=environment), "no method is called 'theirs'", "broken-plugin", "ZeroDivision")


def test_two_plugins_of_one_name_are_reported_naming_both(contrast, project, install):
    sites = [install(who, "losses", "").parent for who in ("acme", "rival")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites))}
    fails(contrast(project(), "check", env=environment), "acme 1.0", "rival 1.0", "'losses'")


def test_an_unknown_stage_and_a_stage_without_its_experiment_say_what_to_type(contrast, project):
    fails(contrast(project(), "stage", "pretran"), "no stage is called 'pretran' - did you mean 'pretrain'")
    fails(contrast(project(), "stage", "pretrain"), "contrast stage pretrain EXPERIMENT")
    fails(contrast(project(), "stage", "pretrain", "tiny"), "contrast stage resolve")
