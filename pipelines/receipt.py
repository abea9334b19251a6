"""What artifacts/resolved/ was last made of: where none of it has changed, a run need not resolve again, or load torch.

Resolving is a function of the settings, the code of plugins and engine, what is installed, and the images. The receipt
holds a hash of each but the images, whose fingerprint is in ingest.json, and of what resolving has written.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cl_core.data.files import read_json, sha256_bytes, sha256_file, write_json
from cl_core.project import build_source
from cl_core.provenance import ENGINE, RESOURCES, top_level
from cl_core.registry import Registry, load_registry
from cl_core.resolve import RESOLVED, RUN_LIST

RECEIPT = Path(".contrast/resolved.json")
CODE = (".py", *RESOURCES)
INSTALLED = (".dist-info", ".egg-info", ".pth")  # names hold the versions, times of change tell reinstallations


def still_holds(project: Path) -> bool:
    """Whether resolving the project again would give what artifacts/resolved/ holds."""
    try:
        registry = _registry(project)
        if read_json(project / RECEIPT) != {"inputs": _inputs(project, registry), "resolved": _resolved(project)}:
            return False
        ingest = read_json(project / RESOLVED / "ingest.json")
        fingerprint = build_source(registry, ingest["config"]["source"], project).fingerprint()
        return bool(json.loads(json.dumps(dict(fingerprint))) == ingest["fingerprint"])
    except Exception:  # whatever is wrong, resolving says it in full
        return False


def begin(project: Path) -> dict[str, str] | None:
    """What resolving is about to read, None where it cannot be told. Before, since files may be edited meanwhile."""
    try:
        return _inputs(project, _registry(project))
    except Exception:  # as above
        return None


def keep(project: Path, inputs: dict[str, str] | None) -> None:
    """Note that the resolved files were made of these inputs."""
    if inputs is None:
        (project / RECEIPT).unlink(missing_ok=True)
    else:
        write_json(project / RECEIPT, {"inputs": inputs, "resolved": _resolved(project)})


def _registry(project: Path) -> Registry:
    params: dict[str, Any] = YAML(typ="safe", pure=True).load(project / "params.yaml")
    return load_registry((params.get("plugins") or {}).get("block") or ())


def _inputs(project: Path, registry: Registry) -> dict[str, str]:
    settings = [project / "params.yaml", *(project / "experiments").rglob("*.yaml")]
    return {
        "python": sys.version,
        "settings": _digest(settings),
        "code": _digest(file for package in _packages(registry) for file in _code(package)),
        "installed": _installed(),
    }


def _resolved(project: Path) -> str:
    return _digest([project / RUN_LIST, *(project / RESOLVED).rglob("*.json")])


def _packages(registry: Registry) -> set[str]:
    """Top-level packages of everything that registers parts, and the engine."""
    modules = {entry.module.partition(".")[0] for entry in registry.entries()}
    providers = {found.provider for found in (*registry.entries(), *registry.broken)}
    return modules | {name for provider in providers for name in top_level(provider)} | {ENGINE}


def _code(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        yield Path(str(spec.origin))
    for folder in spec.submodule_search_locations or ():
        yield from (path for path in Path(folder).rglob("*") if path.suffix in CODE)


def _installed() -> str:
    folders = [Path(folder) for folder in sys.path if Path(folder).is_dir()]
    found = [path for folder in folders for path in folder.iterdir() if path.suffix in INSTALLED]
    return _hash(f"{path} {path.stat().st_mtime_ns}" for path in sorted(found))


def _digest(files: Iterable[Path]) -> str:
    return _hash(f"{path} {sha256_file(path)}" for path in sorted(files))


def _hash(lines: Iterable[str]) -> str:
    return sha256_bytes("\n".join(lines).encode())
