"""The flow on the workers of a Dask cluster: one on this machine, and one that was there before."""

import re
import subprocess
import sys

import pytest
from test_flows import ask, last_run, run, server, states_shown, task_states  # noqa: F401 - server is a fixture

pytest.importorskip("prefect_dask")


@pytest.fixture
def on_dask(scratch):
    params = scratch / "params.yaml"
    params.write_text(params.read_text().replace("retries: 1", "retries: 1, task_runner: dask"))
    return scratch


def test_stages_run_on_workers_side_by_side_and_are_up_to_date_afterwards(on_dask, server):  # noqa: F811
    for name in ("a", "b"):
        (on_dask / f"{name}.txt").write_text("meet\nthreads\n")  # each returns only when the other has started
    environment = {key: value for key, value in server.items() if key != "OMP_NUM_THREADS"}
    assert set(states_shown(run(on_dask, environment)).values()) == {"ran"}
    assert {state for state, _ in task_states(server).values()} == {"Ran"}
    assert (on_dask / "out" / "report").is_file()
    (on_dask / "a.txt").write_text("say changed\n")
    shown = states_shown(run(on_dask, server))
    assert shown == {"ingest": "up to date", "pretrain@a": "ran", "pretrain@b": "up to date", "report": "ran"}


def test_a_failure_comes_back_in_the_words_of_the_stage_and_others_finish(on_dask, server):  # noqa: F811
    (on_dask / "a.txt").write_text("say error: encoder.width 0 is not positive\nfail 1\n")
    output = run(on_dask, server, code=1)
    shown = states_shown(output)
    assert shown == {"ingest": "ran", "pretrain@a": "failed", "pretrain@b": "ran", "report": "not run"}
    assert "error: pretrain@a failed (exit 1): encoder.width 0 is not positive" in output
    assert task_states(server)["pretrain@a"] == ("Failed", 1)


def test_a_scheduler_that_is_there_is_used(on_dask, server):  # noqa: F811
    code = (
        "from distributed import LocalCluster; import time\n"
        "if __name__ == '__main__':\n"
        "    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
        "    print(cluster.scheduler_address, flush=True); input()\n"
    )
    script = on_dask / "cluster.py"
    script.write_text(code)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": server}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as cluster:
        address = cluster.stdout.readline().strip()
        assert re.match(r"tcp://", address)
        output = run(on_dask, {**server, "DASK_SCHEDULER_ADDRESS": address})
        cluster.communicate("\n", timeout=30)
    assert set(states_shown(output).values()) == {"ran"}
    assert last_run(server)["state_type"] == "COMPLETED"
