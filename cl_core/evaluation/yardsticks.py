"""What results are held against, computed once and shared: untrained encoders, raw pixels, training on labels alone.

A yardstick is a small JSON result under a key that names all it depends on. Whoever needs it first computes it while
others wait. Kept outside the pipeline's outputs; deleting the folder costs time and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from cl_core.config import KnnConfig, LinearConfig
from cl_core.data.files import read_json, sha256_bytes, write_json
from cl_core.data.store import Split
from cl_core.evaluation import linear as linear_protocol
from cl_core.evaluation.features import Features, extract, raw_pixels
from cl_core.evaluation.linear import Report, linear_eval
from cl_core.measures import knn as knn_protocol

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: two processes may then compute the same yardstick, with the same result
    fcntl = None

Figures = dict[str, Any]


class Yardsticks:
    """A folder of results by key.

    The system releases the lock of a process that dies, so an interrupted computation is simply done again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: Mapping[str, Any], compute: Callable[[], Figures]) -> Figures:
        """The result under a key (JSON, in any order), computed if it is not there. Results are JSON themselves."""
        name = sha256_bytes(json.dumps(key, sort_keys=True, allow_nan=False).encode())
        path = self.directory / f"{name}.json"
        known = _read(path)
        if known is not None:
            return known
        self.directory.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            known = _read(path)  # another process may have been first
            if known is None:
                known = compute()
                write_json(path, {"key": dict(key), "result": known})
        return known


def linear_baselines(
    yardsticks: Yardsticks,
    *,
    data_key: Mapping[str, Any],
    encoder_key: Mapping[str, Any],
    representation: Callable[[], nn.Module],
    split: Callable[[str], Split],
    classes: Sequence[str],
    linear: LinearConfig,
    knn: KnnConfig,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    report: Report = print,
) -> dict[str, Figures]:
    """{"random_init": {"top1", "knn_top1", ...}, "raw_pixels": {"top1", "balanced_top1", ...}} under linear/lbfgs-v1.

    data_key: all that decides images and labels (digest of the store, subset). encoder_key: all that decides the
    untrained encoder and its input (name, options, input_name, seed, source digest). representation: builds it; its
    stage is chosen on validation as the trained one's is. split: "train" | "validation" | "test" -> images.
    """

    def evaluate(read: Callable[[str], Features]) -> Figures:
        return linear_eval(read, classes=classes, linear=linear, knn=knn, device=device, report=report).metrics

    def random_init() -> Figures:
        report("yardstick random_init: features of the untrained encoder")
        model = representation()
        read = partial(extract, model, max_values=linear.max_values, batch_size=batch_size, device=device)
        return _random_init_figures(evaluate(lambda name: read(split(name))))

    def pixels() -> Figures:
        report("yardstick raw_pixels: a linear probe on the pixels themselves")
        return _test_figures(evaluate(lambda name: raw_pixels(split(name), batch_size=batch_size)))

    shared = {
        "protocols": [linear_protocol.PROTOCOL, knn_protocol.PROTOCOL],
        "data": dict(data_key),
        "linear": linear.model_dump(mode="json"),
        "knn": knn.model_dump(mode="json"),
    }
    return {
        "random_init": yardsticks.get(
            {"yardstick": "random_init", **shared, "encoder": dict(encoder_key)}, random_init
        ),
        "raw_pixels": yardsticks.get({"yardstick": "raw_pixels", **shared}, pixels),
    }


def _test_figures(metrics: Figures) -> Figures:
    return {figure: metrics["test"][figure] for figure in ("top1", "top1_ci95", "balanced_top1")}


def _random_init_figures(metrics: Figures) -> Figures:
    """knn_top1 is of the last stage, as the trained encoder's "knn" is; that of the best stage stands beside it."""
    best: Figures = metrics.get("knn_best_stage") or metrics["knn"]
    return {
        **_test_figures(metrics),
        "best_stage": metrics["best_stage"],
        "knn_top1": metrics["knn"]["top1"],
        "knn_balanced_top1": metrics["knn"]["balanced_top1"],
        "knn_best_stage_top1": best["top1"],
        "stages": metrics["stages"],
    }


def _read(path: Path) -> Figures | None:
    """The result in a file; None where there is none or it is damaged, so that it is computed again."""
    try:
        result = read_json(path)["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if isinstance(result, dict) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the file goes when the work has succeeded."""
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        # Whoever holds or opens a lock from now on finds the finished result first.
        path.unlink(missing_ok=True)
