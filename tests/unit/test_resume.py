"""A run that was stopped, broken off or killed ends in the bytes of an uninterrupted one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import BATCH, METHODS, STEPS, TRAIN, Remembering, after, crash, make_store, quiet, result, train

from cl_core.data.store import to_float
from cl_core.errors import CheckpointError, Interrupted


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("trainer") / "store")


@pytest.fixture(scope="module", params=METHODS)
def whole(request, store, tmp_path_factory):
    """A method's name and the result of its uninterrupted run."""
    return request.param, result(train(store, tmp_path_factory.mktemp("whole"), request.param))


def test_stopped_after_any_step_the_run_continues_to_the_same_bytes(store, whole, tmp_path):
    name, expected = whole
    for steps in range(1, STEPS):
        folder = tmp_path / str(steps)
        with pytest.raises(Interrupted, match=rf"stopped at step {steps} of {STEPS}; run the same command to continue"):
            train(store, folder, name, stop=after(steps, lambda: True))
        assert result(train(store, folder, name)) == expected, f"stopped after step {steps}"


def test_broken_off_after_any_step_without_saving_the_run_continues_to_the_same_bytes(store, whole, tmp_path):
    name, expected = whole
    for steps in range(1, STEPS + 1):
        folder = tmp_path / str(steps)
        with pytest.raises(KeyboardInterrupt, match="stopped dead"):
            train(store, folder, name, stop=after(steps, crash))
        assert result(train(store, folder, name)) == expected, f"broken off after step {steps}"


def test_a_run_stopped_at_every_single_step_ends_in_the_same_bytes(store, whole, tmp_path):
    name, expected = whole
    for _ in range(STEPS - 1):
        with pytest.raises(Interrupted, match="stopped"):
            train(store, tmp_path, name, stop=lambda: True)
    assert result(train(store, tmp_path, name, stop=lambda: True)) == expected


def test_another_seed_of_the_weights_gives_other_bytes(store, whole, tmp_path):
    name, expected = whole
    torch.manual_seed(1)
    method = METHODS[name]()
    out = train(store, tmp_path, name, method=method)
    assert (out / "encoder.safetensors").read_bytes() != expected["encoder.safetensors"]


def test_killed_with_sigkill_at_a_random_moment_the_run_continues_to_the_same_bytes(store, tmp_path):
    expected = result(train(store, tmp_path / "whole", "remembering", epochs=12))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import torch; from toy_training import Store, train\n"
        "torch.set_num_threads(1)\n"
        f"store, folder = Store.open(Path({str(store.path)!r})), Path({str(tmp_path / 'killed')!r})\n"
        "train(store, folder, 'remembering', epochs=12, stop=lambda: print('step', flush=True))"
    )
    moment = int(np.random.default_rng().integers(1, 12 * (TRAIN // BATCH) - 20))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(moment):
            assert process.stdout.readline() == "step\n"
        process.kill()
    assert not (tmp_path / "killed" / "out" / "encoder.safetensors").exists()
    out = train(store, tmp_path / "killed", "remembering", epochs=12)
    assert result(out) == expected, f"killed after step {moment}"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(store, whole, tmp_path):
    name, expected = whole
    with pytest.raises(Interrupted, match="stopped at step 8"):
        train(store, tmp_path, name, stop=after(8, lambda: True))
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    said = []
    out = train(store, tmp_path, name, observers=quiet(said))
    assert any(line.startswith("warning") and str(newest) in line for line in said)
    assert any(line.startswith("continuing after step 6 of 10") for line in said)
    assert result(out) == expected


def test_a_finished_run_leaves_no_checkpoint(store, tmp_path):
    train(store, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_folder(store, tmp_path):
    with pytest.raises(Interrupted, match="stopped"):
        train(store, tmp_path, "contrast", stop=lambda: True)
    with pytest.raises(CheckpointError, match=r"checkpoints does not fit the model; delete that folder"):
        train(store, tmp_path, "remembering")


def test_data_is_prepared_once_and_the_result_survives_in_the_checkpoint(store, tmp_path):
    first = Remembering()
    with pytest.raises(Interrupted, match="stopped"):
        train(store, tmp_path, method=first, stop=lambda: True)
    second = Remembering()
    train(store, tmp_path, method=second)
    assert (first.prepared, second.prepared) == (1, 0)
    assert torch.equal(first.colour, second.colour)
    mean = to_float(store.split("train").images(np.arange(TRAIN))).mean(dim=(0, 2, 3))
    torch.testing.assert_close(first.colour, mean, rtol=0, atol=0.011)  # the toy adds up to 0.01
