"""The trial of `contrast init`: real steps on real images, whose speed and choices are those of the run."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipelines.project.create import Wishes, create
from pipelines.project.trial import DECISIONS
from pipelines.stages import run_stage

MINUTES = 0.3


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A project for 120 images in two classes, fitted to this machine in a short trial, and what was said.

    The trial counts seconds of the processor, so that it does not matter what else the machine does.
    """
    folder = tmp_path_factory.mktemp("trial")
    for number in range(120):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.project.trial.time", SimpleNamespace(perf_counter=time.process_time))
        create(folder / "mine", folder / "photos", wishes=Wishes(minutes=MINUTES), say=said.append)
    return folder / "mine", said


def test_the_speed_is_said_to_be_measured_and_the_minutes_became_epochs(tried):
    folder, said = tried
    assert any("images/s measured" in line for line in said)
    assert any(line.startswith("takes") and "measured here" in line for line in said)
    epochs = YAML(typ="safe").load(folder / "experiments" / "simclr.yaml")["schedule"]["epochs"]
    assert any(f"{epochs} epochs: what {MINUTES} minutes allow" in line for line in said)


def test_the_run_takes_the_precision_of_the_trial_and_about_the_time_it_promised(tried, capsys):
    folder, _ = tried
    assert len(json.loads((folder / DECISIONS).read_text())) == 1
    for stage in ("resolve", "ingest", "views"):
        run_stage(folder, stage, "simclr")
    capsys.readouterr()
    began = time.process_time()
    run_stage(folder, "pretrain", "simclr")
    seconds = time.process_time() - began
    assert "(measured before, " in capsys.readouterr().out
    # Within a quarter on an idle machine; a busy one shares caches, and the stage does more than training.
    assert 60 * MINUTES / 2 < seconds < 60 * MINUTES * 2
