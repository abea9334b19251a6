"""Who may import whom. Imports inside functions and under TYPE_CHECKING count."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Tiers of cl_core, lowest first; a module imports only from its own tier or those before it.
TIERS = [
    [
        "cl_core.allocator",
        "cl_core.errors",
        "cl_core.distributed",
        "cl_core.data.sampling",
        "cl_core.examples",
        "cl_core.ranges",
        "cl_core.types",
        "cl_core.heads",
        "cl_core.tiled",
    ],
    ["cl_core.hookspecs"],
    ["cl_core.registry"],
    ["cl_core.config", "cl_core.documents"],
    ["cl_core.data"],
    ["cl_core.assembly"],
    ["cl_core.measures"],
    ["cl_core.training"],
    ["cl_core.evaluation"],
    ["cl_core.project", "cl_core.provenance"],
    ["cl_core.resolve", "cl_core.check", "cl_core.listing", "cl_core.report", "cl_core.testing"],
]
PLUGIN_API = {
    "cl_core",
    "cl_core.types",
    "cl_core.examples",
    "cl_core.distributed",
    "cl_core.errors",
    "cl_core.heads",
    "cl_core.tiled",
    "cl_core.hookspecs",
    "cl_core.data.lazy",
    "cl_core.data.sampling",
    "cl_core.measures.diagnostics",
    "cl_core.measures.logistic",
}


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if "templates" not in path.parts)
    return [name.removesuffix(".__init__") for name in names]


def imports(module: str) -> set[str]:
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import; write the full name"
            found.update(resolve(node.module, alias.name) for alias in node.names)
    return found


def resolve(module: str, name: str) -> str:
    path = ROOT / Path(*module.split("."))
    is_submodule = (path / f"{name}.py").is_file() or (path / name / "__init__.py").is_file()
    return f"{module}.{name}" if is_submodule else module


def tier(module: str) -> int:
    matches = [
        (len(prefix), index)
        for index, prefixes in enumerate(TIERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert matches, f"{module} has no tier; give it one in {__file__}"
    return max(matches)[1]


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [name for name in modules("cl_core") if name != "cl_core"])
def test_the_engine_imports_only_from_tiers_below(module):
    for imported in imports(module):
        assert top(imported) not in {"plugins", "pipelines", "prefect", "dvc"}, f"{module} imports {imported}"
        if top(imported) == "cl_core" and imported != "cl_core":
            assert tier(imported) <= tier(module), f"{module} imports {imported} from a higher tier"


def test_the_engine_has_no_import_cycles():
    names = [name for name in modules("cl_core") if name != "cl_core"]
    graph = {name: {other for other in imports(name) if top(other) == "cl_core"} for name in names}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for imported in sorted(graph.get(name, ())):
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert len(done) >= len(graph)


@pytest.mark.parametrize("module", modules("plugins"))
def test_plugins_use_the_public_api_and_not_each_other(module):
    folder = ".".join(module.split(".")[:2])
    for imported in imports(module):
        assert top(imported) not in {"pipelines", "prefect", "dvc"}, f"{module} imports {imported}"
        if top(imported) == "cl_core":
            assert imported in PLUGIN_API, f"{module} imports {imported}, which is not public to plugins"
        if top(imported) == "plugins":
            assert imported.startswith(folder), f"{module} imports {imported} of another folder"


@pytest.mark.parametrize("module", modules("pipelines"))
def test_the_orchestration_knows_no_part_and_one_file_per_tool(module):
    found = imports(module)
    assert not [name for name in found if top(name) == "plugins"], f"{module} imports plugins; parts arrive by name"
    if module != "pipelines.flows":
        assert not [name for name in found if top(name) == "prefect"], f"{module} imports prefect"
    if module != "pipelines.dvc_repo":
        assert not [name for name in found if top(name) == "dvc"], f"{module} imports dvc"


def test_the_engine_names_no_built_in_part():
    from cl_core.registry import load_registry

    names = {entry.name for entry in load_registry().entries() if entry.kind in {"method", "encoder", "loss"}}
    assert {"simclr", "byol", "jigsaw", "resnet8", "nt_xent"} <= names
    for module in modules("cl_core"):
        tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
        branches = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Match)]
        words = {c.value for branch in branches for c in ast.walk(branch) if isinstance(c, ast.Constant)}
        assert not {word for word in words if isinstance(word, str)} & names, f"{module} branches on a part's name"


@pytest.mark.parametrize("module", [*modules("cl_core"), *modules("plugins"), *modules("pipelines")])
def test_every_module_opens_by_saying_what_it_is_for(module):
    path = Path(importlib.util.find_spec(module).origin)
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
