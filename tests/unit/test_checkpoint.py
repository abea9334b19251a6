"""Checkpoints are whole or absent, and a damaged one costs only itself."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_core.data.files import sha256_bytes
from cl_core.errors import CheckpointError
from cl_core.training.checkpoint import FORMAT, Checkpoints


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path / "run", report=said.append)


def state_of(step):
    return {
        "step": step,
        "method": {"weight": torch.full((3,), float(step))},
        "rows": [{"loss": 0.5}],
        "choice": "fp32",
    }


def test_what_was_saved_comes_back(checkpoints):
    checkpoints.save(7, state_of(7))
    loaded = checkpoints.load_newest()
    assert torch.equal(loaded["method"].pop("weight"), torch.full((3,), 7.0))
    assert loaded == {"step": 7, "method": {}, "rows": [{"loss": 0.5}], "choice": "fp32"}


def test_a_folder_without_checkpoints_gives_none(checkpoints, said):
    assert checkpoints.load_newest() is None
    assert said == []


def test_only_the_newest_two_are_kept_in_the_order_of_steps(checkpoints):
    for step in (9, 10, 100, 1000):
        checkpoints.save(step, state_of(step))
    assert [path.name for path in sorted(checkpoints.directory.iterdir())] == [
        "step-0000000100.ckpt",
        "step-0000001000.ckpt",
    ]
    assert checkpoints.load_newest()["step"] == 1000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: data.split(b"\n", 1)[1],
    ],
    ids=["end cut off", "header cut off", "empty", "one bit flipped", "header lost"],
)
def test_a_damaged_newest_is_skipped_with_a_warning_that_names_it(checkpoints, said, damage):
    checkpoints.save(1, state_of(1))
    newest = checkpoints.save(2, state_of(2))
    newest.write_bytes(damage(newest.read_bytes()))
    assert checkpoints.load_newest()["step"] == 1
    assert len(said) == 1
    assert str(newest) in said[0]


def test_all_damaged_means_starting_afresh(checkpoints, said):
    for step in (1, 2):
        checkpoints.save(step, state_of(step)).write_bytes(b"nothing")
    assert checkpoints.load_newest() is None
    assert len(said) == 2


def test_a_file_with_code_in_it_is_refused_even_with_a_valid_checksum(checkpoints, said, tmp_path):
    marker = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return Path.touch, (marker,)

    def store(step, payload):
        path = checkpoints.save(step, state_of(step))
        path.write_bytes(FORMAT + b" " + sha256_bytes(payload).encode() + b"\n" + payload)

    buffer = io.BytesIO()
    torch.save({"step": 3, "code": Touch()}, buffer)
    store(3, buffer.getvalue())
    store(4, pickle.dumps(Touch(), protocol=2))
    assert checkpoints.load_newest() is None
    assert len(said) == 2
    assert not marker.exists()


def test_saving_again_replaces_a_damaged_file_of_the_same_step(checkpoints, said):
    checkpoints.save(5, state_of(5)).write_bytes(b"nothing")
    checkpoints.save(5, state_of(5))
    assert checkpoints.load_newest()["step"] == 5
    assert said == []


def test_a_disk_that_refuses_is_an_error_with_the_path_and_what_to_do(checkpoints):
    checkpoints.directory.parent.mkdir(exist_ok=True)
    checkpoints.directory.write_text("a file where the folder belongs")
    with pytest.raises(CheckpointError, match=r"step-0000000001\.ckpt.*make room"):
        checkpoints.save(1, state_of(1))


def test_clear_removes_checkpoints_and_leftovers_and_nothing_else(checkpoints):
    checkpoints.save(1, state_of(1))
    (checkpoints.directory / ".step-0000000002.ckpt.partial").write_bytes(b"half")
    (checkpoints.directory / "log.jsonl").write_text("{}\n")
    checkpoints.clear()
    assert [path.name for path in checkpoints.directory.iterdir()] == ["log.jsonl"]


def test_clear_removes_an_empty_folder_and_is_content_with_none(checkpoints):
    checkpoints.save(1, state_of(1))
    checkpoints.clear()
    assert not checkpoints.directory.exists()
    checkpoints.clear()


WRITER = """
import sys, torch
from pathlib import Path
from cl_core.training.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    checkpoints.save(step, {"step": step, "weight": torch.full((100_000,), float(step))})
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path, said):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        for _ in range(25):
            reached = int(process.stdout.readline())
        process.kill()
    loaded = Checkpoints(tmp_path, report=said.append).load_newest()
    assert loaded["step"] >= reached
    assert torch.equal(loaded["weight"], torch.full((100_000,), float(loaded["step"])))
    assert said == []
