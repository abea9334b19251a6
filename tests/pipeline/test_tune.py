"""`contrast tune` on the digits: it finds something better, survives kills, looks at no test image, writes a file."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from cl_core.check import check_project
from cl_core.data.store import Store
from cl_core.errors import ConfigError, ContrastError
from pipelines.tuning.run import Options, run
from tests.conftest import EXPERIMENT, PARAMS

# A rate with which hardly anything is learnt.
BAD = EXPERIMENT.replace("lr: 0.1", "lr: {base: 0.0001}").replace("epochs: 1", "epochs: 3")
QUICK = ["--images", "640", "--trials", "3", "--methods", "simclr/dcl"]
FOLDER = ".contrast/tune/tiny"
TUNED = "experiments/tiny-tuned.yaml"


@pytest.fixture(autouse=True)
def _signals():
    """Commands that are run in this process leave the suite's own handling of signals behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def options(**changes):
    return Options(**{"minutes": 10, "trials": 3, "images": 1250, "methods": ["simclr/dcl"], **changes})


def summary(folder):
    """What the search found, without the seconds it took."""
    found = json.loads((folder / FOLDER / "summary.json").read_text())
    for candidate in found["candidates"]:
        for result in candidate["results"]:
            del result["seconds"]
    return found


def test_a_bad_start_is_beaten_without_a_look_at_test_and_the_result_is_an_experiment(project, monkeypatch, capsys):
    params = PARAMS.replace("experiments: [tiny]", "experiments:\n  - tiny  # the first\n")
    folder = project({"experiments/tiny.yaml": BAD, "params.yaml": params})
    seen, split = set(), Store.split
    monkeypatch.setattr(Store, "split", lambda store, name: seen.add(name) or split(store, name))
    assert run(folder, "tiny", options()) == 0
    assert seen == {"train", "validation"}

    shown = capsys.readouterr().out
    table = shown[shown.index("validation kNN after") : shown.index("All trials are done")]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert shown.count(" left)") == sum(len(candidate["results"]) for candidate in summary(folder)["candidates"])

    won = summary(folder)["winner"]
    assert won["score"] > won["start"]
    text = (folder / TUNED).read_text()
    written = YAML(typ="safe").load(text)
    assert written["extends"] == "tiny"
    assert written["optimizer"]["lr"]["base"] <= 1
    assert " beat 0.0001 by " in text
    assert "  - tiny  # the first\n  - tiny-tuned\n" in (folder / "params.yaml").read_text()
    assert "experiment tiny-tuned: simclr" in "\n".join(check_project(folder))

    # Everything is there already: the same search again trains nothing and comes to the same.
    assert run(folder, "tiny", options(minutes=0)) == 0
    assert " left)" not in capsys.readouterr().out
    assert (folder / TUNED).read_text() == text

    (folder / TUNED).write_text(text + "# mine\n")
    with pytest.raises(ConfigError, match="is there and is not, or no longer, what a search wrote"):
        run(folder, "tiny", options(minutes=0))


def test_a_search_that_is_killed_between_and_within_trials_comes_to_the_same(project, tmp_path, capsys):
    text = BAD.replace("batch_size: 64", "batch_size: 32")
    folder = project({"experiments/tiny.yaml": text})
    assert run(folder, "tiny", options(images=640)) == 0
    expected, files = summary(folder), contents(folder)
    killed = folder.rename(tmp_path / "killed")
    for path in [killed / TUNED, *(killed / FOLDER).glob("*.json")]:
        path.unlink(missing_ok=True)
    (killed / "params.yaml").write_text(PARAMS)

    outputs = []
    for wait, how in [(a_result, signal.SIGKILL), (a_checkpoint, signal.SIGKILL), (a_checkpoint, signal.SIGTERM)]:
        code, output = stopped(killed, wait, how)
        outputs.append(output)
        assert not (killed / FOLDER / "summary.json").exists()
    assert code == 75, output
    assert "run the same command to continue" in output
    assert "Traceback" not in output
    assert run(killed, "tiny", options(images=640)) == 0
    assert any("continuing after step" in text for text in [*outputs, capsys.readouterr().out])
    assert summary(killed) == expected
    assert contents(killed) == files
    assert not list((killed / FOLDER / "running").iterdir())


def contents(folder):
    """The project's own files."""
    return {path.name: path.read_text() for path in [folder / "params.yaml", *(folder / "experiments").iterdir()]}


def stopped(folder, wait, how):
    """Start the search and stop it when something new is there; its exit code and output."""
    began = time.time()
    command = [sys.executable, "-m", "pipelines", "tune", "tiny", *QUICK]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not any(modified(path) > began for path in wait(folder / FOLDER)):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        process.send_signal(how)
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


def a_result(folder):
    return folder.glob("*.json")


def a_checkpoint(folder):
    return folder.glob("running/*/checkpoints/*.ckpt")


def modified(path):
    """When, or never for what has gone meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def test_without_labels_trials_are_judged_by_health_and_too_little_time_is_said(project, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (150, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{number}.png")
    source = PARAMS.replace("{name: digits}", f"{{name: image_folder, path: {images}}}")
    text = EXPERIMENT.replace("batch_size: 64", "batch_size: 24")
    folder = project({"params.yaml": source, "experiments/tiny.yaml": text})
    assert run(folder, "tiny", options(images=100, trials=2)) == 0
    results = [result for candidate in summary(folder)["candidates"] for result in candidate["results"]]
    assert [result["figure"] for result in results] == ["self_match", "self_match"]
    assert all(0 <= result["score"] <= 1 for result in results)

    capsys.readouterr()
    assert run(folder, "tiny", options(images=99, minutes=0)) == 0
    shown = capsys.readouterr().out
    assert "The time was enough for tiny alone" in shown
    assert "the same command with more --minutes goes on from here" in " ".join(shown.split())


def test_what_cannot_be_tuned_is_explained(project, monkeypatch):
    idle = "method: {name: random_init}\nencoder: {name: resnet8, width: 4}\n"
    folder = project(
        {"params.yaml": PARAMS.replace("[tiny]", "[tiny, idle]"), "experiments/idle.yaml": idle},
    )
    with pytest.raises(ConfigError, match="no experiment is called 'tinny' - did you mean 'tiny'"):
        run(folder, "tinny", options())
    with pytest.raises(ConfigError, match="random_init trains nothing"):
        run(folder, "idle", options())
    for module in ("search", "outcome", "show"):
        monkeypatch.delitem(sys.modules, f"pipelines.tuning.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ContrastError, match=r"needs Optuna .* pip install 'contrast\[tune\]'"):
        run(folder, "tiny", options())
