"""Check a project further than reading it: the data is there, the parts can be built. Runs no stage.

Encoders and methods are built on torch's meta device, so that a large one costs neither time nor memory; those whose
construction looks at values, which a meta tensor does not have, are built for real.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cl_core.assembly import build_method
from cl_core.errors import ConfigError, ContrastError
from cl_core.project import Experiment, Project, build_source, load_project


def check_project(root: Path) -> list[str]:
    """Return one line per thing that is in order. Raises ConfigError with every problem, over all files together."""
    project = load_project(root)
    problems: list[str] = []
    fingerprint = _attempt(problems, "params.yaml: data.source", partial(_fingerprint, project))
    for experiment in project.experiments:
        _attempt(problems, f"experiments/{experiment.name}.yaml", partial(require_buildable, project, experiment))
    if problems:
        raise ConfigError(problems)
    facts = ", ".join(f"{key} {value}" for key, value in (fingerprint or {}).items() if isinstance(value, int | str))
    lines = [f"data: {project.source['name']} ({facts})"]
    lines += [f"experiment {experiment.name}: {_summary(project, experiment)}" for experiment in project.experiments]
    return lines


def _fingerprint(project: Project) -> dict[str, Any]:
    return dict(build_source(project.registry, project.source, project.root).fingerprint())


def require_buildable(project: Project, experiment: Experiment) -> None:
    """Build the method, and once more with the student's encoder where another one is distilled into.

    Raises ConfigError where its parts do not go together.
    """
    encoders = [experiment.encoder]
    if experiment.student and experiment.student != experiment.encoder:
        encoders.append(experiment.student)
    for encoder in encoders:
        inputs = {
            "method": experiment.method,
            "encoder": encoder,
            "loss": experiment.loss,
            "score": experiment.score,
            "chains": experiment.chains,
            "image_size": project.params.data.size,
        }
        build = partial(build_method, project.registry, inputs, seed=experiment.seed)
        try:
            with torch.device("meta"):
                build()
        except (NotImplementedError, RuntimeError):
            build()


def _summary(project: Project, experiment: Experiment) -> str:
    config = experiment.config
    if not getattr(project.registry.get("method", experiment.method["name"]).factory, "trains", True):
        return f"{experiment.method['name']} on {experiment.encoder['name']}; not trained, {_seeds(experiment)}"
    rate = config.optimizer.peak_lr(config.train.batch_size)
    loss = f", loss {experiment.loss['name']}" if experiment.loss else ""
    return (
        f"{experiment.method['name']} on {experiment.encoder['name']}{loss}; {config.optimizer.name}, "
        f"peak lr {rate:g}, {config.schedule.epochs} epochs of batches of {config.train.batch_size}, "
        f"{_seeds(experiment)}"
    )


def _seeds(experiment: Experiment) -> str:
    seeds = [str(run.seed) for run in experiment.runs]
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _attempt(problems: list[str], where: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except ConfigError as error:
        problems += [problem if where in problem else f"{where}: {problem}" for problem in error.problems]
    except ContrastError as error:
        problems.append(f"{where}: {error}")
    return None
