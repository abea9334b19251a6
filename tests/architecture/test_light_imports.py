"""What must stay importable without the heavy libraries, seen in a fresh interpreter."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "prefect", "dvc", "pydantic", "numpy", "rich")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import cl_core.hookspecs", "import plugins.losses, plugins.methods"])
def test_declaring_parts_imports_nothing_heavy(code):
    assert modules_after(code) == set()


def test_listing_parts_does_not_import_torch():
    code = "from cl_core.registry import load_registry; assert load_registry().entries('method')"
    assert modules_after(code) <= {"pydantic"}


def test_the_engine_and_the_built_ins_work_without_prefect_and_dvc():
    code = """
import sys
for name in ("prefect", "dvc"):
    sys.modules[name] = None  # importing it now raises ImportError
from cl_core.registry import load_registry
import cl_core.training.trainer, cl_core.evaluation.few_labels, cl_core.report.page, cl_core.resolve
for entry in load_registry().entries():
    entry.factory
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
