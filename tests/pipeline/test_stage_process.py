"""What `contrast stage` does around a stage: signals, locks, exit codes, ending with DVC. Real processes throughout."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cl_core.errors import ConfigError, ContrastError
from pipelines import stage_process
from pipelines.gpus import gpu_slots
from pipelines.locks import held, locked
from pipelines.project.machine import Machine

# Runs `contrast stage NAME` with the stage function given as source text; importing the real ones takes seconds.
DRIVER = """
import sys, time, types
from pathlib import Path
from cl_core.errors import ConfigError, Interrupted
from pipelines import stage_process

def run_stage(project, stage, experiment, stop):
    print("started", flush=True)
{body}

sys.modules["pipelines.stages"] = types.SimpleNamespace(run_stage=run_stage)
sys.exit(stage_process.run(Path({project!r}), "ingest", None, patience=0.3, period=0.1))
"""
POLLS = """
    while not stop():
        time.sleep(0.05)
    Path("saved").touch()
    raise Interrupted("stopped at step 3; run the same command to continue")
"""
NEVER_POLLS = """
    try:
        time.sleep(60)
    finally:
        Path("cleaned-up").touch()
"""
POLLS_ONCE_AND_HANGS = """
    stop()
    while True:
        time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "params.yaml").write_text("experiments: [a]\n")
    return tmp_path


def driver(folder, body):
    indented = "\n".join(
        f"    {line}" if not line.startswith("    ") else line for line in body.strip("\n").splitlines()
    )
    return DRIVER.format(body=indented, project=str(folder))


def start(folder, body, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", driver(folder, body)], cwd=folder, **pipes, **options)


def end(process):
    output, _ = process.communicate(timeout=60)
    assert isinstance(process.returncode, int)
    return process.returncode, output


def started(process):
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)  # let it come to its first poll
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_polls_saves_and_exits_as_resumable(folder, number):
    process = started(start(folder, POLLS))
    process.send_signal(number)
    code, output = end(process)
    assert code == 75
    assert output == "stopped: stopped at step 3; run the same command to continue\n"
    assert (folder / "saved").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_never_polls_is_interrupted_where_it_is_and_cleans_up(folder, number, expected):
    process = started(start(folder, NEVER_POLLS))
    process.send_signal(number)
    code, output = end(process)
    assert code == expected
    assert "Traceback" not in output
    assert (folder / "cleaned-up").exists()


def test_a_second_signal_ends_a_stage_at_once(folder):
    process = started(start(folder, POLLS_ONCE_AND_HANGS))
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143


def test_a_stage_that_was_complete_when_the_signal_came_is_complete(folder):
    process = started(start(folder, "stop()\ntime.sleep(1)\n"))
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 0


def test_a_mistake_of_the_user_is_told_without_traceback_and_exits_with_1(folder):
    code, output = end(start(folder, "raise ConfigError(['params.yaml:1: wrong', 'params.yaml:2: wrong too'])"))
    assert code == 1
    assert output == "started\nerror: params.yaml:1: wrong\nerror: params.yaml:2: wrong too\n"


def test_any_other_error_comes_with_its_traceback_and_exits_with_70(folder):
    code, output = end(start(folder, "raise ZeroDivisionError('of ours')"))
    assert code == 70
    assert "Traceback" in output
    assert output.endswith("ZeroDivisionError: of ours\n")


def test_outside_a_project_it_says_what_to_do(tmp_path):
    code, output = end(start(tmp_path, "pass"))
    assert code == 1
    assert "is not a contrast project" in output
    assert "contrast init" in output


def test_a_stage_runs_once_at_a_time_and_the_second_names_the_first(folder):
    first = started(start(folder, POLLS))
    assert held(folder / ".contrast" / "locks") == {"ingest": str(first.pid)}
    code, output = end(start(folder, POLLS))
    assert code == 1
    assert output == f"error: stage ingest already runs as pid {first.pid}; wait for it, or stop it first\n"
    first.send_signal(signal.SIGTERM)
    end(first)
    assert held(folder / ".contrast" / "locks") == {}


def test_the_lock_of_a_killed_stage_is_free_again(folder):
    first = started(start(folder, POLLS))
    first.kill()
    end(first)
    assert end(start(folder, "pass"))[0] == 0


def test_a_lock_is_waited_for_a_while(tmp_path):
    entered, path = threading.Event(), tmp_path / "locks" / "embed@a.lock"

    def hold():
        with locked(path, "embed@a"):
            entered.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with pytest.raises(ContrastError, match="embed@a already runs as pid"), locked(path, "embed@a"):
        pass
    with locked(path, "embed@a", patience=20.0):
        thread.join(1)
        assert not thread.is_alive()


@pytest.mark.parametrize("shell", [[], ["/bin/sh", "-c", '"$@"; exit $?', "sh"]], ids=["direct", "through a shell"])
def test_a_stage_ends_when_the_dvc_above_it_is_killed(folder, shell):
    # The process in the middle stands for DVC: it starts the command, through a shell that stays, and waits.
    middle = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", middle, *shell, sys.executable, "-c", driver(folder, NEVER_POLLS)]
    environment = {**os.environ, "DVC_STAGE": "ingest"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as dvc:
        started(dvc)
        family = psutil.Process(dvc.pid).children(recursive=True)
        stage = family[-1]
        assert len(family) == (2 if shell else 1)
        dvc.kill()
        dvc.wait()
        stage.wait(20)
    assert (folder / "cleaned-up").exists()


def test_without_dvc_a_stage_does_not_watch_anybody(folder):
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"  # is gone at once
    body = "time.sleep(1)\nPath('done').touch()\n"
    command = [sys.executable, "-c", starter, sys.executable, "-c", driver(folder, body)]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "started\n"
    assert (folder / "done").exists()


def test_each_stage_gets_a_gpu_of_its_own_and_the_next_one_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    two = {"count": lambda: 2, "folder": tmp_path}
    with gpu_slots("pretrain@a", **two) as first:
        assert (first, os.environ["CUDA_VISIBLE_DEVICES"]) == ([0], "4")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        with gpu_slots("pretrain@b", **two) as second:
            assert (second, os.environ["CUDA_VISIBLE_DEVICES"]) == ([1], "7")
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
            third = []

            def wait():
                with gpu_slots("pretrain@c", **two) as slot:
                    third.append(slot)

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.8)
            assert third == []
        thread.join(20)
    assert third == [[1]]
    assert f"pretrain@c waits for a GPU; in use by pid {os.getpid()}, {os.getpid()}" in capsys.readouterr().out


def test_several_gpus_are_taken_together_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    three = {"count": lambda: 3, "folder": tmp_path}
    with gpu_slots("pretrain@a", 2, **three) as pair:
        assert (pair, os.environ["CUDA_VISIBLE_DEVICES"]) == ([0, 1], "0,1")
        waiting = []

        def wait():
            with gpu_slots("pretrain@b", 2, count=lambda: 3, folder=tmp_path) as slots:
                waiting.append(slots)

        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.8)
        with gpu_slots("pretrain@c", 1, **three) as one:  # the one that is left was not kept by who waits for two
            assert one == [2]
    thread.join(20)
    assert len(waiting[0]) == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with (
        pytest.raises(ConfigError, match=r"run\.devices is 4, and this machine shows 3 GPUs"),
        gpu_slots("d", 4, **three),
    ):
        pass


def test_without_a_gpu_nothing_is_waited_for_and_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpu_slots("pretrain@a", count=lambda: 0, folder=tmp_path / "slots") as slot:
        assert slot == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not (tmp_path / "slots").exists()


def test_no_call_that_only_linux_has_is_unguarded(monkeypatch):
    sources = {path: path.read_text() for path in Path(stage_process.__file__).parent.rglob("*.py")}
    only_linux = re.compile(r"/proc/|prctl\(|pidfd_|os\.sched_|signalfd|inotify|preexec_fn")
    assert [path.name for path, text in sources.items() if only_linux.search(text)] == []
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # asked for by name, and absent on macOS
    assert Machine.this().cores >= 1
