"""Looking at a project through DVC, running its stages, stopping them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cl_core.errors import ConfigError, ContrastError
from pipelines import leash
from pipelines.dvc_repo import (
    Outcome,
    Plan,
    Runner,
    Stage,
    StageFailed,
    Stopped,
    child_environment,
    end_group,
    lock_holders,
    look,
    recorded_outputs,
)

# DVC asks pygtrie for the value of a missing step, which pygtrie means to turn into an error one day.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")

IGNORES_SIGNALS = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def runner(project):
    return Runner(project, project / "logs")


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_plan_lists_parents_first_and_leaves_the_always_changed_stage_out(scratch):
    plan = look(scratch)
    names = [stage.name for stage in plan.stages]
    assert set(names) == {"ingest", "pretrain@a", "pretrain@b", "report"}
    for stage in plan.stages:
        assert all(names.index(parent) < names.index(stage.name) for parent in stage.parents)
    assert set(plan.stages[-1].parents) == {"pretrain@a", "pretrain@b"}
    assert plan.changed == set(names)


def test_nothing_is_changed_after_a_run_until_an_input_changes(finished):
    plan = look(finished)
    assert plan.changed == set()
    assert plan.outputs["ingest"] == recorded_outputs(finished, "ingest")
    (finished / "a.txt").write_text("say something else\n")
    (finished / "out" / "data").write_text("edited by hand")
    plan = look(finished)
    assert plan.changed == {"ingest", "pretrain@a", "pretrain@b"}
    assert "ingest" not in plan.outputs  # what is there is not what dvc.lock describes
    assert "pretrain@a" in plan.outputs


def test_a_stage_runs_is_left_alone_when_unchanged_and_is_restored_when_known(scratch):
    stages = runner(scratch)
    heard = []
    assert stages.run("ingest", heard.append) is Outcome.RAN
    assert "ingest" in heard
    log = stages.log_file("ingest")
    first = log.read_text()
    assert "ingest\n" in first
    assert stages.run("ingest") is Outcome.UP_TO_DATE
    assert log.read_text() == first

    (scratch / "ingest.txt").write_text("say other\n")
    again = runner(scratch)
    assert again.run("ingest") is Outcome.RAN
    assert "other\n" in log.read_text()
    assert "ingest\n" not in log.read_text().splitlines()
    (scratch / "ingest.txt").write_text("say ingest\n")
    assert again.run("ingest") is Outcome.RESTORED


def test_a_failed_stage_is_reported_in_its_own_words_with_its_exit_code(scratch):
    (scratch / "ingest.txt").write_text("say Loading\nsay error: no images in photos; add some\nfail 1\n")
    with pytest.raises(StageFailed, match=r"ingest failed \(exit 1\): no images in photos; add some \[") as caught:
        runner(scratch).run("ingest")
    assert not caught.value.worth_retrying
    (scratch / "ingest.txt").write_text("say out of memory\nfail 70\n")
    with pytest.raises(StageFailed, match=r"\(exit 70\): out of memory") as caught:
        runner(scratch).run("ingest")
    assert caught.value.worth_retrying


def test_a_failure_of_dvc_itself_is_reported_in_dvc_s_words(scratch):
    (scratch / "ingest.txt").unlink()
    with pytest.raises(StageFailed, match=r"No such file or directory: .*ingest\.txt") as caught:
        runner(scratch).run("ingest")
    assert caught.value.exit_code is None


def test_stopping_ends_the_whole_group_leaves_no_lock_and_starts_nothing_more(scratch):
    (scratch / "ingest.txt").write_text("sleep 60\n")
    stages, heard, errors = runner(scratch), [], []

    def run():
        try:
            stages.run("ingest", heard.append)
        except Stopped as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: heard and heard[-1].startswith("sleeping"))
    job = int(heard[-1].split()[-1])
    assert not gone(job)
    assert [holder.stale for holder in lock_holders(scratch)] == [False]
    with pytest.raises(ContrastError, match=r"DVC is at work in .* already \(pid \d+\); wait for it"):
        look(scratch)
    stages.stop()
    thread.join(30)
    assert errors
    assert gone(job)
    assert lock_holders(scratch) == []
    with pytest.raises(Stopped, match="report was not started"):
        stages.run("report")


def test_a_group_that_ignores_polite_signals_is_killed():
    command = [sys.executable, "-c", IGNORES_SIGNALS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        end_group(process, grace=0.3)
        assert process.returncode == -signal.SIGKILL


def test_what_runs_on_a_leash_ends_with_the_process_that_holds_it(tmp_path):
    module = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    (tmp_path / "sleeper.py").write_text(module)
    holder = """
import subprocess, time
from pipelines import leash
subprocess.Popen(leash.command("sleeper"), start_new_session=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        sleeper = int(process.stdout.readline())
        assert not gone(sleeper)
        process.kill()
        process.wait()
        wait_until(lambda: gone(sleeper))


def test_what_is_started_in_the_background_still_hears_that_it_is_to_stop(tmp_path):
    (tmp_path / "sleeper.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    command, environment = leash.command("sleeper"), {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does with `&`
    try:
        process = subprocess.Popen(command, env=environment, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]


def test_a_leash_passes_arguments_and_exit_code_on():
    done = subprocess.run(leash.command("json.tool", "--no-such-option"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_a_user_s_folder_named_like_ours_is_not_imported_for_ours(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    done = subprocess.run(leash.command("dvc", "--version"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_environment_of_a_stage_finds_our_own_commands_first():
    first = child_environment()["PATH"].split(os.pathsep)[0]
    assert first == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("jobs", "set_by_user", "seen"), [(1, None, "None"), (2, None, "3"), (5, None, "1"), (50, None, "1"), (2, "4", "4")]
)
def test_stages_side_by_side_share_the_cores_unless_the_user_has_said_how_many_threads(
    scratch, monkeypatch, jobs, set_by_user, seen
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    (scratch / "ingest.txt").write_text("threads\n")
    heard = []
    Runner(scratch, scratch / "logs", jobs).run("ingest", heard.append)
    assert f"threads {seen}" in heard


def test_torch_takes_the_share_that_a_stage_is_given(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    done = subprocess.run(command, env=child_environment(2), capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_lock_of_a_process_that_is_gone_or_is_not_dvc_is_stale(scratch):
    (scratch / ".dvc" / "tmp").mkdir()
    ours = os.getpid()
    path = scratch / ".dvc" / "tmp" / "rwlock"
    reader, writer = {"pid": 99999999, "cmd": "dvc repro"}, {"pid": ours, "cmd": "dvc repro"}
    path.write_text(json.dumps({"read": {"x": [reader]}, "write": {"y": writer}}))
    assert {holder.pid: holder.stale for holder in lock_holders(scratch)} == {ours: True, 99999999: True}
    path.write_text("not JSON")
    assert lock_holders(scratch) == []


@pytest.mark.parametrize(
    ("remove", "said"),
    [("dvc.yaml", "has no dvc.yaml"), (".dvc", "has no .dvc"), ("params.yaml", "DVC cannot read"), ("", "git init")],
)
def test_a_project_that_dvc_cannot_read_is_explained(scratch, remove, said):
    if remove:
        (scratch / remove).rename(scratch / "elsewhere")
    else:
        (scratch / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(ConfigError, match=said):
        look(scratch)


def test_picking_an_experiment_keeps_the_shared_stages_and_its_own():
    stages = (
        Stage("ingest", ()),
        Stage("pretrain@a", ("ingest",)),
        Stage("pretrain@b", ("ingest",)),
        Stage("report", ("pretrain@a", "pretrain@b")),
    )
    plan = Plan(stages=stages, changed=frozenset({"pretrain@b", "report"}))
    assert plan.experiments == ["a", "b"]
    picked = plan.only(["a"])
    assert [stage.name for stage in picked.stages] == ["ingest", "pretrain@a", "report"]
    assert picked.stages[-1].parents == ("pretrain@a",)
    assert picked.changed == {"report"}


def test_an_unknown_experiment_is_answered_with_the_nearest_name():
    plan = Plan(stages=(Stage("pretrain@simclr", ()),), changed=frozenset())
    with pytest.raises(ConfigError, match="no experiment is called 'simcrl' - did you mean 'simclr'"):
        plan.only(["simcrl"])
