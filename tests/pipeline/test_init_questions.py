"""The two questions of `contrast init`: flags answer them, else a person, else a guess that says that it is one."""

import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.project.look import Images
from pipelines.project.questions import answers


def images(**changes):
    return Images(**{"count": 900, "train": 630, "validation": 90, "test": 180, "side": 64, **changes})


def never(question, default):
    raise AssertionError(f"asked {question!r}")


@pytest.mark.parametrize(
    ("changes", "mirror"), [({}, True), ({"kind": "drawings"}, False), ({"kind": "microscope"}, True)]
)
def test_where_nobody_is_asked_the_kind_of_images_answers_and_the_guess_is_told(changes, mirror):
    found = answers(images(**changes), mirror=None, colour=None, ask=None)
    assert (found.mirror.holds, found.colour.holds) == (mirror, False)
    assert found.mirror.guessed
    assert found.colour.guessed
    assert ("--no-mirror" if mirror else "--mirror") in found.told()[0]
    assert "--colour" in found.told()[1]


def test_flags_answer_and_nobody_is_asked():
    found = answers(images(), mirror=False, colour=True, ask=never)
    assert (found.mirror.holds, found.colour.holds) == (False, True)
    assert found.told() == []


def test_a_person_is_asked_with_what_is_likely_as_the_default():
    asked = []

    def ask(question, default):
        asked.append((question, default))
        return not default

    found = answers(images(kind="drawings"), mirror=None, colour=None, ask=ask)
    assert (found.mirror.holds, found.colour.holds) == (True, True)
    assert [default for _, default in asked] == [False, False]
    assert "mirrored" in asked[0][0]
    assert found.told() == []


def test_nobody_is_asked_about_the_colours_of_grey_images():
    found = answers(images(is_grey=True), mirror=True, colour=None, ask=never)
    assert not found.colour.holds
    assert not found.colour.guessed


def test_on_a_terminal_init_asks_and_writes_what_it_was_told(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    command = [sys.executable, "-m", "pipelines", "init", "pets", "--images", "photos", "--no-trial"]
    text, code = typed(command, tmp_path, {b"mirrored": b"n\n", b"carry meaning": b"\n"})
    assert code == 0, text
    written = (tmp_path / "pets" / "experiments" / "simclr.yaml").read_text()
    assert "horizontal_flip" not in written
    assert "Guessed" not in written
    assert "not mirrored: as you said" in text


def typed(command, folder, replies):
    """Run a command on a terminal and answer each question once it is there; returns its output and exit code."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        output, waiting = b"", dict(replies)
        while chunk := read(ours):
            output += chunk
            asked = [question for question in waiting if question in output and output.rstrip().endswith(b":")]
            for question in asked:
                os.write(ours, waiting.pop(question))
    os.close(ours)
    return output.decode(), process.returncode


def read(terminal):
    """What comes next, b"" once the other side has closed it, which Linux calls an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
