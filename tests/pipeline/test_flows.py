"""The run as a Prefect flow: real Prefect with a server of our own, real DVC, stages that are trivial commands.

The settings of the scratch project mean nothing to the engine, so resolving them and reading results are stood in for;
tests/pipeline/test_end_to_end.py runs the same with everything real.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipelines.server import Server

DRIVER = """
import sys, types
row = {"experiment": "a", "linear top-1 %": "87.5", "verdict": "it helped", "protocols": "linear/v1"}
sys.modules["cl_core.report.results"] = types.SimpleNamespace(results_table=lambda folder, names: [row])
sys.modules["pipelines.summary"] = types.SimpleNamespace(print_results=lambda folder, names, console: print(row))
from pipelines import planning
from pipelines.cli import main
planning.bring_resolved_up_to_date = lambda root: None
try:
    main()
finally:
    print("prefect was imported:", "prefect" in sys.modules, flush=True)
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Environment of a Prefect server started the way `contrast run` does it."""
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    own = Server(tmp_path_factory.mktemp("server"))
    environment = dict(os.environ)
    os.environ.clear()  # other tests must not see this server
    os.environ.update(before)
    own.wait()
    yield environment
    own.stop()


def start(project, environment, *arguments):
    """`contrast run --project PROJECT ...` as a process of its own, started in another folder."""
    command = [sys.executable, "-c", DRIVER, "run", "--project", str(project), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project.parent, env=environment, **pipes)


def run(project, environment, *arguments, code=0):
    process = start(project, environment, *arguments)
    output, _ = process.communicate()
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def ask(server, what, **query):
    """Records of a kind, newest first."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{server['PREFECT_API_URL']}/{what}/filter",
        data=json.dumps(query).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.loads(answer.read())


def last_run(server):
    return ask(server, "flow_runs", sort="START_TIME_DESC", limit=1)[0]


def task_states(server):
    """Stage -> (state, tries) of the newest flow run; the server takes in task states with a delay."""
    query = {"flow_runs": {"id": {"any_": [last_run(server)["id"]]}}}
    end = time.monotonic() + 20
    while True:
        runs = ask(server, "task_runs", **query)
        if runs and all(task["state_type"] not in ("RUNNING", "SCHEDULED") for task in runs):
            return {task["name"]: (task["state_name"], task["run_count"]) for task in runs}
        assert time.monotonic() < end, runs
        time.sleep(0.2)


def states_shown(output):
    """Stage -> last state in the lines that a run prints where there is no terminal."""
    stages = ("ingest", "pretrain@a", "pretrain@b", "report")
    lines = [line for line in output.splitlines() if line.split(" ")[0] in stages]
    return {line.split()[0]: line[25:36].strip() for line in lines}


def start_and_sleep(project, environment):
    """A run in which pretrain@a is asleep: (process of the run, process number of the stage)."""
    (project / "a.txt").write_text("sleep 120\n")
    process = start(project, environment)
    log = project / ".contrast" / "logs" / "pretrain@a.log"
    end = time.monotonic() + 120
    while "sleeping" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    return process, int(log.read_text().split()[-1])


def test_each_task_says_what_became_of_its_stage_and_results_are_artifacts(scratch, server):
    (scratch / "artifacts" / "report").mkdir(parents=True)
    (scratch / "artifacts" / "report" / "index.html").write_text("<html></html>")
    output = run(scratch, server)
    assert set(states_shown(output).values()) == {"ran"}
    assert "87.5" in output
    assert str(scratch / "artifacts" / "report" / "index.html") in output.replace("\n", "")
    assert {state for state, _ in task_states(server).values()} == {"Ran"}
    record = last_run(server)
    assert record["state_type"] == "COMPLETED"
    assert any(tag.startswith("host:") for tag in record["tags"])
    artifacts = {artifact["key"]: artifact for artifact in ask(server, "artifacts")}
    assert "87.5" in json.dumps(artifacts["results"]["data"])
    assert "index.html" in artifacts["report"]["data"]

    (scratch / "a.txt").write_text("say changed\n")
    assert states_shown(run(scratch, server)) == {
        "ingest": "up to date",
        "pretrain@a": "ran",
        "pretrain@b": "up to date",
        "report": "ran",
    }
    (scratch / "a.txt").write_text("say a\n")
    run(scratch, server)
    states = {stage: state for stage, (state, _) in task_states(server).items()}
    assert states == {
        "ingest": "Up to date",
        "pretrain@a": "Restored",
        "pretrain@b": "Up to date",
        "report": "Restored",
    }


def test_a_failing_stage_lets_independent_ones_finish_and_is_not_tried_again_if_that_cannot_help(scratch, server):
    (scratch / "a.txt").write_text("say error: encoder.width 0 is not positive\nfail 1\n")
    output = run(scratch, server, code=1)
    shown = states_shown(output)
    assert shown == {"ingest": "ran", "pretrain@a": "failed", "pretrain@b": "ran", "report": "not run"}
    assert "error: pretrain@a failed (exit 1): encoder.width 0 is not positive" in output
    states = task_states(server)
    assert states["pretrain@a"] == ("Failed", 1)
    assert states["report"][0] == "NotReady"
    assert last_run(server)["state_type"] == "FAILED"
    assert "encoder.width" in (scratch / ".contrast" / "logs" / "pretrain@a.log").read_text()


def test_a_stage_that_crashes_is_tried_again(scratch, server):
    (scratch / "a.txt").write_text("fail-once 70\nsay better now\n")
    output = run(scratch, server)
    assert states_shown(output)["pretrain@a"] == "ran"
    assert task_states(server)["pretrain@a"] == ("Ran", 2)


def test_a_parent_that_ran_to_the_same_outputs_counts_as_up_to_date(finished, server):
    script = finished / "ingest.txt"
    script.write_text(f"{script.read_text()}# a comment that does not reach the output\n")
    shown = states_shown(run(finished, server))
    assert shown == {"ingest": "ran", "pretrain@a": "up to date", "pretrain@b": "up to date", "report": "up to date"}
    assert not (finished / ".contrast" / "logs" / "report.log").exists()  # DVC was not even asked


def test_one_experiment_runs_its_own_stages_and_the_shared_ones(scratch, server):
    shown = states_shown(run(scratch, server, "a", code=1))  # this report needs both, so it fails
    assert shown == {"ingest": "ran", "pretrain@a": "ran", "report": "failed"}
    assert not (scratch / "out" / "b").exists()
    assert "no experiment is called 'nobody'; there are: a, b" in run(scratch, server, "nobody", code=1)


def test_independent_stages_run_side_by_side_up_to_the_limit(scratch, server):
    for name in ("a", "b"):
        (scratch / f"{name}.txt").write_text("meet\n")  # each returns only when the other has started
    assert set(states_shown(run(scratch, server, "--jobs", "2")).values()) == {"ran"}


def test_the_first_experiment_ends_before_the_last_one_trains(scratch, server):
    text = (scratch / "dvc.yaml").read_text()
    judge = "  judge:\n    foreach: ${experiments}\n    do:\n      cmd: python job.py ${item}.txt out/${item}/judged\n"
    judge += "      deps: ['out/${item}/encoder']\n      outs: ['out/${item}/judged']\n"
    (scratch / "dvc.yaml").write_text(text.replace("  report:\n", f"{judge}  report:\n"))
    lines = [line.split() for line in run(scratch, server, "--jobs", "1").splitlines()]
    ran = [line[0] for line in lines if line[1:2] == ["ran"]]
    assert ran.index("judge@a") < ran.index("pretrain@b")


def test_ctrl_c_stops_the_running_stages_and_exits_with_130(finished, server):
    process, job = start_and_sleep(finished, server)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping" in output
    assert "Traceback" not in output
    assert not psutil.pid_exists(job)
    assert json.loads((finished / ".dvc" / "tmp" / "rwlock").read_text()) == {}
    assert last_run(server)["state_type"] == "CRASHED"


def test_a_second_run_names_the_first_and_after_sigkill_the_doctor_closes_its_record(finished, server):
    process, job = start_and_sleep(finished, server)
    assert f"already runs as pid {process.pid}" in run(finished, server, code=1)
    stage = psutil.Process(job)
    process.kill()
    process.communicate()
    stage.wait(30)  # no stage lives on
    name = last_run(server)["name"]
    assert last_run(server)["state_type"] == "RUNNING"
    doctor = [sys.executable, "-c", DRIVER, "doctor", "--fix", "--project", str(finished)]
    done = subprocess.run(doctor, env=server, capture_output=True, text=True, check=False)
    assert f"flow runs without a process: {name}" in done.stdout, done.stdout + done.stderr
    assert last_run(server)["state_type"] == "CRASHED"


def test_with_nothing_to_do_and_no_server_prefect_is_not_even_imported(finished):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    output = run(finished, environment)
    assert set(states_shown(output).values()) == {"up to date"}
    assert "prefect was imported: False" in output
    assert not (finished / ".contrast" / "prefect").exists()


def test_a_server_that_does_not_answer_is_explained_before_anything_runs(scratch):
    output = run(scratch, {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}, code=1)
    assert "no Prefect server answers at PREFECT_API_URL http://127.0.0.1:1/api" in output
    assert "unset the variable" in output
    assert not (scratch / "out").exists()


def test_the_deployment_names_no_folder_and_an_importable_flow():
    text = (Path(__file__).parents[2] / "prefect.yaml").read_text()
    entrypoint = next(line.split(": ")[1] for line in text.splitlines() if "entrypoint:" in line)
    module, _, flow = entrypoint.rpartition(".")
    assert (module, flow) == ("pipelines.flows", "pipeline")
    uncommented = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert "/" not in uncommented
