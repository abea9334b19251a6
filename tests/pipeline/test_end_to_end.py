"""A whole project through real DVC and real Prefect: what runs, what does not, and that the bytes are the same."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import EXPERIMENT, PARAMS

STAGES = ["ingest", "views", "pretrain", "embed", "linear_eval", "finetune", "report"]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
RUN = Path("artifacts/runs/tiny")


def command(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def states(output: str) -> dict[str, str]:
    """What the run said last of each stage."""
    return {
        stage: re.findall(rf"^{stage}(?:@tiny)? +(waiting|ran|restored|up to date|failed)", output, re.MULTILINE)[-1]
        for stage in STAGES
    }


def clone(source: Path, target: Path) -> Path:
    """What git would carry: the project's files without state, cache and results."""
    ignored = shutil.ignore_patterns(".contrast", "artifacts", "cache", "tmp", ".git")
    copy = Path(shutil.copytree(source, target, ignore=ignored))
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project made by `contrast init`, made small, and run once."""
    folder = tmp_path_factory.mktemp("end-to-end") / "project"
    command(folder.parent, "pipelines", "init", str(folder))
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "experiments" / "simclr.yaml").unlink()
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    return folder, command(folder, "pipelines", "run")


def test_a_run_ends_with_the_results_and_the_path_of_the_report(finished):
    folder, output = finished
    assert "artifacts/report/index.html" in output
    assert (folder / "artifacts" / "report" / "index.html").stat().st_size > 10_000
    assert "tiny" in output
    assert "Traceback" not in output


def test_the_metrics_have_the_promised_shape(finished):
    folder, _ = finished
    linear = json.loads((folder / RUN / "linear_eval" / "metrics.json").read_text())
    assert linear["protocol"] == "linear/lbfgs-v1"
    assert linear["best_stage"] in linear["stages"]
    assert {"top1", "top1_ci95", "top5", "n"} <= set(linear["test"])
    low, high = linear["test"]["top1_ci95"]
    assert low <= linear["test"]["top1"] <= high
    assert {"dim", "validation_top1", "test_top1"} <= set(next(iter(linear["stages"].values())))
    assert linear["knn"]["protocol"].startswith("knn/instdisc-v1")
    assert {"top1", "knn_top1"} <= set(linear["baselines"]["random_init"])
    assert "top1" in linear["baselines"]["raw_pixels"]
    finetune = json.loads((folder / RUN / "finetune" / "metrics.json").read_text())
    assert finetune["protocol"] == "finetune/lpft-v2"
    promised = {"frozen", "fine_tuned", "best", "random_init", "supervised", "raw_pixels"}
    assert all(promised == set(result["competitors"]) for result in finetune["budgets"].values())


def test_a_second_run_runs_no_stage_and_says_so_for_each(finished):
    folder, _ = finished
    before = digest(folder / "dvc.lock")
    output = command(folder, "pipelines", "run")
    for stage in STAGES:
        line = next(line for line in output.splitlines() if stage in line)
        assert "up to date" in line.lower()
    assert digest(folder / "dvc.lock") == before


def test_dvc_names_nothing_but_resolve_and_repro_runs_nothing_else(finished):
    folder, _ = finished
    status = json.loads(command(folder, "dvc", "status", "--json"))
    assert set(status) == {"resolve"}
    output = command(folder, "dvc", "repro")
    assert [line for line in output.splitlines() if line.startswith("Running stage")] == ["Running stage 'resolve':"]


def test_dvc_repro_in_a_fresh_clone_gives_the_same_encoder_and_metrics(finished, tmp_path):
    folder, _ = finished
    other = clone(folder, tmp_path / "clone")
    (other / "dvc.lock").unlink()
    command(other, "dvc", "repro")
    results = (
        "pretrain/encoder.safetensors",
        "pretrain/curves.csv",
        "linear_eval/metrics.json",
        "finetune/metrics.json",
    )
    for name in results:
        assert digest(other / RUN / name) == digest(folder / RUN / name), name
    assert not (other / ".contrast" / "prefect").exists()


def test_push_and_pull_restore_everything_and_nothing_but_resolve_runs(finished, tmp_path):
    folder, _ = finished
    remote = tmp_path / "remote"
    command(folder, "dvc", "remote", "add", "--force", "--default", "store", str(remote))
    command(folder, "dvc", "push")
    other = clone(folder, tmp_path / "clone")
    command(other, "dvc", "pull")
    assert digest(other / RUN / "pretrain/encoder.safetensors") == digest(folder / RUN / "pretrain/encoder.safetensors")
    output = command(other, "dvc", "repro")
    assert [line for line in output.splitlines() if line.startswith("Running stage")] == ["Running stage 'resolve':"]


def test_another_temperature_reruns_pretraining_and_what_follows_but_not_views(finished, tmp_path):
    folder, _ = finished
    other = Path(shutil.copytree(folder, tmp_path / "edited", symlinks=True))
    path = other / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("temperature: 0.5", "temperature: 0.2"))
    command(other, "pipelines", "stage", "resolve")
    changed = set(json.loads(command(other, "dvc", "status", "--json")))
    assert changed >= {"pretrain@tiny", "embed@tiny", "linear_eval@tiny", "finetune@tiny"}
    assert not changed & {"ingest", "views@tiny"}


def test_adding_one_image_to_a_folder_source_reruns_ingest_and_what_follows(finished, tmp_path):
    folder, _ = finished
    other = clone(folder, tmp_path / "photos-project")
    photos = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for label, colour in enumerate(("red", "green")):
        (photos / colour).mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(photos / colour / f"{index}.png")
    params = other / "params.yaml"
    source = f"source: {{name: image_folder, path: {photos}}}"
    params.write_text(params.read_text().replace("source: {name: digits}", source))
    assert states(command(other, "pipelines", "run")) == dict.fromkeys(STAGES, "ran")
    assert states(command(other, "pipelines", "run")) == dict.fromkeys(STAGES, "up to date")
    shutil.copy(photos / "red" / "0.png", photos / "green" / "one-more.png")
    assert states(command(other, "pipelines", "run")) == dict.fromkeys(STAGES, "ran")
