"""A scratch project whose stages are trivial commands run by real DVC, shared by the tests of DVC and of the flow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dvc_repo import child_environment

DVC_YAML = """\
stages:
  resolve:
    cmd: python job.py resolve.txt out/resolved
    always_changed: true
    outs:
      - out/resolved: {cache: false}
  ingest:
    cmd: python job.py ingest.txt out/data
    deps: [ingest.txt]
    outs: [out/data]
  pretrain:
    foreach: ${experiments}
    do:
      cmd: python job.py ${item}.txt out/${item}/encoder out/data
      deps:
        - ${item}.txt
        - out/data
      outs:
        - out/${item}/encoder
  report:
    cmd: python job.py report.txt out/report
    deps:
      - report.txt
      - out/a/encoder
      - out/b/encoder
    outs: [out/report]
"""
# What a stage does is in its script, one word and one number per line; lines starting with # are not written out.
JOB = """\
import os, sys, time
from pathlib import Path

script, out, *inputs = sys.argv[1:]
text = Path(script).read_text()
for line in text.splitlines():
    word, _, argument = line.partition(" ")
    if word == "sleep":
        print("sleeping as", os.getpid(), flush=True)
        time.sleep(float(argument))
    if word == "threads":
        print("threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
    if word == "say":
        print(argument, flush=True)
    if word == "meet":  # only returns when another stage has come to the same place
        Path(f"met-{os.getpid()}").touch()
        end = time.monotonic() + 60
        while len(list(Path().glob("met-*"))) < 2:
            if time.monotonic() > end:
                sys.exit("nobody came")
            time.sleep(0.05)
    if word == "fail":
        sys.exit(int(argument))
    if word == "fail-once" and not Path("failed").exists():
        Path("failed").touch()
        sys.exit(int(argument))
kept = [line for line in text.splitlines() if not line.startswith("#")]
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text("\\n".join(kept) + "".join(Path(name).read_text() for name in inputs))
"""


def write_scratch(folder: Path) -> Path:
    """Write the scratch project; it needs no git."""
    scripts = {f"{name}.txt": f"say {name}\n" for name in ("resolve", "ingest", "a", "b", "report")}
    config = {".dvc/config": "[core]\n    no_scm = true\n    analytics = false\n"}
    params = {"params.yaml": "experiments: [a, b]\nrun: {jobs: 2, retries: 1}\n"}
    for name, text in {"dvc.yaml": DVC_YAML, "job.py": JOB, **scripts, **config, **params}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def scratch(tmp_path):
    """The scratch project, not run yet."""
    return write_scratch(tmp_path / "scratch")


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    folder = write_scratch(tmp_path_factory.mktemp("finished") / "scratch")
    dvc = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    subprocess.run(dvc, cwd=folder, env=child_environment(), check=True)
    return folder


@pytest.fixture
def finished(_finished, tmp_path):
    """A copy of the scratch project in which every stage has run."""
    return Path(shutil.copytree(_finished, tmp_path / "scratch", ignore=shutil.ignore_patterns("tmp")))
