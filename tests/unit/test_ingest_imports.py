"""Ingest handles images that others will train on; it must not pay for what trains."""

import subprocess
import sys


def test_the_stage_ingest_does_without_torch():
    code = (
        "import sys, pipelines.stages, cl_core.data.ingest\n"
        "from cl_core.registry import load_registry\n"
        "registry = load_registry([])\n"
        "for name in ('image_folder', 'digits'): registry.get('source', name).factory\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
