"""Weights in pieces (FSDP): two processes that hold half of them each learn what one learns."""

import cases
import pytest
import torch
from test_methods import OPTIONS, changes
from test_training import assert_same_result, assert_same_views, store, whole  # noqa: F401 - fixtures
from toy_training import STEPS


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("name", ["byol", "swav"])
def test_two_processes_with_half_the_weights_each_train_a_method_as_one_does(two, name, optimizer):
    options = OPTIONS.get(name, {})
    start = cases.untrained(name).state_dict()
    expected, logged = cases.train_method(name, options, optimizer=optimizer)
    for state, figures in two(cases.train_method, name, options, strategy="fsdp", optimizer=optimizer):
        for mine, theirs in zip(figures, logged, strict=True):
            assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-3)
        moved, should = (torch.cat([c.flatten() for c in changes(at, start).values()]) for at in (state, expected))
        assert (moved - should).norm() <= 0.05 * should.norm()  # AdamW turns a gradient of rounding into a whole step


def test_a_run_leaves_what_one_process_leaves(two, store, whole, tmp_path):  # noqa: F811
    answers = two(cases.fit, store, tmp_path, strategy="fsdp")
    assert [error for _, error, _ in answers] == [None, None]
    assert_same_result(tmp_path / "0" / "out", whole[0])
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("first", ["fsdp", "ddp"])
def test_checkpoints_fit_whatever_the_strategy(two, store, whole, tmp_path, first):  # noqa: F811
    second = {"fsdp": "ddp", "ddp": "fsdp"}[first]
    answers = two(cases.fit, store, tmp_path, stops=(1, 2), strategy=first)
    assert all(error.startswith("Interrupted") for _, error, _ in answers)
    answers = two(cases.fit, store, tmp_path, strategy=second)
    assert [error for _, error, _ in answers] == [None, None]
    assert_same_views([seen for seen, _, _ in answers], whole[1][2:STEPS])
    assert_same_result(tmp_path / "0" / "out", whole[0])
