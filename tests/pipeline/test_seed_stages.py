"""An experiment swept over seeds through real DVC: a seed added reruns nothing old, and all seeds are one row."""

import re
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from cl_core.resolve import RUN_LIST, write_resolved
from pipelines.dvc_repo import child_environment
from pipelines.planning import plan_run
from pipelines.project.write import STATIC, TEMPLATES
from pipelines.stages import run_stage
from tests.conftest import EXPERIMENT

# DVC asks pygtrie for the value of a missing step, which pygtrie means to turn into an error one day.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")

TRAINED = ("views", "pretrain")


def dvc(folder, *arguments, code=0):
    """What DVC printed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output):
    return set(re.findall(r"Running stage '(.*)'", output))


def of(*runs):
    return {f"{stage}@{run}" for run in runs for stage in TRAINED}


def lock(folder):
    return YAML(typ="safe").load(folder / "dvc.lock")["stages"]


def outputs(folder, run):
    files = [path for path in (folder / "artifacts" / "runs" / run).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def set_seeds(folder, seeds):
    (folder / "experiments" / "tiny.yaml").write_text(f"{EXPERIMENT}seeds: {seeds}\n")


@pytest.fixture
def begun(project):
    """A project outside git whose experiment has one seed and has been trained."""
    folder = project()
    for path, template in STATIC.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((TEMPLATES / template).read_bytes())
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    write_resolved(folder)
    for stage in ("ingest", *TRAINED):  # in this process, which has loaded torch
        run_stage(folder, stage, "tiny")
    dvc(folder, "commit", "--force", "ingest", *of("tiny"))
    return folder


def test_a_seed_added_reruns_nothing_old_and_the_report_has_one_row(begun):
    locked, written = lock(begun), outputs(begun, "tiny")
    set_seeds(begun, [0, 1])
    assert f"{RUN_LIST} did not list the runs of these settings" in dvc(begun, "repro", "pretrain@tiny", code=255)
    assert ran(dvc(begun, "repro", "pretrain")) == {"resolve", *of("tiny-s1")}
    assert lock(begun).items() >= locked.items()
    assert outputs(begun, "tiny") == written

    assert plan_run(begun, ["tiny"]).experiments == ["tiny", "tiny-s1"]
    assert plan_run(begun, ["tiny"], [1]).experiments == ["tiny-s1"]
    assert not plan_run(begun).changed & of("tiny", "tiny-s1")
    for stage, run in ((stage, run) for run in ("tiny", "tiny-s1") for stage in ("embed", "linear_eval")):
        run_stage(begun, stage, run)
    run_stage(begun, "report", None)
    page = (begun / "artifacts" / "report" / "index.html").read_text()
    (rows,) = re.findall(r'<table class="results">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[:1]
    assert rows.count("<tr>") == 1
    assert "2 seeds (0, 1)" in rows

    set_seeds(begun, [1])
    plan = plan_run(begun)
    assert plan.experiments == ["tiny-s1"]
    assert not plan.changed & of("tiny-s1")
