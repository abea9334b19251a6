"""Fixtures for the whole suite: project folders and installed plugins, both real files."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Tiny tensors: a second thread costs more than it gives, many times more on a busy machine. Children inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Where the suite runs in the background, Ctrl-C is ignored, and children would inherit that too.
signal.signal(signal.SIGINT, signal.default_int_handler)

PARAMS = """\
experiments: [tiny]
diagnose: []
distil: []
seed: 0
data:
  source: {name: digits}
  size: 16
evaluation:
  linear: {l2: [0.001, 0.1]}
  finetune:
    {per_class: [], fractions: [0.1, 1.0], draws: 1, lr: [1e-3], supervised_lr: [1e-2], epochs: 1, min_steps: 2,
      max_steps: 4}
"""
EXPERIMENT = """\
method: {name: simclr, hidden_dim: 16, out_dim: 8}
encoder: {name: resnet8, width: 4}
loss: {name: nt_xent, temperature: 0.5}
views:
  recipe: {name: simclr-cifar}
optimizer: {name: sgd, lr: 0.1}
schedule: {epochs: 1, warmup_epochs: 0}
train:
  {batch_size: 64, precision: fp32, channels_last: false, compile: false, knn_every: 0, save_every: 5, log_every: 2}
"""


@pytest.fixture
def project(tmp_path):
    """A function that writes a small project: project({"experiments/b.yaml": text}) -> folder."""

    def write(files=None) -> Path:
        folder = tmp_path / "project"
        for name, text in {"params.yaml": PARAMS, "experiments/tiny.yaml": EXPERIMENT, **(files or {})}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a plugin module as its own distribution: install("acme", "losses", source) -> file."""
    modules = []

    def write(distribution: str, plugin: str, source: str) -> Path:
        site = tmp_path / f"site-{distribution}"
        module = f"{distribution.replace('-', '_')}_{plugin.replace('-', '_')}"
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[cl_core]\n{plugin} = {module}\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        modules.append(module)
        return site / f"{module}.py"

    yield write
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def contrast():
    """A function that runs the command line in a folder: contrast(folder, "check") -> CompletedProcess."""

    def run(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pipelines", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **options)

    return run
