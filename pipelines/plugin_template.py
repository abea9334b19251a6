"""`contrast plugins new`: a working third-party package with one part and its passing test."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from cl_core.errors import ConfigError

TEMPLATES = Path(__file__).parent / "templates" / "plugin"
NAME = re.compile(r"^[a-z][a-z0-9]*([-_][a-z0-9]+)*$")


def write_plugin(name: str, kind: str, into: Path) -> Path:
    """Write contrast-plugin-NAME with one part of the kind; returns its folder.

    Raises ConfigError for a name that is no lower-case identifier and for a folder that exists.
    """
    if not NAME.match(name):
        raise ConfigError(f"{name!r} cannot name a plugin; use lower-case letters, digits and single dashes: my-{kind}")
    folder = into / f"contrast-plugin-{name.replace('_', '-')}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already; remove it, choose another name or another folder with --into")
    words = re.split("[-_]", name)
    values = {
        "part": "_".join(words),
        "kind": kind,
        "distribution": folder.name,
        "module": f"contrast_plugin_{'_'.join(words)}",
        "cls": "".join(word.capitalize() for word in words),
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{values['module']}.py": f"{kind}.py",
        f"tests/test_{values['module']}.py": f"test_{kind}.py",
    }
    for target, template in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((TEMPLATES / f"{template}.tmpl").read_text()).substitute(values))
    return folder
