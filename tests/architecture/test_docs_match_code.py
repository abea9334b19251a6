"""The documents say what the code does: commands, hooks, parts and stages are all described."""

import inspect
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cl_core import hookspecs
from cl_core.registry import HOOKS, load_registry
from cl_core.resolve import ONCE, OPTIONAL, PER_EXPERIMENT

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PLUGINS_PAGE = (ROOT / "docs" / "plugins.md").read_text()
HOOK_NAMES = [name for name, value in vars(hookspecs).items() if hasattr(value, "cl_core_spec")]


def test_every_hook_that_registers_parts_has_a_kind_and_the_other_way_round():
    assert {name for name in HOOK_NAMES if name.startswith("register_")} == set(HOOKS.values())


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_every_hook_is_documented_with_its_exact_arguments(name):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    assert f"`{name}({arguments})`" in PLUGINS_PAGE


def test_every_command_is_in_the_readme():
    from pipelines.cli import COMMANDS

    for command in COMMANDS:
        assert f"`contrast {command}" in README, f"describe `contrast {command}` in README.md"


@pytest.mark.parametrize("entry", load_registry().entries(), ids=lambda entry: f"{entry.kind}:{entry.name}")
def test_every_built_in_part_is_in_the_readme_and_says_what_it_is(entry):
    if entry.provider == "contrast":
        assert f"`{entry.name}`" in README, f"add {entry.kind} {entry.name} to the table of parts"
    assert entry.summary, f"{entry.kind} {entry.name} has no docstring"


def test_every_stage_is_in_dvc_yaml_and_depends_on_its_resolved_file():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["resolve", "ingest", *PER_EXPERIMENT, *OPTIONAL, "report"]
    for name in (*ONCE, *PER_EXPERIMENT, *OPTIONAL):
        assert f"{name}.json" in json.dumps(stages[name]), f"stage {name} must depend on its resolved file"


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
