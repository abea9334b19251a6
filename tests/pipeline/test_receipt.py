"""The receipt: a run resolves again exactly when something that resolving reads has changed."""

import json
import subprocess
import sys

import pytest

from cl_core.errors import ConfigError
from cl_core.resolve import RESOLVED
from pipelines import receipt
from pipelines.planning import bring_resolved_up_to_date

PLUGIN = """
from cl_core import hookimpl

class Loss:
    \"\"\"A loss.\"\"\"
    def __init__(self, scale: float = 1.0):
        pass

    def __call__(self, z_a, z_b):
        return (z_a - z_b).square().mean()

@hookimpl
def register_losses():
    return {"acme_loss": Loss}
"""


def resolved(folder):
    return {path.name: path.read_bytes() for path in (folder / RESOLVED).rglob("*.json")}


@pytest.fixture
def fresh(project):
    folder = project()
    assert not receipt.still_holds(folder)
    bring_resolved_up_to_date(folder)
    assert receipt.still_holds(folder)
    return folder


def test_an_unchanged_project_is_not_resolved_again_and_torch_is_not_loaded(fresh):
    code = """
import sys
from pathlib import Path
from pipelines.planning import bring_resolved_up_to_date
bring_resolved_up_to_date(Path(sys.argv[1]))
from pipelines.summary import print_results
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(fresh)]
    subprocess.run(command, check=True)  # another process has another sys.path, so it resolves once more
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("params.yaml", "seed: 0", "seed: 1"),
        ("params.yaml", "diagnose: []", "diagnose: []\nplugins: {block: [nothing]}"),
        ("experiments/tiny.yaml", "temperature: 0.5", "temperature: 0.4"),
    ],
)
def test_a_setting(fresh, file, old, new):
    before = resolved(fresh)
    path = fresh / file
    path.write_text(path.read_text().replace(old, new))
    assert not receipt.still_holds(fresh)
    bring_resolved_up_to_date(fresh)
    assert receipt.still_holds(fresh)
    assert resolved(fresh) != before


def test_a_mistake_in_the_settings_is_told_every_time(fresh):
    path = fresh / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", "sede: 0"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="sede"):
            bring_resolved_up_to_date(fresh)


def test_a_resolved_file_that_was_edited_or_is_gone(fresh):
    before = resolved(fresh)
    path = fresh / RESOLVED / "tiny" / "pretrain.json"
    for spoil in (lambda: path.write_text(path.read_text() + " "), path.unlink):
        spoil()
        assert not receipt.still_holds(fresh)
        bring_resolved_up_to_date(fresh)
        assert resolved(fresh) == before


def test_a_damaged_receipt(fresh):
    (fresh / receipt.RECEIPT).write_text("{")
    assert not receipt.still_holds(fresh)


def test_one_more_image(project, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        (images / f"{name}.jpg").write_bytes(b"not looked at")
    folder = project()
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("{name: digits}", f"{{name: image_folder, path: {images}}}"))
    bring_resolved_up_to_date(folder)
    assert receipt.still_holds(folder)
    (images / "c.jpg").write_bytes(b"nor this")
    assert not receipt.still_holds(folder)


def test_a_plugin_that_is_edited_installed_or_upgraded(project, install):
    module = install("acme", "losses", PLUGIN)
    folder = project()
    path = folder / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("{name: nt_xent, temperature: 0.5}", "{name: acme_loss}"))
    bring_resolved_up_to_date(folder)
    assert receipt.still_holds(folder)

    module.write_text(module.read_text().replace("scale: float = 1.0", "scale: float = 2.0"))
    assert not receipt.still_holds(folder)
    bring_resolved_up_to_date(folder)
    assert receipt.still_holds(folder)

    (module.parent / "acme-1.0.dist-info").rename(module.parent / "acme-1.1.dist-info")
    assert not receipt.still_holds(folder)
    bring_resolved_up_to_date(folder)
    install("other", "more", "")
    assert not receipt.still_holds(folder)


def test_what_is_edited_while_resolving_is_resolved_next_time(project):
    folder = project()
    inputs = receipt.begin(folder)
    bring_resolved_up_to_date(folder)
    path = folder / "experiments" / "tiny.yaml"
    path.write_text(path.read_text() + "description: late\n")
    receipt.keep(folder, inputs)
    assert not receipt.still_holds(folder)
    assert json.loads((folder / receipt.RECEIPT).read_text())["inputs"] == inputs
