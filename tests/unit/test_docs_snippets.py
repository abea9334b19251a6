"""Python snippets in the documents run, YAML snippets parse, and parts that they define keep the contract."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cl_core.data.views import Chain
from cl_core.registry import HOOKS
from cl_core.testing import check_augmentation, check_method
from plugins.encoders import resnet8

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def snippets(language):
    found = [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{index}")
        for page in PAGES
        for index, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL))
    ]
    assert found
    return pytest.mark.parametrize("code", found)


CHECKS = {
    "augmentation": lambda factory: check_augmentation(factory()),
    "method": lambda factory: check_method(factory(resnet8(width=4), Chain([]))),
}


@snippets("python")
def test_python_snippets_run_and_their_parts_keep_the_contract(code):
    names: dict[str, object] = {"__name__": "snippet"}
    exec(compile(code, "snippet", "exec"), names)  # noqa: S102 - our own documents
    assert len(names) > 2
    for kind, hook in HOOKS.items():
        for factory in names.get(hook, dict)().values():
            CHECKS[kind](factory)


@snippets("yaml")
def test_yaml_snippets_parse_to_mappings(code):
    assert isinstance(YAML(typ="safe").load(code), dict)
