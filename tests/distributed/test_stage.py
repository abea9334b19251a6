"""`contrast stage pretrain` in several processes: started by torchrun, or by the stage itself. Real ones throughout."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipelines.locks import held
from pipelines.ranks import Place, holds_lock

OUT = "artifacts/runs/tiny/pretrain"
PARAMS = """\
experiments: [tiny]
diagnose: []
distil: []
data:
  source: {name: digits}
  size: 16
"""
EXPERIMENT = """\
method: {name: simclr, hidden_dim: 16, out_dim: 8}
encoder: {name: resnet8, width: 4}
loss: {name: nt_xent, temperature: 0.5}
views:
  recipe: {name: simclr-cifar}
optimizer: {name: sgd, lr: 0.005}
schedule: {epochs: 1, warmup_epochs: 0}
train: {batch_size: 64, precision: fp32, channels_last: false, knn_every: 0, save_every: 5, log_every: 1}
"""


def stage(folder, name, *more, starter=()):
    command = [sys.executable, *(starter or ("-m", "pipelines")), "stage", name, *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A small project, ready for pretraining."""
    folder = tmp_path_factory.mktemp("template") / "project"
    (folder / "experiments").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    for command in (("resolve",), ("ingest",), ("views", "tiny")):
        done = stage(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def prepared(template, tmp_path, request):
    """A copy of it with settings of `run`."""
    shutil.copytree(template, tmp_path / "project")
    with (tmp_path / "project" / "params.yaml").open("a") as file:
        file.write(f"run: {request.param}\n")
    return tmp_path / "project"


def lengthen(folder, epochs):
    path = folder / "artifacts/resolved/tiny/pretrain.json"
    path.write_text(path.read_text().replace('"epochs": 1', f'"epochs": {epochs}'))


def losses(folder):
    """Of the first steps; later ones differ by more, as rounding grows with every step."""
    lines = (folder / OUT / "curves.csv").read_text().splitlines()
    return [float(row["loss"]) for row in csv.DictReader(lines)][:5]


@pytest.mark.parametrize("prepared", ["{devices: 1}"], indirect=True)
def test_under_torchrun_two_processes_train_what_one_trains(prepared):
    assert stage(prepared, "pretrain", "tiny").returncode == 0
    expected = losses(prepared)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pipelines")
    done = stage(prepared, "pretrain", "tiny", starter=torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training for ") == 1
    assert losses(prepared) == pytest.approx(expected, rel=1e-5)
    refused = stage(prepared, "embed", "tiny", starter=torchrun)
    assert refused.returncode == 1
    assert "error: stage embed runs in one process, and several have been started" in refused.stderr


@pytest.mark.parametrize("prepared", ["{devices: 2}"], indirect=True)
def test_devices_2_starts_both_stops_them_with_one_signal_and_continues(prepared):
    lengthen(prepared, 2)
    command = [sys.executable, "-m", "pipelines", "stage", "pretrain", "tiny"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=prepared, **pipes) as process:
        while "training for" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 2
        assert held(prepared / ".contrast" / "locks") == {"pretrain@tiny": str(process.pid)}
        while not list(prepared.glob(".contrast/checkpoints/*/*/step-*.ckpt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.count("stopped: stopped at step ") == 1
    assert "Traceback" not in said
    assert not any(child.is_running() for child in family)
    done = stage(prepared, "pretrain", "tiny")
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stdout


@pytest.mark.parametrize("prepared", ["{devices: 2}"], indirect=True)
def test_when_one_process_is_killed_the_stage_ends_and_when_the_stage_is_killed_they_end(prepared):
    lengthen(prepared, 400)
    command = [sys.executable, "-m", "pipelines", "stage", "pretrain", "tiny"]
    lines = {"stdout": subprocess.PIPE, "text": True}
    for victim in ("rank", "stage"):
        with subprocess.Popen(command, cwd=prepared, stderr=subprocess.DEVNULL, **lines) as process:
            while "training for" not in (line := process.stdout.readline()) and "continuing" not in line:
                assert line
            family = psutil.Process(process.pid).children(recursive=True)
            (family[1] if victim == "rank" else psutil.Process(process.pid)).kill()
            code = process.wait(60)
        assert code == (137 if victim == "rank" else -signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=30)[1] == []


def test_who_is_who_is_read_from_torchrun_and_from_srun_but_not_from_a_batch_script():
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of_environment(torchrun) == Place(rank=5, devices=4, num_nodes=2)
    srun = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert Place.of_environment(srun) == Place(rank=0, devices=4, num_nodes=2)
    assert holds_lock(Place.of_environment(srun))
    assert not holds_lock(Place.of_environment(torchrun))
    assert Place.of_environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}) is None
    assert Place.of_environment({}) is None


@pytest.mark.parametrize("prepared", ["{num_nodes: 2}"], indirect=True)
def test_several_machines_without_a_meeting_point_are_an_error(prepared):
    done = stage(prepared, "pretrain", "tiny")
    assert done.returncode == 1
    assert "error: run.num_nodes is 2, and the environment has no NODE_RANK and no MASTER_ADDR" in done.stderr


@pytest.mark.parametrize("prepared", ["{num_nodes: 2}"], indirect=True)
def test_two_machines_meet(prepared):
    """Each with a process of its own, both on this machine."""
    from pool import free_port

    meeting = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "pipelines", "stage", "pretrain", "tiny"]
    lines = {"stdout": subprocess.PIPE, "text": True}
    nodes = [{**meeting, "NODE_RANK": str(node)} for node in range(2)]
    processes = [subprocess.Popen(command, cwd=prepared, env=node, **lines) for node in nodes]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(output.count("training for") for output in outputs) == 1
