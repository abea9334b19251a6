"""An experiment that is made to fail is called a loss while it trains, half way, on the terminal and in the report."""

import io
import json

import pytest
from rich.console import Console

from cl_core.errors import NoGainError
from cl_core.report.collect import collect
from cl_core.report.groups import group_seeds
from cl_core.report.verdict import verdict
from pipelines.stages import run_stage
from pipelines.summary import print_results

EXPERIMENT = """\
method: {name: simclr, hidden_dim: 16, out_dim: 8}
encoder: {name: resnet8, width: 4}
loss: {name: nt_xent, temperature: 0.5}
views: {chains: {augment: [{name: random_resized_crop, scale: SCALE}, {name: color_jitter}]}}
optimizer: {name: sgd, lr: RATE}
schedule: {epochs: 4, warmup_epochs: 0}
train:
  {batch_size: 64, precision: fp32, channels_last: false, compile: false, log_every: 40, knn_every: 2, on_no_gain: warn}
"""
CROPS_OF_NOTHING = EXPERIMENT.replace("SCALE", "[0.001, 0.002]").replace("RATE", "1.0")
WILD_RATE = EXPERIMENT.replace("SCALE", "[0.2, 1.0]").replace("RATE", "1000.0")
STAGES = ("resolve", "ingest", "views", "pretrain", "embed", "linear_eval")


@pytest.fixture
def failing(project):
    """A function that writes the project and runs its stages up to one."""

    def run(last, experiment):
        folder = project({"experiments/failing.yaml": experiment})
        params = folder / "params.yaml"
        params.write_text(params.read_text().replace("[tiny]", "[failing]"))
        for stage in STAGES[: STAGES.index(last) + 1]:
            run_stage(folder, stage, None if stage in ("resolve", "ingest") else "failing")
        return folder

    return run


@pytest.mark.parametrize(
    ("experiment", "edits"),
    [
        (CROPS_OF_NOTHING, ["milder views (", "and more than 76 updates (train.batch_size 32 in place of 64)"]),
        (WILD_RATE, ["a learning rate that can be learnt with (4000 at a batch of 256", "and milder views ("]),
    ],
    ids=["crops of nothing", "wild rate"],
)
def test_what_destroys_the_features_is_called_a_loss_early_and_at_the_end(failing, capsys, experiment, edits):
    folder = failing("linear_eval", experiment)
    said = capsys.readouterr().out
    pretrained = folder / "artifacts" / "runs" / "failing" / "pretrain"
    training = json.loads((pretrained / "encoder.json").read_text())["training"]
    metrics = json.loads((pretrained / "metrics.json").read_text())
    half = training["steps"] // 2
    text = next(r["text"] for r in training["remarks"] if r["step"] == half and r["text"].startswith("half of the"))
    assert text.startswith("half of the updates have ")
    assert "than untrained: kNN 0." in text
    assert all(edit in text.partition("most likely to help: ")[2] for edit in edits)
    assert f"at step {half} of {training['steps']}: {text}" in said
    assert metrics["untrained"]["knn_top1"] > metrics["knn_top1"]
    (group,) = group_seeds(collect(folder / "artifacts", ["failing"]))
    assert verdict(group).state == "worse"
    terminal = io.StringIO()
    print_results(folder / "artifacts", ["failing"], Console(file=terminal, width=80))
    first, second, *_ = terminal.getvalue().splitlines()
    assert first.startswith("failing: lost ")
    assert second.startswith(f"failing: at step {training['steps']} of {training['steps']}: training has")
    run_stage(folder, "report", None)
    page = (folder / "artifacts" / "report" / "index.html").read_text()
    assert '<p class="lead">failing lost ' in page
    assert "half of the updates have" in page


def test_on_no_gain_stop_ends_it_half_way(failing):
    with pytest.raises(
        NoGainError, match=r"half of the updates have .*: kNN 0\.\d+ against 0\.\d+ untrained.*rate that can be learnt"
    ):
        failing("pretrain", WILD_RATE.replace("on_no_gain: warn", "on_no_gain: stop"))
