"""SimCLR v2 as stages: the trained head reaches fine-tuning, the fine-tuned classifier reaches its student."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cl_core.data.files import write_json
from cl_core.errors import CheckpointError
from cl_core.evaluation.classifier import Classifier
from cl_core.evaluation.features import load_weights
from pipelines.stages import Stage, run_stage
from tests.conftest import EXPERIMENT, PARAMS

V2 = """\
extends: tiny
method: {name: simclr, head_layers: 3, fine_tune_layer: 1}
distil: {budget: 0.1, epochs: 1, batch_size: 64, encoder: {name: resnet8, width: 8}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with SimCLR v2 on a few of the digits, all stages up to distil run in process."""
    folder = tmp_path_factory.mktemp("v2") / "project"
    (folder / "experiments").mkdir(parents=True)
    params = (
        PARAMS.replace("[tiny]", "[v2]")
        .replace("distil: []", "distil: [v2]")
        .replace("  size: 16", "  size: 16\n  subset: 200")
    )
    (folder / "params.yaml").write_text(params)
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "experiments" / "v2.yaml").write_text(V2)
    for stage in ("resolve", "ingest"):
        run_stage(folder, stage, None)
    for stage in ("views", "pretrain", "finetune", "distil"):
        run_stage(folder, stage, "v2")
    return folder


def stage_of(folder, name):
    return Stage(folder, name, "v2", lambda: False)


def test_fine_tuning_starts_from_the_trained_encoder_and_the_trained_head_layer(finished):
    stage = stage_of(finished, "finetune")
    saved = load_file(finished / "artifacts/runs/v2/pretrain/method.safetensors")
    trained, untrained = (method.fine_tune_model().state_dict() for method in (stage.trained_method(), stage.method()))
    names = {name: name.replace("representation.", "") for name in trained}
    assert set(names.values()) == {name for name in saved if name.startswith(("encoder.", "head.0.", "head.1."))}
    for name, saved_as in names.items():
        assert torch.equal(trained[name], saved[saved_as]), name
    assert not torch.equal(trained["head.0.weight"], untrained["head.0.weight"])
    assert not torch.equal(
        trained["representation.encoder.conv1.weight"], untrained["representation.encoder.conv1.weight"]
    )


def test_the_teacher_is_the_classifier_of_its_budget_and_the_student_has_its_own_encoder(finished):
    stage = stage_of(finished, "distil")
    folder = finished / "artifacts/runs/v2"
    card = json.loads((folder / "finetune/classifiers/classifiers.json").read_text())
    assert card["fine_tuned"] == "encoder + head layer 1"
    entry = card["classifiers"]["0.1"]
    reads = {name: entry[name] for name in ("stage", "dim", "max_values")}
    teacher = Classifier(stage.method().fine_tune_model(), 10, **reads)
    student = Classifier(stage.method(encoder=stage.config["student"]).fine_tune_model(), 10)
    load_weights(teacher, folder / "finetune/classifiers" / entry["file"], "teacher")
    load_weights(student, folder / "distil/student.safetensors", "student")
    with pytest.raises(CheckpointError, match=r"do not fit the teacher: "):
        load_weights(teacher, folder / "distil/student.safetensors", "teacher")
    metrics, finetuned = (json.loads((folder / s / "metrics.json").read_text()) for s in ("distil", "finetune"))
    competitors = finetuned["budgets"]["0.1"]["competitors"]
    assert metrics["teacher"]["top1"] == competitors["best"]["draws"][0]["top1"]
    assert metrics["supervised_same_labels"]["top1"] == competitors["supervised"]["draws"][0]["top1"]
    assert metrics["n_images"] == 200


def test_distilling_again_gives_the_same_bytes(finished):
    folder = finished / "artifacts/runs/v2/distil"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run_stage(finished, "distil", "v2")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_where_fine_tuning_was_skipped_distillation_says_why_and_leaves_its_files(finished):
    folder = finished / "artifacts/runs/v2"
    kept = (folder / "finetune/metrics.json").read_bytes()
    write_json(folder / "finetune/metrics.json", {"skipped": "the dataset has no labels"})
    run_stage(finished, "distil", "v2")
    assert json.loads((folder / "distil/metrics.json").read_text()) == {"skipped": "the dataset has no labels"}
    assert load_file(folder / "distil/student.safetensors") == {}
    (folder / "finetune/metrics.json").write_bytes(kept)
