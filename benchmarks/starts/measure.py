"""Measure the grid of starting settings: train each cell, judge it, add a line to results.jsonl.

    CL_OWN_IMAGES=DIR CL_CIFAR10=DIR python benchmarks/starts/measure.py --scratch DIR

A cell is a project of its own whose stages run in this process; images and untrained yardsticks are shared. A cell that
is in the file is not measured again, so a grid continues where it stopped. Started twice, two processes share the work
(OMP_NUM_THREADS=1 for each on two cores).
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from grid import Cell, cells
from ruamel.yaml import YAML

from cl_core.data.files import read_json, sha256_bytes
from cl_core.evaluation.features import Features
from cl_core.measures.logistic import fit_classifiers
from cl_core.measures.metrics import topk_accuracy
from cl_core.training.precision import cpu_model
from pipelines.stages import run_stage

RESULTS = Path(__file__).parent / "results.jsonl"
STAGES = ("views", "pretrain", "embed", "linear_eval")
DRAWS, PER_CLASS, PENALTY = 5, (4, 16), 0.1  # of the few labels


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for stores and projects, some 100 MB")
    scratch = parser.parse_args().scratch.resolve()
    data = sources()
    for cell in cells():
        if cell["set"] not in data:
            print(f"{cell['row']}: no images of {cell['set']}; set CL_OWN_IMAGES and CL_CIFAR10")
            continue
        with claimed(scratch, cell) as free:
            if free and name_of(cell) not in {name_of(json.loads(line)["cell"]) for line in lines()}:
                result = measure(cell, data[cell["set"]], scratch)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")


def lines() -> list[str]:
    """Of the file of results."""
    return RESULTS.read_text().splitlines() if RESULTS.exists() else []


def name_of(cell: Cell) -> str:
    """What tells a cell from others."""
    return f"{cell['row']}, {cell['set']} at {cell['size']} px, seed {cell['seed']}"


@contextmanager
def claimed(scratch: Path, cell: Cell) -> Iterator[bool]:
    """Whether no other process is at this cell."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / f"{digest(cell)}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def digest(cell: Cell) -> str:
    """Names its folder."""
    return sha256_bytes(name_of(cell).encode())[:12]


def sources() -> dict[str, dict[str, Any]]:
    """Sets of images by name, as the section `data` of params.yaml; those whose folder is set in the environment."""
    found: dict[str, dict[str, Any]] = {"digits": {"source": {"name": "digits"}}}
    if own := os.environ.get("CL_OWN_IMAGES"):
        for name in ("hands", "cells", "letters"):
            found[name] = {"source": {"name": "image_folder", "path": str(Path(own) / name)}}
    if cifar := os.environ.get("CL_CIFAR10"):
        source = {"name": "image_folder", "path": cifar}
        for count in (1000, 3000, 10000):
            splits = {"validation": 5000, "test": 0}
            found[f"cifar-{count}"] = {"source": source, "subset": count, "splits": splits}
    return found


def measure(cell: Cell, data: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Train and judge; returns the cell, its figures and the machine."""
    project = scratch / "cells" / digest(cell)
    shared = scratch / "stores" / f"{cell['set']}-{cell['size']}"
    shutil.rmtree(project, ignore_errors=True)
    write_project(project, cell, data)
    (shared / "yardsticks").mkdir(parents=True, exist_ok=True)
    (project / "artifacts").mkdir()
    (project / ".contrast").mkdir()
    (project / ".contrast" / "yardsticks").symlink_to(shared / "yardsticks")
    run_stage(project, "resolve", None, lambda: False)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "dataset").exists():
            run_stage(project, "ingest", None, lambda: False)
            (project / "artifacts" / "dataset").rename(shared / "dataset")
    (project / "artifacts" / "dataset").symlink_to(shared / "dataset")
    seconds = {}
    for stage in STAGES:
        began = time.monotonic()
        run_stage(project, stage, "cell", lambda: False)
        seconds[stage] = round(time.monotonic() - began, 1)
    result = {"cell": cell, **figures(project), "seconds": seconds, "machine": machine()}
    shutil.rmtree(project)
    return result


def write_project(project: Path, cell: Cell, data: dict[str, Any]) -> None:
    """params.yaml and experiments/cell.yaml."""
    params = {
        "title": "starts",
        "experiments": ["cell"],
        "diagnose": [],
        "distil": [],
        "seed": cell["seed"],
        "data": {"size": cell["size"], "splits": {"validation": 0.1, "test": 0.2}} | data,
        "evaluation": {"linear": {"l2": [1e-3, 1e-2, 1e-1]}, "knn": {"k": 20}},
    }
    (project / "experiments").mkdir(parents=True)
    YAML().dump(params, project / "params.yaml")
    YAML().dump(cell["experiment"], project / "experiments" / "cell.yaml")


def figures(project: Path) -> dict[str, Any]:
    """What the stages left, in shares of 1."""
    run = project / "artifacts" / "runs" / "cell"
    linear, card = read_json(run / "linear_eval" / "metrics.json"), read_json(run / "pretrain" / "encoder.json")
    with (run / "pretrain" / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["step"] != "0"]
    bare, best = linear["baselines"]["random_init"], linear["best_stage"]
    return {
        "updates": card["training"]["steps"],
        "linear": linear["test"]["top1"],
        "linear_validation": linear["stages"][best]["validation_top1"],
        "stage": best,
        "knn": linear["knn"]["top1"],
        "knn_validation": [float(row["knn_top1"]) for row in rows if row.get("knn_top1")],
        "untrained_linear": bare["top1"],
        "untrained_linear_validation": bare["stages"][bare["best_stage"]]["validation_top1"],
        "untrained_knn": bare["knn_top1"],
        "pixels": linear["baselines"]["raw_pixels"]["top1"],
        "few_labels": few_labels(run / "embed", linear["last_stage"]),
        "loss": float(rows[-1]["loss"]) if rows else None,
    }


def few_labels(embed: Path, stage: str) -> dict[str, float]:
    """Test accuracy of a logistic regression on a stage's map from so many labels per class, mean of draws."""
    train, test = (Features.load(embed / f"{split}.safetensors").labelled() for split in ("train", "test"))
    classes = int(train.labels.max()) + 1
    found = {}
    for count in PER_CLASS:
        scores = []
        for draw in range(DRAWS):
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))
            rows = torch.cat([order[train.labels[order] == label][:count] for label in range(classes)])
            features, labels = train.probe[stage][rows].float(), train.labels[rows]
            (classifier,) = fit_classifiers(features, labels, classes, [PENALTY], max_iter=100)
            scores.append(topk_accuracy(classifier.scores(test.probe[stage].float()), test.labels))
        found[str(count)] = sum(scores) / len(scores)
    return found


def machine() -> dict[str, Any]:
    """Processor, threads and commit."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
    return {"processor": cpu_model(), "threads": torch.get_num_threads(), "commit": commit}


if __name__ == "__main__":
    main()
