"""Yardsticks as experiments: untrained encoders, raw pixels, supervised training on some of the labels."""

import json

import pytest
import torch

from cl_core.check import check_project
from cl_core.errors import ConfigError, DataError
from cl_core.evaluation.draws import Drawing
from cl_core.evaluation.features import Features
from cl_core.project import load_project
from pipelines.stages import Stage, run_stage
from plugins.encoders import Pixels

UNTRAINED = "method: {name: random_init}\nencoder: {name: resnet8, width: 4}\n"
PIXELS = "method: {name: random_init}\nencoder: {name: pixels}\n"
SUPERVISED = """\
method: {name: supervised}
encoder: {name: resnet8, width: 4}
views: {recipe: {name: crop-flip}}
schedule: {epochs: 2, warmup_epochs: 0}
train: {batch_size: 32, precision: fp32, channels_last: false, compile: false, knn_every: 0}
"""
STAGES = ("resolve", "ingest", "views", "pretrain", "embed", "linear_eval", "finetune")


def run_all(folder, names, stages=STAGES):
    for stage in stages:
        for name in names if stage not in ("resolve", "ingest") else [None]:
            run_stage(folder, stage, name)


def metrics(folder, name, stage):
    return json.loads((folder / "artifacts" / "runs" / name / stage / "metrics.json").read_text())


@pytest.fixture
def yardsticks(project):
    files = {"experiments/untrained.yaml": UNTRAINED, "experiments/pixels.yaml": PIXELS}
    folder = project(files)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("[tiny]", "[untrained, pixels]"))
    return folder


def test_untrained_encoders_and_raw_pixels_pass_every_stage_and_equal_their_yardsticks(yardsticks):
    run_all(yardsticks, ["untrained", "pixels"])
    for name, baseline in (("untrained", "random_init"), ("pixels", "raw_pixels")):
        linear = metrics(yardsticks, name, "linear_eval")
        assert linear["test"]["top1"] == pytest.approx(linear["baselines"][baseline]["top1"])
        for budget in metrics(yardsticks, name, "finetune")["budgets"].values():
            assert budget["competitors"]["frozen"]["top1"] == budget["competitors"][baseline]["top1"]
    card = json.loads((yardsticks / "artifacts/runs/pixels/pretrain/encoder.json").read_text())
    assert (card["stages"], card["units"]) == ({"pixels": [3 * 16 * 16]}, 0.0)
    run_stage(yardsticks, "report", None)
    assert (yardsticks / "artifacts/report/index.html").is_file()


def test_the_check_says_that_a_yardstick_is_not_trained(yardsticks):
    assert "experiment untrained: random_init on resnet8; not trained, seed 0" in check_project(yardsticks)


@pytest.mark.parametrize("section", ["optimizer: {lr: 0.1}", "schedule: {epochs: 3}", "train: {batch_size: 8}"])
def test_settings_of_training_without_training_are_an_error(project, section):
    folder = project({"experiments/tiny.yaml": f"{UNTRAINED}{section}\n"})
    with pytest.raises(ConfigError, match=r"tiny.yaml:3: \w+: random_init trains nothing; delete this section"):
        load_project(folder)


def test_a_share_of_the_labels_is_that_of_fine_tuning_and_epochs_count_it(project):
    folder = project({"experiments/tiny.yaml": f"{SUPERVISED}labels: 0.1\n"})
    run_all(folder, ["tiny"], STAGES[:5])
    stage = Stage(folder, "pretrain", "tiny", lambda: False)
    whole, seen = stage.split("train"), stage.pretraining_split()
    rows = Drawing(whole.keys, whole.labels).share(0.1)
    assert list(seen.keys) == [whole.keys[row] for row in rows]
    card = json.loads((folder / "artifacts/runs/tiny/pretrain/encoder.json").read_text())
    assert card["training"]["steps"] == 2 * (len(rows) // 32)
    assert card["units"] == 2 * (len(rows) // 32) * 32
    features = Features.load(folder / "artifacts/runs/tiny/embed/train.safetensors")
    assert len(features) == len(whole), "later stages judge on all labels, as for every other experiment"


def test_a_share_of_the_labels_for_a_method_that_uses_none_is_an_error(project):
    text = UNTRAINED.replace("random_init", "jigsaw") + "labels: 0.1\n"
    with pytest.raises(ConfigError, match=r"labels: labels 0.1 limits which labels .* jigsaw sees none; delete"):
        load_project(project({"experiments/tiny.yaml": text}))


def test_a_share_of_the_labels_that_fills_no_batch_is_an_error(project):
    folder = project({"experiments/tiny.yaml": f"{SUPERVISED}labels: 0.01\n"})
    with pytest.raises(DataError, match="batch"):
        run_all(folder, ["tiny"], STAGES[:4])


def test_large_images_are_pooled_to_the_grid_of_the_yardstick():
    images = torch.rand(2, 3, 72, 72)
    features = Pixels(image_size=72).stages(images)["pixels"]
    assert features.shape == (2, 3 * 36 * 36)
    torch.testing.assert_close(features, torch.nn.functional.avg_pool2d(images, 2).flatten(1))


CLAIM = "claims:\n  - {claim: one beats the other, better: tiny, worse: b, figure: FIGURE}\n"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("worse: b", "worse: c"), r"params.yaml:\d+: claims.0.worse: no experiment is called 'c'"),
        (("worse: b", "worse: tiny"), r"claims.0.worse: tiny cannot be worse than itself"),
        (("FIGURE", "linaer"), r"claims.0.figure: must be linear, knn, `few_labels BUDGET` .* got 'linaer'"),
        (
            ("FIGURE", "few_labels 7"),
            r"'few_labels 7' is not measured here; choose from: few_labels 0.1, few_labels 1.0",
        ),
        (("better:", "btter:"), r"claims.0.btter: unknown key - did you mean 'better'"),
    ],
)
def test_a_claim_about_nothing_is_an_error_that_says_where(project, edit, said):
    folder = project({"experiments/b.yaml": "extends: tiny\nseed: 1\n"})
    params = folder / "params.yaml"
    claim = CLAIM.replace(*edit).replace("FIGURE", "linear")
    params.write_text(params.read_text().replace("[tiny]", "[tiny, b]") + claim)
    with pytest.raises(ConfigError, match=said):
        load_project(folder)
