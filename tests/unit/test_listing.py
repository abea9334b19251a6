"""`contrast plugins` and `contrast schema`: what they tell of each part."""

import json

import pytest

from cl_core.listing import annotation_text, describe, describe_all, json_schemas
from cl_core.registry import load_registry

REGISTRY = load_registry()


def test_a_part_is_described_with_options_types_defaults_and_bounds():
    described = describe(REGISTRY.get("loss", "nt_xent"))
    option = next(option for option in described["options"] if option["name"] == "temperature")
    assert option["default"] == 0.5
    assert option["type"] == "float in (0, inf)"
    assert option["schema"]["exclusiveMinimum"] == 0
    assert described["provider"] == "contrast"
    assert described["summary"]


def test_a_method_names_the_parts_that_the_pipeline_hands_over():
    assert {"encoder", "augment", "loss"} <= set(describe(REGISTRY.get("method", "simclr"))["parts"])


def test_broken_plugins_are_listed_with_their_error(install):
    install("broken", "broken-plugin", "1/0")
    found = describe_all(load_registry())
    assert found["broken"][0]["plugin"] == "broken-plugin"
    assert "ZeroDivisionError" in found["broken"][0]["error"]
    assert json.dumps(found)


def test_a_part_that_cannot_be_imported_is_listed_with_its_error(install):
    install("acme", "late", "from cl_core import hookimpl\n@hookimpl\ndef register_losses(): return {'l': 'no_such:L'}")
    described = describe(load_registry().get("loss", "l"))
    assert "cannot be imported" in described["error"]


@pytest.mark.parametrize(
    ("kind", "name", "file", "path"),
    [
        ("method", "simclr", "experiment", ["properties", "method"]),
        ("encoder", "resnet8", "experiment", ["properties", "encoder"]),
        ("encoder", "vit", "experiment", ["$defs", "DistilConfig", "properties", "encoder"]),
        ("recipe", "byol", "experiment", ["$defs", "ViewsConfig", "properties", "recipe"]),
        ("source", "image_folder", "params", ["$defs", "DataConfig", "properties", "source"]),
    ],
)
def test_the_schema_of_the_yaml_files_holds_the_options_of_installed_parts(kind, name, file, path):
    node = json_schemas(REGISTRY)[file]
    for step in path:
        node = node[step]
    text = json.dumps(node)
    assert f'"const": "{name}"' in text
    for option in REGISTRY.get(kind, name).options:
        assert f'"{option}"' in text


def test_every_option_has_a_readable_type():
    for entry in REGISTRY.entries():
        for parameter in entry.options.values():
            text = annotation_text(parameter.annotation)
            assert "Annotated" not in text
            assert "FieldInfo" not in text
            assert text != "any", f"{entry.kind} {entry.name} has an option without a type: {parameter.name}"
