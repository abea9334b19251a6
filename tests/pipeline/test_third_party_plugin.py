"""The example package and a generated one, installed with pip into a new environment and used by an experiment."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "contrast-plugin-solarize"
CHAIN = "views:\n  chains:\n    augment:\n      - {name: solarize_range, lowest: 0.4}\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A new virtual environment that sees everything of this one, so that only the plugin is installed."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(where, capture_output=True, text=True, check=True)
    # System site-packages are those of the base interpreter; ours may be a virtual environment itself.
    link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(site.stdout.strip(), "parent.pth").write_text(link)
    return python


def run(python, *arguments, cwd, ok=True):
    done = subprocess.run([python, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def install(python, package):
    run(python, "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", str(package), cwd=ROOT)


def test_the_example_installs_passes_its_own_test_and_is_used_from_an_experiment_file(environment, project, tmp_path):
    copy = tmp_path / EXAMPLE.name
    subprocess.run(["cp", "-r", EXAMPLE, copy], check=True)
    install(environment, copy)
    assert "2 passed" in run(environment, "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=copy)
    folder = project()
    path = folder / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("views:\n  recipe: {name: simclr-cifar}\n", CHAIN))
    assert "solarize_range" in path.read_text()
    for stage in (["resolve"], ["ingest"], ["views", "tiny"], ["pretrain", "tiny"]):
        run(environment, "pipelines", "stage", *stage, cwd=folder)
    resolved = json.loads((folder / "artifacts" / "resolved" / "tiny" / "pretrain.json").read_text())
    part = next(part for part in resolved["parts"] if part["name"] == "solarize_range")
    assert part["provider"] == "contrast-plugin-solarize"
    assert (folder / "artifacts" / "runs" / "tiny" / "pretrain" / "encoder.safetensors").is_file()
    listed = run(environment, "pipelines", "plugins", "solarize_range", cwd=folder)
    assert "float in [0, 1]" in listed


@pytest.mark.parametrize("kind", ["augmentation", "encoder", "loss", "method", "source"])
def test_a_generated_package_installs_and_its_test_passes(environment, contrast, tmp_path, kind):
    done = contrast(tmp_path, "plugins", "new", f"my-{kind}", "--kind", kind)
    assert done.returncode == 0, done.stderr
    package = tmp_path / f"contrast-plugin-my-{kind}"
    install(environment, package)
    assert "1 passed" in run(environment, "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=package)
    assert f"my_{kind}" in run(environment, "pipelines", "plugins", "--kind", kind, cwd=tmp_path)


def test_a_generated_package_does_not_overwrite_and_needs_a_proper_name(contrast, tmp_path):
    assert contrast(tmp_path, "plugins", "new", "one", "--kind", "loss").returncode == 0
    again = contrast(tmp_path, "plugins", "new", "one", "--kind", "loss")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    wrong = contrast(tmp_path, "plugins", "new", "No Name", "--kind", "loss")
    assert wrong.returncode == 1
    assert "cannot name a plugin" in wrong.stderr
