"""Values as YAML on one line, for the files that commands write with a comment behind each value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def flow(value: Any) -> str:
    """A value of JSON's kinds (tuples too) in flow style; a string is quoted unless it can only be read as itself."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[a-z][\w-]*", value) and value not in ("true", "false", "null")
    return value if plain else json.dumps(value)
