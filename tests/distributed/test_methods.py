"""Two processes that share a batch learn what one learns from all of it."""

import cases
import pytest
import torch

METHODS = [entry.name for entry in cases.REGISTRY.entries("method") if entry.name != "random_init"]
# What is drawn within a step (noise on features), or grouped (batch-norm passes), is so in each process by itself.
OPTIONS = {"moco_v2": {"ghost_batch": None}, "denoising_autoencoder": {"corruption": "gaussian", "noise": 0.0}}


def changes(states, start):
    return {key: states[key] - start[key] for key in start if start[key].is_floating_point()}


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_a_method_as_one_does(two, name):
    options = OPTIONS.get(name, {})
    start = cases.untrained(name).state_dict()
    expected, logged = cases.train_method(name, options)
    answers = two(cases.train_method, name, options)
    for state, figures in answers:
        for mine, theirs in zip(figures, logged, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)
        moved, should = changes(state, start), changes(expected, start)
        for key, change in should.items():
            assert (moved[key] - change).norm() <= 0.01 * change.norm() + 1e-5, key
    first, second = (state for state, _ in answers)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_ghost_batches_of_two_processes_are_as_many_as_those_of_one(two):
    options = {"ghost_batch": 8}
    expected, _ = cases.train_method("moco_v2", options)
    for state, _ in two(cases.train_method, "moco_v2", options):
        passes = [key for key in state if key.endswith("num_batches_tracked")]
        assert passes
        assert all(state[key] == expected[key] == 2 * cases.STEPS for key in passes)
        assert state["queue.pushed"] == expected["queue.pushed"] == cases.BATCH * cases.STEPS


def test_two_processes_draw_the_views_that_one_draws(two):
    expected = cases.drawn("simclr").images
    parts = [views.images for views in two(cases.drawn, "simclr")]
    for view, *shares in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat(shares), view)


@pytest.mark.parametrize("name", [entry.name for entry in cases.REGISTRY.entries("loss")])
def test_every_loss_of_gathered_embeddings_has_the_value_and_gradient_of_one_process(two, name):
    value, gradient = cases.loss_gradient(name)
    answers = two(cases.loss_gradient, name)
    for theirs, _ in answers:
        torch.testing.assert_close(theirs, value)
    torch.testing.assert_close(torch.cat([share for _, share in answers]), gradient)


def test_micro_batches_of_two_processes_give_the_gradient_of_the_whole_batch(two):
    expected = cases.gradient(None)
    for gradient in two(cases.gradient, 3):
        torch.testing.assert_close(gradient, expected)
