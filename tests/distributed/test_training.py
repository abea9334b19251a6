"""A run of two processes: what it leaves, how it stops, fails and continues, against a run of one."""

import csv

import cases
import pytest
import torch
from safetensors.torch import load_file
from toy_training import BATCH, STEPS, make_store

from cl_core.data.sampling import batch_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("shared") / "store").path


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """The folder of a run of one process, and what it saw."""
    folder = tmp_path_factory.mktemp("whole")
    seen, error, _ = cases.fit(store, folder)
    assert error is None
    return folder / "0" / "out", seen


def assert_same_result(out, expected):
    for name in ("encoder.safetensors", "method.safetensors"):
        mine, theirs = load_file(out / name), load_file(expected / name)
        assert mine.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-3, atol=1e-4, msg=key)
    for mine, theirs in zip(rows(out), rows(expected), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def rows(out):
    lines = (out / "curves.csv").read_text().splitlines()
    return [{name: float(cell or 0) for name, cell in row.items()} for row in csv.DictReader(lines)]


def assert_same_views(shares, expected):
    """shares: per process what it saw at each step."""
    for step, parts in zip(expected, zip(*shares, strict=True), strict=True):
        for tensor, *pieces in zip(step, *parts, strict=True):
            assert torch.equal(torch.cat(pieces), tensor)


def test_two_processes_leave_what_one_leaves_and_only_the_first_writes(two, store, whole, tmp_path):
    answers = two(cases.fit, store, tmp_path)
    assert [error for _, error, _ in answers] == [None, None]
    assert_same_result(tmp_path / "0" / "out", whole[0])
    assert not (tmp_path / "1").exists()
    assert answers[0][2][0] == ("start", STEPS)
    assert answers[0][2][-1] == ("end", "finished", STEPS)
    assert answers[1][2] == []


def test_they_see_the_rows_and_views_of_one_process(two, store, whole, tmp_path):
    shares = [seen for seen, _, _ in two(cases.fit, store, tmp_path)]
    assert len(shares[0][0][0]) == BATCH // 2
    assert_same_views(shares, whole[1])


@pytest.mark.parametrize("process", [0, 1])
def test_a_stop_in_any_process_stops_both_and_one_process_continues(two, store, whole, tmp_path, process):
    answers = two(cases.fit, store, tmp_path, stops=(process, 2))
    says = f"Interrupted: stopped at step 2 of {STEPS}; run the same command to continue"
    assert [error for _, error, _ in answers] == [says, says]
    seen, error, _ = cases.fit(store, tmp_path)
    assert error is None
    assert_same_views([share for share, _, _ in answers], whole[1][:2])
    assert_same_views([seen], whole[1][2:])
    assert_same_result(tmp_path / "0" / "out", whole[0])


def test_two_processes_continue_what_one_began(two, store, whole, tmp_path):
    assert cases.fit(store, tmp_path, stops=(0, 3))[1].startswith("Interrupted")
    answers = two(cases.fit, store, tmp_path)
    assert [error for _, error, _ in answers] == [None, None]
    assert_same_views([seen for seen, _, _ in answers], whole[1][3:])
    assert_same_result(tmp_path / "0" / "out", whole[0])


def test_a_hook_that_stops_the_run_stops_both(two, store, tmp_path):
    answers = two(cases.fit, store, tmp_path, alarm=True)
    assert [error for _, error, _ in answers] == ["CollapseError: enough", "FailedElsewhere: process 0 has failed"]
    assert answers[1][2] == []


def test_a_loss_that_is_not_finite_is_an_error_in_both(two, store, tmp_path):
    for _, error, _ in two(cases.fit, store, tmp_path, lr=1e30):
        assert error.startswith("CollapseError: the loss is ")


def test_the_first_process_chooses_the_precision_for_both(two, store, tmp_path):
    answers = two(cases.fit, store, tmp_path, precision="auto", channels_last="auto")
    assert [error for _, error, _ in answers] == [None, None]
    assert (tmp_path / "0" / "decisions.json").is_file()
    assert not (tmp_path / "1").exists()


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(two, store, tmp_path):
    for _, error, _ in two(cases.fit, store, tmp_path, batch_size=7):
        assert error == (
            "ConfigError: train.batch_size 7 cannot be shared evenly by 2 processes; set it to a multiple of 2, or "
            "run.devices to a divisor of 7"
        )


def test_shares_of_a_batch_are_its_rows_in_order():
    whole, epoch = batch_rows(100, 12, 9, 3)
    for parts in (1, 2, 3, 4, 6):
        shares = [batch_rows(100, 12, 9, 3, part=part, parts=parts) for part in range(parts)]
        assert torch.equal(torch.cat([rows for rows, _ in shares]), whole)
        assert {at for _, at in shares} == {epoch}
