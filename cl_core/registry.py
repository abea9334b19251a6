"""Find plugins, look a part up by name, check its options against its signature, build it.

Loads entry points one at a time: a broken plugin costs only itself and is remembered in `Registry.broken`. Nothing is
loaded at import; every `load_registry()` makes a fresh manager.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pluggy
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from cl_core import hookspecs
from cl_core.errors import ConfigError, PluginError, did_you_mean

HOOKS = {
    "source": "register_sources",
    "augmentation": "register_augmentations",
    "recipe": "register_recipes",
    "encoder": "register_encoders",
    "loss": "register_losses",
    "score": "register_scores",
    "method": "register_methods",
    "tracker": "register_trackers",
}

Parameters = dict[str, inspect.Parameter]


def is_part(argument: str) -> bool:
    """Whether the engine hands over this argument of a factory; every other keyword is an option in YAML."""
    handed_over = {"encoder", "encoder_factory", "loss", "score", "image_size", "in_channels", "width_mult"}
    return argument in handed_over or argument == "augment" or argument.startswith("augment_")


@dataclass(frozen=True)
class Entry:
    """One registered part: what it is called, where it is, and who brought it."""

    kind: str
    name: str
    target: str | Callable[..., Any]
    plugin: str
    provider: str
    version: str

    @cached_property
    def factory(self) -> Callable[..., Any]:
        """The class or function itself, imported when first asked for. Raises PluginError where that fails."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin!r} ({self.provider} {self.version}) cannot be "
                f"imported from {self.target}: {type(error).__name__}: {error}"
            ) from error
        return factory

    @property
    def module(self) -> str:
        """Name of the module that defines the part."""
        return self.target.partition(":")[0] if isinstance(self.target, str) else self.target.__module__

    @cached_property
    def parameters(self) -> Parameters:
        """All arguments of the factory, annotations evaluated."""
        try:
            return dict(inspect.signature(self.factory, eval_str=True).parameters)
        except (ValueError, NameError) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin!r} has no readable signature ({error}); import the "
                f"names of its annotations at run time, not under TYPE_CHECKING"
            ) from error

    @property
    def parts(self) -> list[str]:
        """Arguments that the engine hands over (`encoder`, `augment`, ...)."""
        return [name for name in self.parameters if is_part(name)]

    @property
    def options(self) -> Parameters:
        """Arguments that are options in YAML."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {name: p for name, p in self.parameters.items() if not is_part(name) and p.kind not in variadic}

    @property
    def summary(self) -> str:
        """First line of the part's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @cached_property
    def model(self) -> type[BaseModel]:
        """The options as a strict pydantic model: the check on the way in, and the JSON schema."""
        fields: dict[str, Any] = {
            name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
            for name, p in self.options.items()
        }
        config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
        return create_model(f"{self.kind} {self.name}", __config__=config, **fields)

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with defaults filled in. Raises pydantic's ValidationError; `Registry.build` words it."""
        # Strict JSON mode: a YAML list may become a tuple, but "8" never becomes 8.
        checked = self.model.model_validate_json(json.dumps(dict(options)))
        return {name: getattr(checked, name) for name in self.options}


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why."""

    plugin: str
    provider: str
    version: str
    error: str


@dataclass
class Registry:
    """All parts of all plugins that loaded, by (kind, name), and the plugins that did not."""

    manager: pluggy.PluginManager
    broken: list[Broken] = field(default_factory=list)
    _entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All parts, or those of one kind, in the order of kind and name."""
        found = [entry for entry in self._entries.values() if kind in (None, entry.kind)]
        return sorted(found, key=lambda entry: (list(HOOKS).index(entry.kind), entry.name))

    def get(self, kind: str, name: str) -> Entry:
        """The part of that name. Raises ConfigError with the nearest name and the plugins that failed to load."""
        if (kind, name) not in self._entries:
            known = [entry.name for entry in self.entries(kind)]
            message = (
                f"no {kind} is called {name!r}{did_you_mean(name, known)}; installed: {', '.join(known) or 'none'}"
            )
            for broken in self.broken:
                message += f"; plugin {broken.plugin!r} ({broken.provider}) did not load: {broken.error}"
            raise ConfigError(message)
        return self._entries[kind, name]

    def build(self, kind: str, name: str, options: Mapping[str, Any], **parts: Any) -> Any:
        """Build a part. `options` come from YAML and are checked; of `parts` it gets those it asks for."""
        entry = self.get(kind, name)
        try:
            checked = entry.check(options)
        except ValidationError as error:
            raise ConfigError([f"{kind} {name!r}: {rule}" for _, rule in option_problems(entry, error)]) from None
        wanted = {key: part for key, part in parts.items() if key in entry.parameters}
        return entry.factory(**checked, **wanted)

    def add(self, entry: Entry) -> None:
        """Register one part. Raises PluginError where another plugin has that name already."""
        rival = self._entries.get((entry.kind, entry.name))
        if rival is not None:
            raise PluginError(
                f"{entry.kind} {entry.name!r} comes from plugin {rival.plugin!r} ({rival.provider} {rival.version}) "
                f"and from plugin {entry.plugin!r} ({entry.provider} {entry.version}); uninstall one, or add its "
                f"plugin to plugins.block in params.yaml"
            )
        self._entries[entry.kind, entry.name] = entry


def option_problems(entry: Entry, error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """(location, rule) for each wrong option, in words."""
    problems = []
    for item in error.errors(include_url=False):
        if item["type"] == "extra_forbidden":
            taken = ", ".join(entry.options) or "none"
            word = str(item["loc"][-1])
            rule = f"unknown option {word!r}{did_you_mean(word, entry.options)}; {entry.name} takes: {taken}"
        elif item["type"] == "missing":
            rule = f"{entry.name} needs the option {item['loc'][-1]!r}"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
            rule = f"{'.'.join(map(str, item['loc']))} {message}, got {item['input']!r}"
        problems.append((tuple(item["loc"]), rule))
    return problems


def load_registry(block: Collection[str] = ()) -> Registry:
    """Load every installed plugin but the blocked ones.

    Raises PluginError where two distributions use one entry-point name or two plugins register one part.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)
    points = sorted(importlib.metadata.entry_points(group=hookspecs.PROJECT), key=lambda point: point.name)
    points = [point for point in points if point.name not in block]
    _reject_duplicates(points)
    for point in points:
        _load(point, registry)
    return registry


def _load(point: importlib.metadata.EntryPoint, registry: Registry) -> None:
    provider, version = _distribution(point)
    manager = registry.manager
    try:
        manager.register(point.load(), name=point.name)
        manager.check_pending()  # a misspelt hook name is an error, not a silent no-op
        entries = list(_entries_of(manager, point.name, provider, version))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way on import, SystemExit included
        if manager.has_plugin(point.name):
            manager.unregister(name=point.name)
        reason = str(error).strip().partition("\n")[0]
        registry.broken.append(Broken(point.name, provider, version, f"{type(error).__name__}: {reason}"))
        return
    for entry in entries:
        registry.add(entry)


def _entries_of(manager: pluggy.PluginManager, plugin: str, provider: str, version: str) -> Iterable[Entry]:
    for kind, hook in HOOKS.items():
        for impl in getattr(manager.hook, hook).get_hookimpls():
            if impl.plugin_name == plugin:
                for name, target in impl.function().items():
                    yield Entry(kind, name, target, plugin, provider, version)


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")


def _reject_duplicates(points: Iterable[importlib.metadata.EntryPoint]) -> None:
    seen: dict[str, str] = {}
    for point in points:
        provider = " ".join(_distribution(point))
        if point.name in seen:  # pluggy would keep whichever it meets first and say nothing
            raise PluginError(
                f"{seen[point.name]} and {provider} both install a plugin called {point.name!r}; uninstall one, or add "
                f"{point.name!r} to plugins.block in params.yaml to load neither"
            )
        seen[point.name] = provider
