"""SimCLR and BYOL on CIFAR-10 with one CUDA GPU: accuracy, minutes and memory against lightly's published table.

    CL_CIFAR10=/path python benchmarks/cifar10_gpu.py simclr --epochs 200 --minutes 9 --out /path/to/keep

ResNet-18 with the CIFAR stem, batch 512, kNN with k=200 and T=0.1 on the 10,000 test images after the last epoch
(lightly's table has the best epoch on test). A run that reaches --minutes saves and ends with status 75; the same
command continues it, and training time adds up. Needs neither Prefect nor DVC.

Published (docs.lightly.ai, CIFAR-10 benchmark, one RTX A6000): SimCLR 84.8 % in 87.1 min and 4.9 GB, BYOL 86.8 % in
108.3 min and 5.6 GB after 200 epochs; 87.9 % and 91.0 % after 800.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import harness
import torch
from inputs import specs

from cl_core.assembly import build_method
from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.files import read_json, write_json
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.errors import Interrupted
from cl_core.evaluation.features import extract
from cl_core.measures.knn import knn_predict
from cl_core.project import build_source
from cl_core.registry import Registry, load_registry
from cl_core.training.tracking import Observers
from cl_core.training.trainer import pretrain
from cl_core.types import Method

BATCH, SEED, RESUMABLE = 512, 0, 75
METHODS = {
    "simclr": {
        "method": {"name": "simclr", "options": {"hidden_dim": 512, "out_dim": 128}},
        "loss": {"name": "nt_xent", "options": {"temperature": 0.5}},
        "recipe": ("simclr-cifar", {}),
    },
    "byol": {
        "method": {
            "name": "byol",
            "options": {"hidden_dim": 1024, "out_dim": 256, "predictor_hidden": 1024, "base_momentum": 0.996},
        },
        "loss": None,
        "recipe": ("byol", {"strength": 0.5}),
    },
}


def method_of(registry: Registry, name: str) -> Method:
    """The method with its recipe's chains."""
    entry = METHODS[name]
    recipe, options = entry["recipe"]
    chains = {argument: specs(steps) for argument, steps in registry.build("recipe", recipe, options).items()}
    experiment = {
        "method": entry["method"],
        "encoder": {"name": "resnet18", "options": {"stem": "cifar"}},
        "loss": entry["loss"],
        "score": None,
        "chains": chains,
        "image_size": 32,
    }
    return build_method(registry, experiment, seed=SEED)


def store_at(registry: Registry, folder: Path) -> Store:
    """CIFAR-10 from the folder CL_CIFAR10 (train/ and test/ of class folders), ingested once."""
    if not (folder / "manifest.json").exists():
        path = os.environ.get("CL_CIFAR10")
        if path is None:
            sys.exit("set CL_CIFAR10 to the folder that holds CIFAR-10 as train/CLASS/*.jpg and test/CLASS/*.jpg")
        spec = {"name": "image_folder", "options": {"path": path}}
        source = build_source(registry, spec, Path.cwd())
        ingest(source, folder, size=32, splits=SplitRule(0, 0), source_spec=spec, report=print)
    return Store.open(folder)


def accuracy(method: Method, store: Store, device: torch.device) -> float:
    """kNN top-1 in percent, bank of all training images, queries the test images."""
    train, test = (extract(method.representation(), store.split(name), device=device) for name in ("train", "test"))
    stage = list(train.average)[-1]
    bank, queries = train.average[stage].to(device), test.average[stage].to(device)
    scores = knn_predict(queries, bank, train.labels.to(device), len(store.classes), k=200, temperature=0.1)
    return 100 * (scores.argmax(dim=1).cpu() == test.labels).double().mean().item()


def main() -> int:
    """Train, or continue to train, and evaluate when done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after so many")
    parser.add_argument("--out", type=Path, default=Path(".contrast/cifar10_gpu"), help="folder of stores and results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("not measured: there is no CUDA device here")
    registry, device = load_registry(), torch.device("cuda")
    store, method = store_at(registry, options.out / "store"), method_of(registry, options.method)
    out = options.out / f"{options.method}-{options.epochs}"
    deadline = time.monotonic() + 60 * options.minutes
    try:
        pretrain(
            method,
            store.split("train"),
            optimizer=OptimizerConfig(name="sgd", lr=0.06 * BATCH / 128, momentum=0.9, weight_decay=5e-4),
            schedule=ScheduleConfig(epochs=options.epochs, warmup_epochs=min(10, options.epochs / 10)),
            train=TrainConfig(batch_size=BATCH, knn_every=0, save_every=1000, log_every=50),
            seed=SEED,
            out=out,
            checkpoints=out / "checkpoints",
            card={"experiment": options.method},
            observers=Observers(),
            validation=None,
            materialized=None,
            decisions=options.out / "decisions.json",
            stop=lambda: time.monotonic() > deadline,
        )
    except Interrupted as stopped:
        print(stopped)
        return RESUMABLE
    seconds = read_json(out / "timing.json")["seconds"]
    result = {
        "method": options.method,
        "epochs": options.epochs,
        "knn_top1": accuracy(method, store, device),
        "training_minutes": seconds / 60,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "machine": f"{torch.cuda.get_device_name()}; {harness.machine()}",
    }
    write_json(out / "result.json", result)
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
