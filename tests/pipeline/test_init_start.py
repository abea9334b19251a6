"""The settings that `contrast init` chooses: they fit folder, answers, time and machine, whatever these are."""

import itertools
from dataclasses import replace

import pytest

from cl_core.check import check_project
from cl_core.data.splits import SplitRule
from pipelines.project import measured, write
from pipelines.project.look import Images
from pipelines.project.machine import Machine
from pipelines.project.questions import answers
from pipelines.project.speed import Speed, duration
from pipelines.project.start import choose

LAPTOP = Machine(cores=2, gpus=0)
WORKSTATION = Machine(cores=16, gpus=2)
MACHINES = pytest.mark.parametrize("machine", [LAPTOP, WORKSTATION], ids=["laptop", "workstation"])


def images(count=5000, **changes):
    rule = SplitRule(validation=max(1, count // 10), test=max(1, count // 5)) if count < 300 else SplitRule(0.1, 0.2)
    parts = {"validation": max(1, count // 10), "test": max(1, count // 5)}
    parts["train"] = count - sum(parts.values())
    return Images(**{"count": count, "classes": 4, "side": 64, "rule": rule, **parts, **changes})


def start(found=None, machine=LAPTOP, minutes=10, mirror=None, colour=None, training=None, **changes):
    found = found or images(**changes)
    speed = Speed.assumed(machine, measured.row(found, machine))
    if training is not None:
        speed = Speed(**{**vars(speed), "training": training})
    return choose(found, machine, answers(found, mirror=mirror, colour=colour, ask=None), minutes, speed)


@pytest.mark.parametrize("count", [20, 60, 300, 1000, 3000, 10_000, 50_000, 200_000])
@pytest.mark.parametrize("minutes", [10, 30])
@MACHINES
def test_ten_minutes_are_1500_updates_or_more(count, minutes, machine):
    assert start(count=count, minutes=minutes, machine=machine).updates >= 1500


@pytest.mark.parametrize("training", [160, 290, 600, 5000])
def test_on_slow_and_fast_machines_too_the_batch_leaves_enough_updates(training):
    assert start(count=30_000, training=training).updates >= 1500


@pytest.mark.parametrize("count", [4, 5, 20, 100, 400, 3000, 10**6])
@MACHINES
def test_a_batch_is_a_power_of_two_that_the_training_images_fill_even_if_a_quarter_is_unreadable(count, machine):
    found = images(count=count)
    batch = start(found, machine).batch
    assert batch & (batch - 1) == 0
    assert 2 <= batch <= max(2, 0.75 * found.train)


@pytest.mark.parametrize("minutes", [1, 5, 10, 60])
@pytest.mark.parametrize("count", [1000, 3000, 10_000])
def test_pretraining_takes_the_minutes_it_was_given_or_what_so_few_images_are_worth(count, minutes):
    found = images(count=count)
    speed = Speed.assumed(LAPTOP, measured.row(found, LAPTOP))
    chosen = start(found, minutes=minutes)
    seconds = duration(found, chosen, speed).pretraining
    assert seconds <= 60 * minutes * 1.1 or chosen.epochs == 1
    longer = duration(found, replace(chosen, epochs=chosen.epochs + 1), speed).pretraining
    assert longer > 60 * minutes * 0.95 or chosen.epochs == measured.MOST_EPOCHS


def test_more_minutes_than_so_few_images_are_worth_are_said_to_be_more():
    assert "20 minutes allow here" not in start(count=400, minutes=2000).why["epochs"]
    assert "2000 minutes would allow more" in start(count=400, minutes=2000).why["epochs"]
    assert "what 10 minutes allow here" in start(count=5000).why["epochs"]


def test_a_stage_more_of_everything_is_a_longer_run():
    found = images()
    speed = Speed.assumed(LAPTOP, measured.row(found, LAPTOP))
    lasts = duration(found, start(found), speed)
    assert lasts.total > lasts.pretraining + 60
    unlabelled = images(classes=0)
    assert duration(unlabelled, start(unlabelled), speed).total < lasts.total
    slow = Speed(**{**vars(speed), "tuning": speed.tuning / 10})
    assert duration(found, start(found), slow).total > lasts.total + 60


def test_more_images_mean_fewer_epochs():
    epochs = [start(count=count).epochs for count in (500, 5000, 50_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_a_million_images_are_kept_encoded_and_one_pass_is_said_to_be_long():
    chosen = start(count=1_000_000)
    assert chosen.layout == "encoded"
    assert chosen.epochs == 1
    assert "one pass over 700,000 training images takes longer than 10 minutes" in chosen.advice[0]
    assert start(count=999_999).layout == "decoded"


def test_elongated_images_are_kept_whole():
    chosen = start(aspect=3.0)
    assert chosen.layout == "encoded"
    assert "whole images" in chosen.why["layout"]


def test_few_images_are_told_what_would_help():
    assert "unlikely to help" in start(count=200).advice[0]
    assert start(count=2000).advice == ()


def test_budgets_are_at_most_half_of_a_class():
    assert start(count=20).finetune["per_class"] == [1, "all"]
    assert start(count=300).finetune["per_class"] == [1, 4, 16, "all"]
    assert start(count=5000).finetune["per_class"] == [1, 4, 16, "all"]
    assert start(count=5000, classes=0).k == 200
    assert start(count=20).k == 1


def operations(**changes):
    views = start(**changes).views
    return views["recipe"]["name"] if "recipe" in views else [spec["name"] for spec in views["chains"]["augment"]]


def test_photographs_get_the_paper_s_recipe():
    assert operations() == "simclr-cifar"
    assert start().views["recipe"] == {"name": "simclr-cifar", "min_scale": 0.2, "size": 32}


def test_where_a_mirrored_image_is_another_none_is_mirrored():
    assert "horizontal_flip" not in operations(mirror=False)
    assert start(mirror=False).finetune["recipe"]["flip"] == 0.0
    assert "not mirrored: as you said" in start(mirror=False).why["views"]


def jitter(**changes):
    return next(spec for spec in start(**changes).views["chains"]["augment"] if spec["name"] == "color_jitter")


def test_where_colour_means_something_hues_stay_and_light_changes_little():
    assert "grayscale" not in operations(colour=True)
    assert jitter(colour=True)["hue"] == jitter(colour=True)["saturation"] == 0.0
    assert jitter(colour=True)["brightness"] < jitter(is_grey=True)["brightness"]


def test_grey_images_are_not_recoloured_but_are_mirrored():
    assert operations(is_grey=True) == ["random_resized_crop", "horizontal_flip", "color_jitter"]
    assert jitter(is_grey=True)["hue"] == 0.0


def test_drawings_are_cropped_less_and_turned_a_little():
    assert operations(kind="drawings") == ["random_resized_crop", "rotation"]
    assert start(kind="drawings").views["chains"]["augment"][0]["scale"] == [0.4, 1.0]
    assert "horizontal_flip" in operations(kind="drawings", mirror=True)


def test_crops_of_a_microscope_are_turned_by_quarters_unless_mirrored_they_mean_another_thing():
    assert "quarter_turns" in operations(kind="microscope")
    assert "quarter_turns" not in operations(kind="microscope", mirror=False)


def test_a_gpu_gets_a_larger_encoder_and_images_and_one_job_each():
    small, big = start(side=500), start(side=500, machine=WORKSTATION)
    assert small.encoder["name"] == "resnet8"
    assert big.encoder["name"] == "resnet18"
    assert small.size < big.size
    assert (small.jobs, big.jobs) == (1, 2)


GRID = list(itertools.product(["photographs", "drawings", "microscope"], [True, False], [True, False], [20, 3000]))


@pytest.mark.parametrize(("kind", "mirror", "colour", "count"), GRID)
@MACHINES
def test_whatever_is_chosen_passes_the_check(tmp_path, kind, mirror, colour, count, machine):
    found = images(count=count, kind=kind)
    chosen = start(found, machine, mirror=mirror, colour=colour)
    said = answers(found, mirror=mirror, colour=colour, ask=None)
    values = write.values(found, chosen, said, name="photos", path="photos")
    write.write_settings(tmp_path, {"title": "grid", **values, "source": "{name: digits}"})
    summary = check_project(tmp_path)[1]
    assert f"{chosen.epochs} epochs of batches of {chosen.batch}" in summary
