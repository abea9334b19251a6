"""What the monitor remarks on a run that brings nothing, when, and how often."""

import json

import pluggy
import pytest
import torch
from toy_training import STEPS, Contrast, after, make_store, quiet, result, train

from cl_core import hookspecs
from cl_core.errors import Interrupted, NoGainError
from cl_core.types import RunInfo
from plugins import monitors
from plugins.monitors.edits import likely_edits

FULL = {"name": "color_jitter", "options": {"hue": 0.2, "strength": 1.0}}
CONFIG = {
    "train": {"batch_size": 256},
    "schedule": {"epochs": 50},
    "optimizer": {"lr": {"base": 0.2, "per": 256, "rule": "linear"}},
    "chains": {"augment": [FULL]},
}


@pytest.fixture
def hooks():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(monitors)
    return manager.hook


@pytest.fixture
def watch(hooks, tmp_path):
    """A function that starts a run of 100 steps with untrained figures; gives a function from a step to its remarks."""

    def start(untrained=None, **facts):
        config = {"resolved": {"config": facts.pop("config", CONFIG)}}
        info = RunInfo(experiment="toy", directory=tmp_path, total_steps=100, config=config, queries=400, **facts)
        hooks.on_run_start(run=info)
        if untrained is not None:
            assert hooks.on_log(step=0, metrics=untrained) == []
        return lambda step, **metrics: "".join(hooks.on_log(step=step, metrics=metrics))

    return start


def test_a_loss_near_chance_is_named_once_after_a_tenth_until_it_changes(watch):
    look = watch()
    near, learnt = {"loss": 6.1, "information_bound": 0.14}, {"loss": 5.0, "information_bound": 1.24}
    assert [look(step, **near) for step in (6, 8, 10, 12, 14)] == [""] * 5
    assert look(16, **near).startswith("the loss 6.1 is within 3 % of chance (6.24), so views")
    assert [look(18, **near), look(20, **learnt), look(22, **near), look(24, **near)] == [""] * 4
    assert look(26, loss=8.0, information_bound=-1.76).startswith("the loss 8 is above chance (6.24)")


def test_a_loss_without_candidates_has_no_chance(watch):
    look = watch()
    assert [look(step, loss=6.2) for step in range(11, 40)] == [""] * 29


@pytest.mark.parametrize(("figure", "name"), [("knn_top1", "kNN"), ("self_match", "self-match")])
def test_features_that_get_worse_are_named_and_again_after_they_had_recovered(watch, figure, name):
    look = watch({figure: 0.5})
    assert look(10, **{figure: 0.47}) == ""  # 1.4 points of 400 images are noise
    assert look(20, **{figure: 0.4}) == f"the features get worse: {name} 0.400 against 0.500 untrained"
    assert [look(30, **{figure: 0.3}), look(35, **{figure: 0.5})] == ["", ""]
    assert "get worse" in look(40, **{figure: 0.4})


def test_a_spread_that_halves_or_nears_the_threshold_of_collapse_is_named(watch):
    look = watch()
    assert [look(step, feature_std=std) for step, std in ((5, 0.9), (20, 0.8), (30, 0.5))] == [""] * 3
    assert look(40, feature_std=0.4).startswith("the spread of the embeddings shrinks: feature_std 0.4, at most 0.9")
    assert look(45, feature_std=0.3) == ""
    small = watch()
    assert [small(step, feature_std=std) for step, std in ((5, 0.23), (20, 0.21), (30, 0.19))] == [""] * 3
    assert small(40, feature_std=0.15) != ""


def test_half_way_and_at_the_end_nothing_gained_is_said_with_two_edits(watch):
    look = watch({"knn_top1": 0.27})
    for step in (30, 40, 49):
        look(step, loss=6.1, information_bound=0.14)
    text = look(50, knn_top1=0.28, loss=6.1, information_bound=0.14)
    assert text == (
        "half of the updates have not made the features better than untrained: kNN 0.280 against 0.270 untrained "
        "(standard error of the difference 0.032); most likely to help: milder views (views.recipe {name: "
        "simclr-cifar, min_scale: 0.4}) and more than 100 updates (train.batch_size 64 in place of 256)"
    )
    assert look(60, knn_top1=0.28) == look(75, knn_top1=0.5) == ""
    assert look(100, knn_top1=0.1).startswith("training has made the features worse than untrained: kNN 0.100 against")


def test_what_is_judged_half_way_is_not_repeated_at_the_next_evaluation(watch):
    look = watch({"knn_top1": 0.27})
    assert look(50, knn_top1=0.1).startswith("half of the updates have made the features worse")
    assert look(60, knn_top1=0.1) == ""


def test_a_gain_needs_no_words(watch):
    look = watch({"knn_top1": 0.27})
    assert [look(step, knn_top1=0.4, feature_std=0.9, loss=3.0, information_bound=3.24) for step in (50, 100)] == [
        ""
    ] * 2


def test_untrained_features_that_leave_no_room_for_a_gain_are_not_held_against_training(watch):
    look = watch({"knn_top1": 0.97})
    assert look(50, knn_top1=0.97) == look(100, knn_top1=0.975) == ""
    look = watch({"knn_top1": 0.97})
    assert look(50, knn_top1=0.9).startswith("half of the updates have made the features worse")


def test_stop_ends_the_run_half_way_and_only_there(watch):
    look = watch({"knn_top1": 0.27}, on_no_gain="stop")
    look(40, knn_top1=0.1)
    with pytest.raises(
        NoGainError, match=r"at step 50, half of the updates have made.*worse.*0\.100 against 0\.270.*warn"
    ):
        look(50, knn_top1=0.1)
    look = watch({"knn_top1": 0.27}, on_no_gain="stop")
    assert "training has made" in (look(50, knn_top1=0.4) or look(100, knn_top1=0.1))


def test_without_an_online_evaluation_nothing_is_judged(hooks, tmp_path):
    hooks.on_run_start(run=RunInfo(experiment="toy", directory=tmp_path, total_steps=100, config={}))
    assert [hooks.on_log(step=step, metrics={"loss": 1.0}) for step in (50, 100)] == [[], []]


def test_what_an_earlier_sitting_has_said_is_not_said_again(watch):
    logged = ({"step": 0, "knn_top1": 0.5}, {"step": 20, "knn_top1": 0.3}, {"step": 30, "feature_std": 0.9})
    look = watch(logged=logged)
    assert look(40, knn_top1=0.3) == ""
    assert "at most 0.9 before" in look(45, feature_std=0.3)


@pytest.mark.parametrize(
    ("changes", "updates", "below_chance", "expected"),
    [
        ({}, 250, 0.02, ["milder views (views.recipe", "more than 250 updates (train.batch_size 64 in place of 256)"]),
        ({}, 250, 0.5, ["more than 250 updates", "optimizer.lr.base 0.067 in place of 0.2"]),
        ({}, 5000, 0.02, ["milder views", "a third of the learning rate"]),
        ({}, 5000, None, ["a third of the learning rate", "longer training (schedule.epochs 100)"]),
        ({"optimizer": {"lr": 0.3}}, 5000, None, ["optimizer.lr 0.1 in place of 0.3", "longer"]),
        ({"optimizer": {"lr": {"base": 1000.0}}}, 250, 0.02, ["can be learnt with (1000 at a batch", "milder views"]),
        ({"train": {"batch_size": 32}}, 400, None, ["schedule.epochs 200 in place of 50", "a third"]),
        ({"chains": {"augment": [{"name": "gaussian_blur"}]}}, 5000, 0.0, ["no gaussian_blur", "a third"]),
        (
            {"chains": {"augment": [{"name": "random_resized_crop", "options": {"scale": [0.08, 1.0]}}]}},
            5000,
            0.0,
            ["crops of at least 0.4", "a third"],
        ),
    ],
)
def test_the_edits_follow_from_what_the_run_shows(changes, updates, below_chance, expected):
    edits = likely_edits(CONFIG | changes, updates=updates, below_chance=below_chance)
    assert len(edits) == 2
    assert all(text in edit for text, edit in zip(expected, edits, strict=True))
    assert len(likely_edits({}, updates=updates, below_chance=below_chance)) == 2


class Worsening(Contrast):
    """Destroys its images, so that nothing can be learnt; the rate does the rest."""

    def make_views(self, images, rng):
        return super().make_views(images * 0 + 0.5, rng)


def worsening():
    torch.manual_seed(0)
    return Worsening()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("gain") / "store", labelled=False)  # with labels all are right untrained


def remarks(out):
    return json.loads((out / "encoder.json").read_text())["training"]["remarks"]


def test_remarks_of_a_run_are_said_and_kept_and_survive_a_stop_before_and_after_half_way(store, tmp_path, hooks):
    said = []
    options = {"lr": 3.0, "log_every": 5}  # too few logged steps for a collapse to be one
    out = train(store, tmp_path / "whole", method=worsening(), observers=quiet(said, hooks=hooks), **options)
    kept = remarks(out)
    judged = {remark["step"]: remark["text"] for remark in kept}
    assert judged[STEPS // 2].startswith("half of the updates have")
    assert judged[STEPS].startswith("training has")
    assert all(f"at step {remark['step']} of {STEPS}: {remark['text']}" in said for remark in kept)
    for stopped in (4, 5, 6):
        folder = tmp_path / str(stopped)
        halt = {"stop": after(stopped, lambda: True), "observers": quiet(hooks=hooks)}
        with pytest.raises(Interrupted, match="stopped"):
            train(store, folder, method=worsening(), **halt, **options)
        out_again = train(store, folder, method=worsening(), observers=quiet(hooks=hooks), **options)
        assert result(out_again) == result(out)


def test_a_run_that_is_stopped_for_no_gain_leaves_its_checkpoint_and_no_result(store, tmp_path, hooks):
    for _ in range(2):  # the same command finds the same
        with pytest.raises(NoGainError, match=r"at step 5, half of the updates have .*most likely to help: "):
            train(store, tmp_path, method=worsening(), lr=3.0, on_no_gain="stop", observers=quiet(hooks=hooks))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000003.ckpt"]
    assert not (tmp_path / "out").exists()
