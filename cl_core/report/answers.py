"""What runs answered for every test image, so that two of them can be compared image by image.

Reads predictions.safetensors of linear_eval ("predicted", "knn_predicted") and of finetune ("COMPETITOR/BUDGET/DRAW").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cl_core.errors import DataError
from cl_core.measures.paired import Difference, Runs, paired_difference
from cl_core.report.collect import Experiment

#: figure of the representation -> its tensor in linear_eval/predictions.safetensors
LINEAR_FIGURES = {"linear": "predicted", "knn": "knn_predicted"}


class NotComparableError(DataError):
    """Two sides cannot be compared in a figure; the message says why."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Runs of one side, with the images they were asked about: (N, 2) int64, row of the test split and label."""

    images: NDArray[np.int64]
    runs: Runs


def linear_answers(experiments: Sequence[Experiment], figure: str) -> Answers:
    """Of the linear probe or kNN, a run per experiment. Raises NotComparableError where they cannot be read."""
    return _answers(experiments, "linear_eval", LINEAR_FIGURES[figure])


def few_label_answers(experiments: Sequence[Experiment], competitor: str, budget: str) -> Answers:
    """Of a competitor at a label budget, a run per experiment and draw. Raises as `linear_answers`."""
    return _answers(experiments, "finetune", f"{competitor}/{budget}")


def difference(ours: Answers, other: Answers) -> Difference:
    """How much better ours are. Raises NotComparableError where they are about different test images."""
    if not np.array_equal(ours.images, other.images):
        raise NotComparableError("they were judged on different test images")
    return paired_difference(ours.runs, other.runs)


def _answers(experiments: Sequence[Experiment], stage: str, name: str) -> Answers:
    found = [_read(experiment, stage, name) for experiment in experiments]
    images = found[0][0]
    if not all(np.array_equal(images, others) for others, _ in found):
        raise NotComparableError("they were judged on different test images")
    return Answers(images, Runs(tuple(right for _, right in found)))


def _read(experiment: Experiment, stage: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Images (N, 2), and which of them each draw got right, (D, N)."""
    path = experiment.folder / stage / "predictions.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            rows, labels = (np.asarray(file.get_tensor(key)) for key in ("row", "label"))
            draws = np.stack([np.asarray(file.get_tensor(key)) for key in _draws(file, name)])
    except (SafetensorError, OSError, ValueError) as error:
        raise NotComparableError(
            f"the predictions {name} of {experiment.name} cannot be read ({error}); make them again with `dvc repro "
            f"{stage}@{experiment.name}`"
        ) from None
    return np.stack([rows, labels], axis=1), draws == labels


def _draws(file: Any, name: str) -> list[str]:
    """The tensor of that name, or its draws in order."""
    keys = [str(key) for key in file.keys()]  # noqa: SIM118 - a handle, not a mapping
    if name in keys:
        return [name]
    draws = [key for key in keys if key.rpartition("/")[0] == name]
    if not draws:
        raise ValueError("the file does not hold them")
    return sorted(draws, key=lambda key: int(key.rpartition("/")[2]))
