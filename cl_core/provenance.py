"""Which code made a result: hashes of the modules behind a part or a stage, and versions.

A digest covers a module and the modules it imports, transitively, as far as they belong to the same packages. It reads
source files and imports nothing but parent packages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from cl_core.registry import Entry

ENGINE = "cl_core"

# The modules that a stage's result depends on, besides its parts. Stages run in pipelines/, which holds no maths.
STAGE_MODULES = {
    "ingest": ["cl_core.data.ingest"],
    "views": ["cl_core.data.views", "cl_core.assembly"],
    "pretrain": ["cl_core.training.trainer", "cl_core.assembly"],
    "embed": ["cl_core.evaluation.features", "cl_core.evaluation.look_alikes", "cl_core.assembly"],
    "linear_eval": ["cl_core.evaluation.linear", "cl_core.evaluation.yardsticks", "cl_core.assembly"],
    "finetune": ["cl_core.evaluation.finetune", "cl_core.assembly"],
    "diagnose": ["cl_core.evaluation.diagnose", "cl_core.measures.diagnostics", "cl_core.assembly"],
    "distil": ["cl_core.evaluation.distil", "cl_core.assembly"],
    "report": ["cl_core.report.page"],
}
STAGE_LIBRARIES = {
    "ingest": ("numpy", "pillow", "simplejpeg", "pyarrow"),
    "report": ("matplotlib", "jinja2"),
}
RESOURCES = (".html", ".css")
TRAINING_LIBRARIES = ("torch", "torchvision", "timm", "lightning-fabric", "numba")


def library_versions(stage: str) -> dict[str, str]:
    """Versions of the libraries whose upgrade may change a stage's result."""
    return {name: importlib.metadata.version(name) for name in STAGE_LIBRARIES.get(stage, TRAINING_LIBRARIES)}


class Sources:
    """The source files as they are at one time: each is looked for, read and parsed once, however many digests need it.

    Files that are edited later are seen by the next instance.
    """

    def __init__(self) -> None:
        self._source_file = cache(self._find)
        self._imports = cache(self._read_imports)
        self._digest = cache(self._compute_digest)

    def part_digest(self, entry: Entry) -> str:
        """Digest of the source of a part: its module and what it imports from its own distribution, the engine
        excepted."""
        packages = {entry.module.partition(".")[0], *top_level(entry.provider)} - {ENGINE}
        return self.source_digest([entry.module], packages)

    def engine_digest(self, stage: str) -> str:
        """Digest of the engine modules that a stage uses."""
        return self.source_digest(STAGE_MODULES[stage], {ENGINE})

    def source_digest(self, modules: Iterable[str], packages: Collection[str]) -> str:
        """sha256 over names and sources of the modules and their imports within the given top-level packages."""
        return self._digest(frozenset(modules), frozenset(packages))

    def imported_modules(self, modules: Iterable[str], packages: Collection[str]) -> set[str]:
        """The modules and everything they import within the packages, transitively, imports inside functions
        included."""
        found: set[str] = set()
        queue = list(modules)
        while queue:
            name = queue.pop()
            if name in found or name.partition(".")[0] not in packages:
                continue
            found.add(name)
            queue.extend(self._imports(name))
        return found

    def _compute_digest(self, modules: frozenset[str], packages: frozenset[str]) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.imported_modules(modules, packages)):
            for path in self._files(name):
                digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()

    def _files(self, name: str) -> list[Path]:
        """The source of a module and the templates and styles that lie beside it."""
        path = self._source_file(name)
        if path is None:
            return []
        beside = (item for item in path.parent.iterdir() if item.suffix in RESOURCES)
        return [path, *sorted(beside)]

    def _read_imports(self, name: str) -> tuple[str, ...]:
        path = self._source_file(name)
        if path is None:
            return ()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported: list[str] = []
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                imported += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported += self._imported_from(node, package)
        return tuple(imported)

    def _imported_from(self, node: ast.ImportFrom, package: str) -> list[str]:
        """`from a.b import c` names the module a.b, or a.b.c where that is one."""
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module or "") if part)
        submodules = [f"{module}.{alias.name}" for alias in node.names]
        existing = [name for name in submodules if self._source_file(name) is not None]
        return existing + ([module] if len(existing) < len(submodules) else [])

    def _find(self, name: str) -> Path | None:
        """The source of a module, found without running it; None for anything that is no Python file."""
        parent, _, tail = name.rpartition(".")
        if not parent:
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError):
                return None
            origin = None if spec is None else spec.origin
            return Path(origin) if origin and origin.endswith(".py") else None
        package = self._source_file(parent)
        if package is None or package.name != "__init__.py":
            return None
        candidates = (package.parent / f"{tail}.py", package.parent / tail / "__init__.py")
        return next((path for path in candidates if path.is_file()), None)


def top_level(provider: str) -> list[str]:
    """Names of the packages and modules that a distribution installs; none where it does not say."""
    try:
        return (importlib.metadata.distribution(provider).read_text("top_level.txt") or "").split()
    except importlib.metadata.PackageNotFoundError:
        return []
