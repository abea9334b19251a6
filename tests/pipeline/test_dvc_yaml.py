"""The graph in dvc.yaml under real DVC: which change reruns which stages, with stages that only write files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dvc_repo import look
from pipelines.project.write import STATIC, TEMPLATES

# DVC asks pygtrie for the value of a missing step, which pygtrie means to turn into an error one day.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")

CHAIN = ("views", "pretrain", "embed", "linear_eval", "finetune")
# Stands for `contrast`: each stage copies what it is made from into what it leaves, and notes the time.
STAND_IN = f"""\
#!{sys.executable}
import json, sys, time
from pathlib import Path

stage, name = sys.argv[2], (sys.argv[3:] or [""])[0]
A = Path("artifacts")
OUTPUTS = {{
    "views": ["plan.json", "preview.png", "statistics.json"],
    "pretrain": [
        "encoder.safetensors", "method.safetensors", "encoder.json", "metrics.json", "curves.csv", "panels/panels.json"
    ],
    "embed": ["train.safetensors", "embed.json"],
    "linear_eval": ["metrics.json", "predictions.safetensors"],
    "diagnose": ["findings.json"],
    "finetune": ["metrics.json", "classifiers/classifiers.json", "predictions.safetensors"],
    "distil": ["metrics.json", "student.safetensors"],
}}
INPUTS = {{
    "views": [],
    "pretrain": ["views/plan.json"],
    "embed": ["pretrain/encoder.safetensors", "pretrain/method.safetensors"],
    "linear_eval": ["embed/train.safetensors"],
    "finetune": ["pretrain/method.safetensors"],
    "diagnose": ["pretrain/method.safetensors"],
    "distil": ["finetune/classifiers/classifiers.json"],
}}

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

def resolve():
    settings = json.loads(Path("settings.json").read_text())
    files = {{A / "resolved" / key: value for key, value in settings.items()}}
    for path, value in files.items():
        if not path.exists() or path.read_text() != json.dumps(value):
            write(path, json.dumps(value))

if stage == "resolve":
    resolve()
elif stage == "ingest":
    write(A / "dataset" / "manifest.json", (A / "resolved" / "ingest.json").read_text())
elif stage == "report":
    write(A / "report" / "index.html", "".join(map(str, sorted((A / "runs").rglob("metrics.json")))))
else:
    run = A / "runs" / name
    made_from = (A / "resolved" / name / f"{{stage}}.json").read_text()
    made_from += "".join((run / path).read_text() for path in INPUTS[stage])
    for path in OUTPUTS[stage]:
        is_json = path == "metrics.json"
        write(run / stage / path, json.dumps({{"from": made_from}}) if is_json else "step,loss\\n1,2\\n" + made_from)
    write(run / stage / "timing.json", str(time.time()))
"""


def write_project(folder, experiments):
    """A project with the real dvc.yaml; settings.json says what the stand-in's resolve writes."""
    for path, template in STATIC.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TEMPLATES / template, folder / path)
    set_experiments(folder, experiments)
    (folder / "bin").mkdir()
    (folder / "bin" / "contrast").write_text(STAND_IN)
    (folder / "bin" / "contrast").chmod(0o755)
    return folder


def set_experiments(folder, experiments, diagnose=(), distil=()):
    # A variable of the environment in params.yaml must not be taken by DVC for one of its own.
    path = "${NOT_DVC_S}"
    lists = {"experiments": experiments, "diagnose": list(diagnose), "distil": list(distil)}
    (folder / "params.yaml").write_text(json.dumps({**lists, "data": {"source": {"path": path}}}))
    runs = {"all": experiments, "diagnose": list(diagnose), "distil": list(distil)}
    (folder / "runs.yaml").write_text(json.dumps({"runs": runs}))
    settings = {"ingest.json": 0, "report.json": experiments}
    settings |= {f"{name}/{stage}.json": stage for name in experiments for stage in (*CHAIN, "diagnose")}
    settings |= {f"{name}/distil.json": "distil" for name in distil}
    (folder / "settings.json").write_text(json.dumps(settings))


def change(folder, resolved, value):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {resolved: value}))


def dvc(folder, *arguments):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(folder):
    """Names of the stages that ran."""
    lines = dvc(folder, "repro").splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


def outdated(folder):
    return set(json.loads(dvc(folder, "status", "--json")))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Two experiments, all run, as a project inside a git repository whose root is a project too."""
    root = tmp_path_factory.mktemp("dvc-yaml")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    write_project(root, ["outer"])
    folder = write_project(root / "benchmarks" / "inner", ["a", "b"])
    return root, folder, repro(folder)


@pytest.fixture
def ran(once, tmp_path):
    """A copy of it outside git."""
    folder = Path(shutil.copytree(once[1], tmp_path / "project", ignore=shutil.ignore_patterns("tmp")))
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


def test_the_first_run_runs_everything_and_then_only_resolve_is_ever_outdated(once):
    _, folder, first = once
    assert first == {"resolve", "ingest", "report", *(f"{stage}@{name}" for stage in CHAIN for name in "ab")}
    assert outdated(folder) == {"resolve"}
    assert repro(folder) == {"resolve"}
    assert outdated(folder) == {"resolve"}


def test_a_project_inside_another_is_none_of_its_business(once):
    root, folder, _ = once
    assert look(root).experiments == ["outer"]
    assert look(folder).changed == set()


def test_outside_git_it_is_the_same(ran):
    assert outdated(ran) == {"resolve"}


def test_a_changed_setting_reruns_the_stage_that_reads_it_and_what_follows(ran):
    change(ran, "a/pretrain.json", "another temperature")
    assert repro(ran) == {"resolve", "pretrain@a", "embed@a", "linear_eval@a", "finetune@a", "report"}
    change(ran, "b/linear_eval.json", "another grid")
    assert repro(ran) == {"resolve", "linear_eval@b", "report"}


def test_a_changed_source_reruns_everything(ran):
    change(ran, "ingest.json", "one more image")
    assert len(repro(ran)) == 2 + 2 * len(CHAIN) + 1


def test_an_experiment_more_runs_its_own_stages_and_the_report(ran):
    set_experiments(ran, ["a", "b", "c"])
    assert repro(ran) == {"resolve", *(f"{stage}@c" for stage in CHAIN), "report"}


def test_only_listed_experiments_are_diagnosed_again_after_each_training(ran):
    set_experiments(ran, ["a", "b"], diagnose=["b"])
    assert repro(ran) == {"resolve", "diagnose@b", "report"}
    change(ran, "b/pretrain.json", "another temperature")
    assert "diagnose@b" in repro(ran)
    assert "diagnose@b" in {stage.name for stage in look(ran).stages}


def test_only_a_distilled_experiment_has_that_stage_and_it_follows_fine_tuning(ran):
    set_experiments(ran, ["a", "b"], distil=["b"])
    assert repro(ran) == {"resolve", "distil@b", "report"}
    assert repro(ran) == {"resolve"}
    change(ran, "b/distil.json", "another temperature")
    assert repro(ran) == {"resolve", "distil@b", "report"}
    change(ran, "b/finetune.json", "another fraction")
    assert repro(ran) == {"resolve", "finetune@b", "distil@b", "report"}
    set_experiments(ran, ["a", "b"])
    assert [stage.name for stage in look(ran).stages if "distil" in stage.name] == []


def test_times_are_nobody_s_input(ran):
    timings = list((ran / "artifacts").rglob("timing.json"))
    assert len(timings) == 2 * len(CHAIN)
    for path in timings:
        path.write_text("another day")
    assert outdated(ran) == {"resolve"}
    assert repro(ran) == {"resolve"}


def test_a_lost_output_comes_back_without_running_anything(ran):
    encoder = ran / "artifacts" / "runs" / "a" / "pretrain" / "encoder.safetensors"
    content = encoder.read_bytes()
    encoder.unlink()
    assert "pretrain@a" in outdated(ran)
    assert repro(ran) == {"resolve"}
    assert encoder.read_bytes() == content


def test_metrics_and_curves_are_dvc_s_too(ran):
    metrics = json.loads(dvc(ran, "metrics", "show", "--json"))
    shown = {str(path) for path in next(iter(metrics.values()))["data"]}
    for stage in ("pretrain", "linear_eval", "finetune"):
        assert f"artifacts/runs/a/{stage}/metrics.json" in shown
    plots = dvc(ran, "plots", "show", "--json")
    assert "artifacts/runs/a/pretrain/curves.csv" in plots
