"""A project folder read and checked: params.yaml, its experiments, and whether every part they name exists and fits.

Runs no stage and builds nothing heavy. All problems of all files are collected into one ConfigError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cl_core.config import ExperimentConfig, ParamsConfig, PartSpec
from cl_core.documents import Document, expand_environment, read_yaml, validate
from cl_core.errors import ConfigError, ContrastError, did_you_mean
from cl_core.registry import Entry, Registry, load_registry, option_problems

T = TypeVar("T")
Spec = dict[str, Any]  # {"name": ..., "options": {...}}, defaults filled in


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment with every part resolved; `chains` are spelt out also where a recipe was named.

    student: the encoder of distillation, None without a section `distil`. seed: its own, whatever `seeds` lists.
    """

    name: str
    config: ExperimentConfig
    method: Spec
    encoder: Spec
    loss: Spec | None
    score: Spec | None
    chains: dict[str, list[Spec]]
    trackers: list[Spec]
    student: Spec | None
    seed: int

    @property
    def runs(self) -> list[Experiment]:
        """One for each of its seeds, as stages see it.

        A run's name follows from its own seed alone, so that a seed more or less renames no other run.
        """
        seeds = self.config.seeds or [self.seed]
        return [replace(self, name=self.run_name(seed), seed=seed) for seed in seeds]

    def run_name(self, seed: int) -> str:
        """Name of the run with a seed: the experiment's for its own seed, EXPERIMENT-sSEED for any other."""
        return self.name if seed == self.seed else f"{self.name}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checked project folder."""

    root: Path
    params: ParamsConfig
    source: Spec
    finetune_chain: list[Spec]
    experiments: list[Experiment]
    registry: Registry

    def runs_of(self, names: Sequence[str]) -> list[str]:
        """Names of all runs of the named experiments."""
        return [run.name for experiment in self.experiments if experiment.name in names for run in experiment.runs]


def load_project(root: Path) -> Project:
    """Read and check a project. Raises ConfigError with one line per problem, over all files together."""
    document = read_yaml(root / "params.yaml", "params.yaml")
    problems: list[str] = []
    params = _collect(problems, lambda: validate(ParamsConfig, document))
    names = _experiment_names(document)
    registry = load_registry(params.plugins.block if params else ())
    source, finetune_chain = None, []
    if params is not None:
        checker = PartChecker(registry, document, problems)
        source = checker.part("source", params.data.source, ("data", "source"))
        recipe, location = params.evaluation.finetune.recipe, ("evaluation", "finetune", "recipe")
        finetune_chain = _recipe_chains(checker, recipe, location).get("augment", [])
        _check_claims(checker, params)
    loaded = [_experiment(root, name, registry, params.seed if params else 0, problems) for name in names]
    experiments = [experiment for experiment in loaded if experiment is not None]
    if params is not None:
        misfits = [*_unknown_names(params), *_distil_problems(params, experiments)]
        problems += [document.problem(where, rule) for where, rule in misfits]
    if problems or params is None or source is None:
        raise ConfigError(problems)
    return Project(
        root=root,
        params=params,
        source=source,
        finetune_chain=finetune_chain,
        experiments=experiments,
        registry=registry,
    )


def build_source(registry: Registry, spec: Spec, root: Path) -> Any:
    """The source of the images. `${NAME}` is expanded; relative paths are relative to the project folder."""
    options = expand_environment(spec["options"], "params.yaml: data.source")
    for key in ("path", "root"):
        if isinstance(options.get(key), str):
            options[key] = str(root / Path(options[key]).expanduser())
    return registry.build("source", spec["name"], options)


@dataclass
class PartChecker:
    """Looks up parts named in a document and notes what is wrong with them."""

    registry: Registry
    document: Document
    problems: list[str]

    def part(self, kind: str, spec: PartSpec, location: Sequence[str | int]) -> Spec | None:
        """The part with its options, defaults filled in; None, with the problems noted, where it is wrong."""
        try:
            entry = self.registry.get(kind, spec.name)
            options = entry.model.model_validate_json(json.dumps(spec.options, default=str)).model_dump(mode="json")
        except ValidationError as error:
            found = option_problems(entry, error)
            self.problems += [self.document.problem([*location, *where], rule) for where, rule in found]
            return None
        except ContrastError as error:
            self.problems.append(self.document.problem([*location, "name"], str(error)))
            return None
        return {"name": spec.name, "options": options}

    def parts(self, kind: str, specs: Sequence[PartSpec], location: Sequence[str | int]) -> list[Spec]:
        """Several parts; wrong ones are noted and left out."""
        found = [self.part(kind, spec, [*location, index]) for index, spec in enumerate(specs)]
        return [spec for spec in found if spec is not None]

    def note(self, location: Sequence[str | int], rule: str) -> None:
        """Note a problem."""
        self.problems.append(self.document.problem(location, rule))


def _experiment(root: Path, name: str, registry: Registry, seed: int, problems: list[str]) -> Experiment | None:
    document = _collect(problems, lambda: read_experiment(root, name))
    if document is None:
        return None
    experiment = _collect(problems, lambda: check_experiment(name, document, registry, seed))
    if experiment is not None:
        problems += _clashes(root, experiment, document)
    return experiment


def _clashes(root: Path, experiment: Experiment, document: Document) -> Iterator[str]:
    """Runs that are called like another experiment."""
    for run in experiment.runs:
        file = f"experiments/{run.name}.yaml"
        if run.name != experiment.name and (root / file).is_file():
            rule = f"the run of seed {run.seed} is called {run.name}, which {file} is too; rename or delete that file"
            yield document.problem(["seeds"], rule)


def check_experiment(name: str, document: Document, registry: Registry, seed: int) -> Experiment:
    """The experiment that a document describes. seed: where it names none. Raises ConfigError with every problem."""
    config = validate(ExperimentConfig, document)
    problems: list[str] = []
    checker = PartChecker(registry, document, problems)
    method = checker.part("method", config.method, ["method"])
    encoder = checker.part("encoder", config.encoder, ["encoder"])
    loss = checker.part("loss", config.loss, ["loss"]) if config.loss else None
    score = checker.part("score", config.score, ["score"]) if config.score else None
    _check_score(checker, None if loss is None else registry.get("loss", loss["name"]), config)
    chains = _chains(checker, config)
    trackers = checker.parts("tracker", config.train.trackers, ["train", "trackers"])
    student = encoder if config.distil else None
    if config.distil and config.distil.encoder:
        student = checker.part("encoder", config.distil.encoder, ["distil", "encoder"])
    if method is not None:
        _check_fit(checker, registry.get("method", method["name"]), config, chains)
        _check_training(checker, registry.get("method", method["name"]), config)
    if problems or method is None or encoder is None:
        raise ConfigError(problems)
    return Experiment(
        name=name,
        config=config,
        method=method,
        encoder=encoder,
        loss=loss,
        score=score,
        chains=chains,
        trackers=trackers,
        student=student,
        seed=seed if config.seed is None else config.seed,
    )


def read_experiment(root: Path, name: str, seen: tuple[str, ...] = ()) -> Document:
    """The file of an experiment, merged over the one it extends. Raises ConfigError where there is none.

    seen: the experiments that extend this one, among which it must not be."""
    shown = f"experiments/{name}.yaml"
    folder = root / "experiments"
    if not (folder / f"{name}.yaml").is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        hint = did_you_mean(name, known)
        raise ConfigError(f"params.yaml: experiments: there is no file {shown}{hint}; create it or remove the name")
    document = read_yaml(folder / f"{name}.yaml", shown)
    base = document.data.get("extends")
    if base is None:
        return document
    if base in (*seen, name):
        raise ConfigError(document.problem(["extends"], f"{' -> '.join((*seen, name, base))} is a circle; break it"))
    if not (folder / f"{base}.yaml").is_file():
        raise ConfigError(document.problem(["extends"], f"there is no file experiments/{base}.yaml"))
    inherited = dict(read_experiment(root, str(base), (*seen, name)).data)
    if "seed" in document.data:  # a file that names one seed means that one
        inherited.pop("seeds", None)
    merged = merge(inherited, document.data)
    return replace(document, data=merged)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections merged key by key; a part of another name replaces the whole part, a list the whole list."""
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        same_part = both and old.get("name") == value.get("name", old.get("name"))  # type: ignore[union-attr]
        merged[key] = merge(old, value) if both and same_part else value  # type: ignore[arg-type]
    return merged


def _chains(checker: PartChecker, config: ExperimentConfig) -> dict[str, list[Spec]]:
    views = config.views
    if views.recipe is None:
        return {
            argument: checker.parts("augmentation", specs, ["views", "chains", argument])
            for argument, specs in views.chains.items()
        }
    return _recipe_chains(checker, views.recipe, ["views", "recipe"])


def _recipe_chains(checker: PartChecker, spec: PartSpec, location: Sequence[str | int]) -> dict[str, list[Spec]]:
    """The chains that a recipe gives, every augmentation in them looked up."""
    recipe = checker.part("recipe", spec, location)
    if recipe is None:
        return {}
    try:
        chains = checker.registry.build("recipe", recipe["name"], recipe["options"])
    except ContrastError as error:
        checker.note(location, str(error))
        return {}
    return {
        argument: checker.parts("augmentation", [PartSpec(**augmentation) for augmentation in specs], location)
        for argument, specs in chains.items()
    }


def _check_fit(checker: PartChecker, method: Entry, config: ExperimentConfig, chains: Mapping[str, Any]) -> None:
    """Whether the method gets the parts that it asks for, and no others."""
    required = {name for name in method.parts if method.parameters[name].default is method.parameters[name].empty}
    if "loss" in required and config.loss is None:
        checker.note(["method"], f"{method.name} needs a loss; add a section such as `loss: {{name: nt_xent}}`")
    if "loss" not in method.parts and config.loss is not None:
        checker.note(["loss"], f"{method.name} takes no loss; delete this section")
    wanted = {name for name in method.parts if name.startswith("augment")}
    given = set(chains)
    if not wanted and given:
        checker.note(["views"], f"{method.name} makes its views itself; delete the recipe or the chains")
    elif wanted and given != {"augment"} and not wanted & required <= given <= wanted:
        takes, got = ", ".join(sorted(wanted)), ", ".join(chains) or "none"
        checker.note(["views"], f"{method.name} takes the chains {takes}, got {got}; name a recipe that gives them")


def _check_claims(checker: PartChecker, params: ParamsConfig) -> None:
    """Whether claims are about two experiments that take part and about figures that they will have."""
    for index, claim in enumerate(params.claims):
        for side, name in (("better", claim.better), ("worse", claim.worse)):
            if name not in params.experiments:
                hint = did_you_mean(name, params.experiments)
                checker.note(
                    ["claims", index, side], f"no experiment is called {name!r}{hint}; name one of experiments"
                )
        if claim.better == claim.worse:
            checker.note(["claims", index, "worse"], f"{claim.worse} cannot be worse than itself; name another")
        budgets = params.evaluation.finetune.budgets
        if claim.kind == "few_labels" and claim.argument not in budgets:
            listed = ", ".join(f"few_labels {name}" for name in budgets)
            checker.note(["claims", index, "figure"], f"{claim.figure!r} is not measured here; choose from: {listed}")


def _check_training(checker: PartChecker, method: Entry, config: ExperimentConfig) -> None:
    """Whether the method has a use for the labels and for the sections about training."""
    if config.labels is not None and not getattr(method.factory, "uses_labels", False):
        checker.note(
            ["labels"],
            f"labels {config.labels:g} limits which labels pretraining sees, and {method.name} sees none; delete this "
            f"line, or name a method that learns from labels",
        )
    if not getattr(method.factory, "trains", True):
        for section in [name for name in ("optimizer", "schedule", "train") if name in config.model_fields_set]:
            checker.note([section], f"{method.name} trains nothing; delete this section")
    if config.train.micro_batch is not None and not _takes_parts(method):
        able = ", ".join(entry.name for entry in checker.registry.entries("method") if _takes_parts(entry))
        checker.note(
            ["train", "micro_batch"],
            f"{method.name} needs its batch whole; delete this line, or name a method that takes it in parts: {able}",
        )


def _takes_parts(method: Entry) -> bool:
    """Whether the method is sample-wise or a `JointEmbedding`, without importing torch."""
    return getattr(method.factory, "sample_wise", False) or hasattr(method.factory, "compare")


def _check_score(checker: PartChecker, loss: Entry | None, config: ExperimentConfig) -> None:
    """Whether the loss gets the score that it asks for, and none if it does not."""
    asks = loss is not None and "score" in loss.parts
    if asks and config.score is None and loss is not None:
        checker.note(["loss"], f"{loss.name} needs a score; add a section such as `score: {{name: cosine}}`")
    if config.score is not None and not asks and (loss is not None or config.loss is None):
        owner = "an experiment without loss" if loss is None else loss.name
        checker.note(["score"], f"{owner} takes no score; delete this section")


def _unknown_names(params: ParamsConfig) -> Iterator[tuple[list[str | int], str]]:
    """Names in the lists of optional stages that are no experiments: (key, rule)."""
    for key, names in (("diagnose", params.diagnose), ("distil", params.distil)):
        for k, name in enumerate(names):
            if name not in params.experiments:
                hint = did_you_mean(name, params.experiments)
                yield [key, k], f"{name} is not among experiments{hint}; add it there or remove it here"


def _distil_problems(params: ParamsConfig, experiments: Sequence[Experiment]) -> Iterator[tuple[list[str | int], str]]:
    """Where the list `distil` of params.yaml and the sections `distil` of the experiments do not fit: (key, rule)."""
    budgets = params.evaluation.finetune.budgets
    for experiment in experiments:
        name, section, listed = experiment.name, experiment.config.distil, experiment.name in params.distil
        file = f"experiments/{name}.yaml"
        if listed and section is None:
            yield ["distil"], f"{name} has no settings; add `distil: {{budget: {budgets[0]}}}` to {file}"
        if section is not None and not listed:
            yield ["distil"], f"{name} has a section distil; add the name here, or write `distil: null` in {file}"
        if section is not None and str(section.budget) not in budgets:
            known = ", ".join(budgets)
            rule = f"the budgets of evaluation.finetune are {known}; take one of them or add it there"
            yield ["distil"], f"distil.budget {section.budget} of {file} has no teacher: {rule}"


def _experiment_names(document: Document) -> list[str]:
    names = document.data.get("experiments")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _collect(problems: list[str], load: Callable[[], T]) -> T | None:
    try:
        return load()
    except ConfigError as error:
        problems += error.problems
        return None
