"""Pretraining killed at random moments and continued gives the encoder of an uninterrupted run, byte for byte."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import EXPERIMENT

TRAIN = """\
schedule: {epochs: 6, warmup_epochs: 1}
train: {batch_size: 64, precision: fp32, save_every: 3, log_every: 2}
"""
METHODS = {
    "simclr": EXPERIMENT.partition("schedule:")[0] + TRAIN,
    "byol": "method: {name: byol, hidden_dim: 32, out_dim: 16}\nencoder: {name: resnet8, width: 4}\n"
    "views: {recipe: {name: byol}}\n" + TRAIN,
    "jigsaw": "method: {name: jigsaw}\nencoder: {name: resnet8, width: 4}\n" + TRAIN,
}


@pytest.mark.parametrize("name", METHODS)
def test_three_kills_do_not_change_the_encoder(project, contrast, name):
    folder = project({"experiments/tiny.yaml": METHODS[name]})
    for stage in (["resolve"], ["ingest"], ["views", "tiny"]):
        done = contrast(folder, "stage", *stage)
        assert done.returncode == 0, done.stdout + done.stderr
    started = time.monotonic()
    assert contrast(folder, "stage", "pretrain", "tiny").returncode == 0
    duration = time.monotonic() - started
    out = folder / "artifacts" / "runs" / "tiny" / "pretrain"
    expected = {file: (out / file).read_bytes() for file in ("encoder.safetensors", "curves.csv", "encoder.json")}
    for file in expected:
        (out / file).unlink()

    moments = random.Random(name)  # noqa: S311 - when to kill is no secret
    for _ in range(3):
        command = [sys.executable, "-m", "pipelines", "stage", "pretrain", "tiny"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(duration * moments.uniform(0.5, 0.95))
            process.send_signal(signal.SIGKILL)
    done = contrast(folder, "stage", "pretrain", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    for file, content in expected.items():
        assert (out / file).read_bytes() == content, file


def test_a_stop_by_signal_saves_says_how_to_go_on_and_leaves_no_lock(project, contrast):
    text = METHODS["simclr"].replace("epochs: 6", "epochs: 2000")
    folder = project({"experiments/tiny.yaml": text})
    for stage in (["resolve"], ["ingest"], ["views", "tiny"]):
        assert contrast(folder, "stage", *stage).returncode == 0
    for how in (signal.SIGTERM, signal.SIGINT):
        command = [sys.executable, "-m", "pipelines", "stage", "pretrain", "tiny"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, cwd=folder, **pipes) as process:
            while "images/s" not in process.stdout.readline():  # the first figures: training is under way
                assert process.poll() is None
            process.send_signal(how)
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 75, output
        assert "run the same command to continue" in output
        assert "Traceback" not in output
