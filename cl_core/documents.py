"""Read a YAML file, check it against a model, and say where each mistake stands and how to fix it.

Reads YAML 1.2, the dialect DVC reads: `1e-3` is a number, `on` is text.
"""

from __future__ import annotations

import json
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from cl_core.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A YAML file: its data, and where each key stands."""

    path: Path
    shown: str
    data: Any
    root: Node | None

    def line(self, location: Sequence[str | int]) -> int:
        """Line (from 1) of the deepest part of the location that exists."""
        node, line = self.root, 1
        for step in location:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def problem(self, location: Sequence[str | int], rule: str) -> str:
        """One line of a ConfigError: file, line, key path, what is wrong."""
        where = f"{self.shown}:{self.line(location)}"
        path = ".".join(str(step) for step in location)
        return f"{where}: {path}: {rule}" if path else f"{where}: {rule}"


def read_yaml(path: Path, shown: str) -> Document:
    """Read a YAML 1.2 file. Raises ConfigError for a missing file, bad syntax, a repeated key, or no mapping."""
    if not path.is_file():
        raise ConfigError(f"{shown}: there is no such file; create it, or run `contrast init` for a working project")
    text = path.read_text()
    try:
        data = YAML(typ="safe", pure=True).load(text)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{shown}:{line}: not valid YAML: {error.problem or error.context}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{shown}:1: must be a mapping of sections, got {type(data).__name__}")
    return Document(path, shown, data, root)


def validate(model: type[Model], document: Document) -> Model:
    """Check a document against a section model. Raises one ConfigError with every problem in it."""
    try:
        # Strict JSON mode: a YAML list may become a tuple, but "8" never becomes 8.
        return model.model_validate_json(json.dumps(document.data, default=str))
    except ValidationError as error:
        raise ConfigError(explain(error, model, document)) from None


def explain(
    error: ValidationError, model: type[BaseModel], document: Document, prefix: Sequence[str | int] = ()
) -> list[str]:
    """Turn pydantic's errors into one line each: file:line: key path: rule, got value, nearest name."""
    problems = []
    for item in error.errors(include_url=False):
        location = [step for step in item["loc"] if step not in ("as-number", "as-rule")]
        problems.append(document.problem([*prefix, *location], _rule(dict(item), model, location)))
    return problems


def expand_environment(value: Any, where: str) -> Any:
    """Replace `${NAME}` in every text of a value by the environment's. Raises ConfigError naming unset variables."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: _environment(match.group(1), where), value)
    if isinstance(value, Mapping):
        return {key: expand_environment(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand_environment(item, where) for item in value]
    return value


def _environment(name: str, where: str) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"{where}: environment variable {name} is not set; export {name}=... or write the path itself"
        )
    return os.environ[name]


def _rule(item: dict[str, Any], model: type[BaseModel], location: Sequence[str | int]) -> str:
    if item["type"] == "extra_forbidden":
        known = fields_at(model, location[:-1])
        return f"unknown key{did_you_mean(str(location[-1]), known)}; known keys: {', '.join(known)}"
    if item["type"] == "missing":
        return f"is required and missing{_help_at(model, location)}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = item["input"]
    return message if isinstance(shown, dict | list) else f"{message}, got {shown!r}"


def fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the keys allowed at a location inside a model."""
    section = _section_at(model, location)
    return [] if section is None else list(section.model_fields)


def _help_at(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """ ": " and the help of the field at a location, "" where it has none."""
    section = _section_at(model, location[:-1])
    field = None if section is None else section.model_fields.get(str(location[-1]))
    return f": {field.description}" if field is not None and field.description else ""


def _section_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    for step in location:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step)
        nested = None if field is None else _model_in(field.annotation)
        if nested is None:
            return None
        model = nested
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    candidates = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((candidate for candidate in candidates if candidate is not None), None)


def _child(node: Node | None, step: str | int) -> tuple[int, Node] | None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None
