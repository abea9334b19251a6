"""Every stage of an experiment on an encoded store, and what params.yaml says of it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from cl_core.data.store import Store
from cl_core.errors import ConfigError
from cl_core.project import load_project
from pipelines.cores import threads
from pipelines.stages import DATASET, RUNS, run_stage
from tests.conftest import EXPERIMENT, PARAMS

SUBSET = "  size: 16\n  layout: encoded\n  subset: 200"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with a few of the digits as JPEG files, all stages run in process."""
    folder = tmp_path_factory.mktemp("encoded") / "project"
    (folder / "experiments").mkdir(parents=True)
    params = PARAMS.replace("  size: 16", SUBSET).replace("diagnose: []", "diagnose: [tiny]")
    (folder / "params.yaml").write_text(params)
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT + "\n")
    for stage in ("resolve", "ingest"):
        run_stage(folder, stage, None)
    for stage in ("views", "pretrain", "embed", "linear_eval", "finetune", "diagnose"):
        run_stage(folder, stage, "tiny")
    run_stage(folder, "report", None)
    return folder


def test_all_stages_run_and_the_report_is_there(finished):
    store = Store.open(finished / DATASET)
    assert store.layout == "encoded"
    run = finished / RUNS / "tiny"
    assert json.loads((run / "linear_eval/metrics.json").read_text())["protocol"]
    assert (run / "views/preview.png").is_file()
    assert (finished / "artifacts/report/index.html").is_file()
    shares = json.loads((run / "pretrain/timing.json").read_text())["data_wait_share"]
    assert 0 <= shares <= 1


def test_the_shorter_side_is_twice_the_size_unless_params_say_otherwise(project):
    for text, side in [("encoded", 32), ("encoded\n  max_shorter_side: 20", 20), ("decoded", None)]:
        folder = project({"params.yaml": PARAMS.replace("  size: 16", f"  size: 16\n  layout: {text}")})
        run_stage(folder, "resolve", None)
        ingest = json.loads((folder / "artifacts/resolved/ingest.json").read_text())
        assert ingest["config"]["max_shorter_side"] == side


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_shorter_side: 64", "max_shorter_side is for the layout encoded; delete it, or set layout: encoded"),
        ("layout: encoded\n  max_shorter_side: 8", "max_shorter_side 8 is less than size 16; raise it"),
        ("layout: shredded", "decoded"),
    ],
)
def test_sides_and_layouts_that_make_no_sense_are_refused(project, text, said):
    folder = project({"params.yaml": PARAMS.replace("  size: 16", f"  size: 16\n  {text}")})
    with pytest.raises(ConfigError, match=said):
        load_project(folder)


def test_decoding_threads_reach_the_stages_unless_the_user_has_set_them(monkeypatch):
    assert threads(1, 3) == {"CONTRAST_DECODE_THREADS": "3"}
    assert threads(1) == {}
    monkeypatch.setenv("CONTRAST_DECODE_THREADS", "5")
    assert "CONTRAST_DECODE_THREADS" not in threads(1, 3)


def test_images_of_a_folder_are_stored_as_they_are(project, tmp_path):
    pictures = tmp_path / "pictures"
    for number in range(12):
        path = pictures / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((30, 24), 40 + number).convert("RGB").save(path)
    text = PARAMS.replace("{name: digits}", f"{{name: image_folder, path: {pictures}}}")
    folder = project({"params.yaml": text.replace("  size: 16", "  size: 16\n  layout: encoded")})
    run_stage(folder, "resolve", None)
    run_stage(folder, "ingest", None)
    split = Store.open(folder / DATASET).split("train")
    for row, key in enumerate(split.keys):
        assert bytes(split._files([row]).data[0]) == (pictures / key).read_bytes()
