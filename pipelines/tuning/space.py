"""What a search may change of an experiment: a few axes, and candidates as edits of its document. Trains nothing.

Values lie on short grids that always hold the experiment's own, so that several trials share a value and can be
compared by it. An axis that the experiment has no use for (the temperature of a loss that takes none) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from cl_core.assembly import build_chains
from cl_core.check import require_buildable
from cl_core.config import LrRule
from cl_core.documents import Document
from cl_core.errors import ConfigError, ContrastError
from cl_core.project import Experiment, Project, check_experiment, merge

Value = int | float | str
Values = Mapping[str, Value]  # one per axis
Edit = dict[str, Any]  # sections of an experiment, merged over those of the start

# METHOD or METHOD/LOSS: one or two of each way not to collapse. Those that are not installed or do not go with the
# experiment's views and encoder are left out.
METHODS = ("simclr/nt_xent", "simclr/dcl", "byol", "vicreg/vicreg", "swav", "nnclr")
BATCHES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # times the experiment's own
SMALLEST_BATCH = 32
STEPS_PER_EPOCH = 4  # that a batch leaves at least
# Peak rates at batch 256: the papers' long runs have 0.05 (SimSiam, SGD), 1.5e-4 (MoCo v3, AdamW), 0.3 (SimCLR, LARS).
RATES = {
    "sgd": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3),
    "lars": (0.1, 0.3, 1.0, 3.0),
}
PER = 256
TEMPERATURES = (0.1, 0.2, 0.5)
CROPS = (0.08, 0.2, 0.4, 0.6)  # smallest share of the area
STRENGTHS = (0.25, 0.5, 1.0)  # of a recipe's colours
ALIKE = 1.3  # a grid value within this factor of the experiment's own would tell nothing new


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that may be changed. choices hold `start`; those of an ordered axis ascend."""

    name: str
    choices: Sequence[Value]
    start: Value
    edit: Callable[[Any], Edit]
    ordered: bool = True


@dataclass(frozen=True, kw_only=True)
class Space:
    """The axes around an experiment."""

    project: Project
    start: Experiment
    document: Document
    axes: Sequence[Axis]

    @classmethod
    def around(
        cls, project: Project, start: Experiment, document: Document, methods: Sequence[str] | None, images: int
    ) -> Space:
        """methods: METHOD or METHOD/LOSS besides the experiment's own; None takes METHODS as far as they fit.

        images: that an epoch of the smallest trial has. Raises ConfigError for named methods that do not fit.
        """
        space = cls(project=project, start=start, document=document, axes=[])
        method = _method(space, methods)
        views = [_crop(space), _of_recipe(space, "strength", "strength", STRENGTHS)]
        axes = [_batch(start, images), _rate(start), _temperature(space, method), *views, method]
        return replace(space, axes=[axis for axis in axes if axis is not None and len(axis.choices) > 1])

    @property
    def origin(self) -> dict[str, Value]:
        """The experiment's own values."""
        return {axis.name: axis.start for axis in self.axes}

    def changed(self, values: Values) -> list[Axis]:
        """The axes whose values the experiment has to be told."""
        names = {axis.name for axis in self.axes if values[axis.name] != axis.start}
        if not self._takes_temperature(values):
            names -= {"temperature"}
        elif "method" in names:  # the new loss has another default
            names |= {"temperature"}
        if "batch" in names and not isinstance(self.start.config.optimizer.lr, LrRule):  # so that the rate follows
            names |= {"rate"}
        return [axis for axis in self.axes if axis.name in names]

    def edit(self, values: Values) -> Edit:
        """What a file that extends the experiment has to say; empty for its own values."""
        methods_first = sorted(self.changed(values), key=lambda axis: axis.name != "method")
        return reduce(merge, (axis.edit(values[axis.name]) for axis in methods_first), {})

    def experiment(self, edit: Edit) -> Experiment:
        """The experiment with an edit. Raises ConfigError where it does not fit."""
        document = replace(self.document, data=merge(self.document.data, edit))
        return check_experiment(self.start.name, document, self.project.registry, self.project.params.seed)

    def admits(self, values: Values) -> bool:
        """Whether these values make an experiment."""
        try:
            build_chains(self.project.registry, self.experiment(self.edit(values)).chains)
        except ContrastError:
            return False
        return True

    def _takes_temperature(self, values: Values) -> bool:
        loss = _loss_of(str(values["method"])) if "method" in values else (self.start.loss or {}).get("name")
        return loss is not None and "temperature" in self.project.registry.get("loss", loss).options


def _batch(start: Experiment, images: int) -> Axis:
    own = start.config.train.batch_size
    largest = images // STEPS_PER_EPOCH
    choices = [int(own * factor) for factor in BATCHES if SMALLEST_BATCH <= own * factor <= largest]
    return Axis(name="batch", choices=_around(own, choices), start=own, edit=lambda v: {"train": {"batch_size": v}})


def _rate(start: Experiment) -> Axis:
    """The base of the learning rate's rule; a rate that is a plain number gets a rule."""
    config = start.config.optimizer
    grid = RATES[config.name]
    if not isinstance(config.lr, LrRule):
        own = _short(config.lr * PER / start.config.train.batch_size)
        rule = {"per": PER, "rule": "linear"}
        return Axis(
            name="rate",
            choices=_around(own, grid),
            start=own,
            edit=lambda v: {"optimizer": {"lr": {"base": v, **rule}}},
        )
    at_256 = config.peak_lr(PER) / config.lr.base
    choices = _around(config.lr.base, [_short(value / at_256) for value in grid])
    return Axis(name="rate", choices=choices, start=config.lr.base, edit=lambda v: {"optimizer": {"lr": {"base": v}}})


def _temperature(space: Space, method: Axis) -> Axis | None:
    """Of the loss, where the experiment's or one that takes its place has one."""
    registry = space.project.registry
    losses = [loss for label in method.choices if (loss := _loss_of(str(label)))]
    if not any("temperature" in registry.get("loss", loss).options for loss in losses):
        return None
    own = ((space.start.loss or {}).get("options") or {}).get("temperature", TEMPERATURES[1])
    return Axis(
        name="temperature",
        choices=_around(own, TEMPERATURES),
        start=own,
        edit=lambda v: {"loss": {"temperature": v}},
    )


def _of_recipe(space: Space, name: str, option: str, grid: Sequence[float]) -> Axis | None:
    """An option of the recipe, where there is a recipe and it has that option."""
    recipe = space.start.config.views.recipe
    if recipe is None:
        return None
    own = space.project.registry.get("recipe", recipe.name).check(recipe.options).get(option)
    if not isinstance(own, float):
        return None
    return Axis(name=name, choices=_around(own, grid), start=own, edit=lambda v: {"views": {"recipe": {option: v}}})


def _crop(space: Space) -> Axis | None:
    """The smallest crop: `min_scale` of a recipe, or `scale` where all crops of the chains begin at the same."""
    if space.start.config.views.recipe is not None:
        return _of_recipe(space, "crop", "min_scale", CROPS)
    starts = {spec["options"]["scale"][0] for chain in space.start.chains.values() for spec in chain if _is_crop(spec)}
    if len(starts) != 1:
        return None
    (own,) = starts
    written = space.document.data["views"]["chains"]
    return Axis(
        name="crop",
        choices=_around(own, CROPS),
        start=own,
        edit=lambda v: {"views": {"chains": {name: _cropped(chain, v) for name, chain in written.items()}}},
    )


def _is_crop(spec: Mapping[str, Any]) -> bool:
    return bool(spec["name"] == "random_resized_crop")


def _cropped(chain: Sequence[Mapping[str, Any]], smallest: float) -> list[dict[str, Any]]:
    """The chain as it is written, its crops from `smallest` on."""
    return [
        {**spec, "scale": [smallest, spec.get("scale", (0, 1.0))[1]]} if _is_crop(spec) else dict(spec)
        for spec in chain
    ]


def _method(space: Space, methods: Sequence[str] | None) -> Axis:
    """The experiment's own method and those that can take its place with the same views and encoder."""
    loss = space.start.loss
    own = space.start.method["name"] + (f"/{loss['name']}" if loss else "")

    def edit(label: str) -> Edit:
        name = label.partition("/")[0]
        method = {} if name == space.start.method["name"] else {"method": {"name": name}}
        absent = {key: None for key in ("loss", "score") if space.document.data.get(key) is not None}
        named = {"loss": {"name": _loss_of(label)}} if _loss_of(label) else {}
        return {**method, **absent, **named}

    def fits(label: str) -> bool:
        try:
            require_buildable(space.project, space.experiment(edit(label)))
        except ContrastError as error:
            if methods is not None:
                raise ConfigError(f"--methods: {label}: {error}") from error
            return False
        return True

    others = [label for label in dict.fromkeys(METHODS if methods is None else methods) if label != own]
    return Axis(name="method", choices=[own, *filter(fits, others)], start=own, edit=edit, ordered=False)


def _loss_of(label: str) -> str | None:
    return label.partition("/")[2] or None


def _around(own: float, grid: Sequence[float]) -> list[Value]:
    """The grid with the experiment's own value in place of those that are nearly the same."""
    return sorted([own, *(value for value in grid if own == 0 or not 1 / ALIKE < value / own < ALIKE)])


def _short(value: float) -> float:
    return float(f"{value:.3g}")
