"""Describe the installed plugins: the table and JSON of `contrast plugins`, the JSON Schema of the YAML files."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cl_core.config import ExperimentConfig, ParamsConfig
from cl_core.errors import PluginError
from cl_core.registry import Entry, Registry

# Where parts are named in the YAML files: definition of the section, key, kind of part.
PART_KEYS = {
    "params": [("DataConfig", "source", "source")],
    "experiment": [
        ("", "method", "method"),
        ("", "encoder", "encoder"),
        ("", "loss", "loss"),
        ("", "score", "score"),
        ("ViewsConfig", "recipe", "recipe"),
        ("ViewsConfig", "chains", "augmentation"),
        ("TrainConfig", "trackers", "tracker"),
        ("DistilConfig", "encoder", "encoder"),
    ],
}


def describe(entry: Entry) -> dict[str, Any]:
    """One part as JSON: kind, name, provider, version, options with type, default and bounds, summary, error."""
    base = {
        "kind": entry.kind,
        "name": entry.name,
        "plugin": entry.plugin,
        "provider": entry.provider,
        "version": entry.version,
        "module": entry.module,
    }
    try:
        schema = entry.model.model_json_schema()
        options = [_option(name, entry, schema) for name in entry.options]
        return base | {"summary": entry.summary, "parts": entry.parts, "options": options, "error": None}
    except PluginError as error:
        return base | {"summary": "", "parts": [], "options": [], "error": str(error)}


def describe_all(registry: Registry, kind: str | None = None) -> dict[str, Any]:
    """All parts and all plugins that did not load, as JSON."""
    return {
        "parts": [describe(entry) for entry in registry.entries(kind)],
        "broken": [vars(broken) for broken in registry.broken],
    }


def json_schemas(registry: Registry) -> dict[str, dict[str, Any]]:
    """{"params": ..., "experiment": ...}: JSON Schemas of the YAML files with the installed parts' options in them."""
    models: dict[str, type[BaseModel]] = {"params": ParamsConfig, "experiment": ExperimentConfig}
    schemas = {name: model.model_json_schema() for name, model in models.items()}
    for file, schema in schemas.items():
        for section, key, kind in PART_KEYS[file]:
            properties = (schema["$defs"][section] if section else schema)["properties"]
            properties[key] = _replace_part(properties[key], {"oneOf": _alternatives(registry, kind, schema)})
    return schemas


def _option(name: str, entry: Entry, schema: Mapping[str, Any]) -> dict[str, Any]:
    parameter = entry.options[name]
    shape = {key: value for key, value in schema["properties"][name].items() if key not in {"title", "default"}}
    option: dict[str, Any] = {"name": name, "type": annotation_text(parameter.annotation), "schema": shape}
    if parameter.default is not inspect.Parameter.empty:
        option["default"] = json.loads(json.dumps(parameter.default, default=str))
    return option


def annotation_text(annotation: Any) -> str:
    """An annotation as a user reads it: `float in [0, 1]`, `"bilinear" | "bicubic"`."""
    from annotated_types import Ge, Gt, Le, Lt

    metadata = [*getattr(annotation, "__metadata__", ())]
    if not metadata:
        return _type_text(annotation)
    bounds = [item for part in metadata for item in getattr(part, "metadata", [part])]
    text = annotation_text(annotation.__origin__)
    low = next((f"[{b.ge:g}" if isinstance(b, Ge) else f"({b.gt:g}" for b in bounds if isinstance(b, Ge | Gt)), "(-inf")
    high = next((f"{b.le:g}]" if isinstance(b, Le) else f"{b.lt:g})" for b in bounds if isinstance(b, Le | Lt)), "inf)")
    return f"{text} in {low}, {high}" if (low, high) != ("(-inf", "inf)") else text


def _type_text(annotation: Any) -> str:
    from typing import Literal, get_args, get_origin

    if annotation is inspect.Parameter.empty:
        return "any"
    if get_origin(annotation) is Literal:
        return " | ".join(json.dumps(value) for value in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return "none" if annotation is type(None) else annotation.__name__
    inner = [annotation_text(argument) for argument in get_args(annotation) if argument is not Ellipsis]
    origin = get_origin(annotation)
    name = getattr(origin, "__name__", str(annotation))
    return " | ".join(inner) if name in {"Union", "UnionType"} else f"{name}[{', '.join(inner)}]" if inner else name


def _alternatives(registry: Registry, kind: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """One object schema per installed part; definitions it needs are moved to the file's."""
    found = []
    for entry in registry.entries(kind):
        try:
            part = entry.model.model_json_schema()
        except PluginError:
            continue  # `contrast plugins` reports it; an editor cannot
        schema["$defs"].update(part.pop("$defs", {}))
        part["properties"] = {"name": {"const": entry.name}} | part.get("properties", {})
        part["required"] = ["name", *part.get("required", [])]
        found.append(part | {"title": entry.name, "description": entry.summary})
    return found


def _replace_part(node: Any, replacement: dict[str, Any]) -> Any:
    """A copy of a schema with every reference to PartSpec replaced."""
    if isinstance(node, dict):
        if node.get("$ref") == "#/$defs/PartSpec":
            return {**{key: value for key, value in node.items() if key != "$ref"}, **replacement}
        return {key: _replace_part(value, replacement) for key, value in node.items()}
    return [_replace_part(item, replacement) for item in node] if isinstance(node, list) else node
