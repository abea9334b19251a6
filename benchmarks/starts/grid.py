"""The cells that `measure.py` measures: what `contrast init` writes, and one change at a time.

A cell is plain JSON and complete, so that its result can be read without this file: {"row", "set", "size", "seed",
"images", "experiment"}. `images` is the budget, counted in training images that pass (two views each). Row, set, size
and seed name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Cell = dict[str, Any]
Spec = Mapping[str, Any]

#: Training images of each set after its splits.
TRAINING_IMAGES = {
    "digits": 1258,
    "hands": 1428,
    "cells": 1363,
    "letters": 1897,
    "cifar-1000": 1000,
    "cifar-3000": 3000,
    "cifar-10000": 10000,
}
EXPLORED, STARTS, DIGITS = 60_000, 96_000, 30_000  # images seen
MINUTES = {5: 192_000, 10: 384_000, 30: 1_152_000}  # images seen in so many minutes at 640 a second
FLIPPED = {"recipe": {"name": "crop-flip", "min_scale": 0.3}}
#: Pretext tasks with the views that they take and the optimiser that the story gives them.
PRETEXT: dict[str, tuple[Spec, Spec | None]] = {
    "rotation": (FLIPPED, None),
    "jigsaw": ({}, None),
    "context_prediction": ({}, None),
    "denoising_autoencoder": (FLIPPED, {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0}),
    "colorization": (FLIPPED, {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0}),
}
SEEDS = (0, 1, 2)
TURNED = {"name": "rotation", "degrees": 15}
MICROSCOPE = [
    {"name": "quarter_turns"},
    {"name": "horizontal_flip"},
    {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    {"name": "grayscale", "prob": 0.2},
]
ON_DIGITS = [
    TURNED,
    {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0},
    {"name": "gaussian_blur", "prob": 0.5},
]


def cells() -> Iterator[Cell]:
    """All of them, the most wanted first."""
    for seed in SEEDS:
        yield from starts(seed)
        views = chain(0.4, TURNED, side=32)
        yield change("letters", "black corners", views, size=48, seed=seed, budget=STARTS)
    for name in TRAINING_IMAGES:
        for size in (32, 48, 64):
            yield untrained(name, size)
    yield from methods()
    yield from budgets((5, 10))
    yield from changes()
    yield from budgets((30,))


def starts(seed: int) -> Iterator[Cell]:
    """What `contrast init` writes, at a budget that ten minutes allow on slow processors too."""
    options = {"seed": seed, "budget": STARTS}
    yield cell("hands", "init: photographs", photographs(32), size=48, **options)
    yield cell("letters", "init: drawings", chain(0.4, {**TURNED, "fill": 1.0}, side=32), size=48, **options)
    yield cell("cells", "init: microscope", chain(0.2, *MICROSCOPE, side=32), size=48, **options)
    for count in (1000, 3000, 10000):
        yield cell(f"cifar-{count}", "init: small photographs", photographs(), **options)
    yield cell("digits", "init: digits", chain(0.4, *ON_DIGITS), seed=seed, budget=DIGITS)


def untrained(name: str, size: int) -> Cell:
    """The encoder as it was drawn."""
    experiment = {"method": {"name": "random_init"}, "encoder": {"name": "resnet8", "width": 16}}
    return {"row": "untrained", "set": name, "size": size, "seed": 0, "images": 0, "experiment": experiment}


def methods() -> Iterator[Cell]:
    """Candidates for the default, and what `contrast init` wrote before anything was measured."""
    views, byol = photographs(32), {"hidden_dim": 512, "out_dim": 128, "predictor_hidden": 512}
    yield change("hands", "simclr, full-strength chain, batch 256", {"recipe": {"name": "simclr"}}, size=64, batch=256)
    yield change("hands", "byol", views, size=48, method={"name": "byol", **byol, "base_momentum": 0.97})
    vicreg = {"name": "vicreg"}
    yield change("hands", "vicreg, rate 0.1", views, size=48, lr=0.1, method=vicreg, loss=vicreg)
    yield change("hands", "nnclr", views, size=48, method={"name": "nnclr"})
    yield change("hands", "swav", views, size=48, method={"name": "swav", "epsilon": 0.02})
    for name, (own, optimizer) in PRETEXT.items():
        row = f"{name}, its own views"
        yield change("hands", row, own, size=48, method={"name": name}, optimizer=optimizer)


def budgets(minutes: tuple[int, ...]) -> Iterator[Cell]:
    """What `contrast init` writes for so many minutes."""
    for count in minutes:
        yield change("hands", f"{count} minutes", photographs(32), size=48, budget=MINUTES[count])
        yield change("cifar-3000", f"{count} minutes", photographs(), budget=MINUTES[count])


def changes() -> Iterator[Cell]:
    """One change at a time."""
    dcl = {"name": "dcl", "temperature": 0.2}
    for seed in (0, 1):
        yield change("cifar-3000", "", photographs(), seed=seed)
        yield change("cifar-3000", "dcl", photographs(), loss=dcl, seed=seed)
        yield change("hands", "", photographs(32), size=48, seed=seed)
        yield change("hands", "dcl", photographs(32), size=48, loss=dcl, seed=seed)
    for size, side in ((32, None), (64, 32), (96, 32)):
        yield change("hands", "", photographs(side), size=size)
    yield change("hands", "batch 32, rate 0.4", photographs(), batch=32, lr=0.4)
    yield change("hands", "rate 0.4", photographs(), lr=0.4)
    yield change("cifar-3000", "rate 0.4", photographs(), lr=0.4)
    yield change("cifar-3000", "dcl, batch 32, rate 0.4", photographs(), loss=dcl, batch=32, lr=0.4)
    for temperature in (0.1, 0.4):
        loss = {"name": "dcl", "temperature": temperature}
        yield change("cifar-3000", f"dcl, temperature {temperature}", photographs(), loss=loss)
    for scale in (0.2, 0.4):
        views = chain(scale, TURNED, side=32)
        yield change("letters", f"crop from {scale}, rotation, dcl", views, size=64, loss=dcl)
    for scale in (0.08, 0.4):
        yield change("hands", f"crops from {scale}", photographs(32, scale), size=64)
    yield change("digits", "batch 256", chain(0.4, *ON_DIGITS), batch=256, budget=37_740)


def change(name: str, what: str, views: Spec, **options: Any) -> Cell:
    """A cell whose row says how it differs."""
    size, budget = options.get("size", 32), options.pop("budget", EXPLORED)
    crop = crop_of(views)
    seed = options.get("seed", 0)
    parts = [f"{size} px", f"crops of {crop}" if crop else "", what, f"seed {seed}" if seed else ""]
    row = f"{name}, {budget:,} images seen: {', '.join(part for part in parts if part)}"
    return cell(name, row, views, budget=budget, **options)


def crop_of(views: Spec) -> int | None:
    """Side of the crops, None for the images' or where the method brings its views."""
    if "recipe" in views:
        return views["recipe"].get("size")
    return views["chains"]["augment"][0].get("size") if "chains" in views else None


def photographs(side: int | None = None, scale: float = 0.2) -> Spec:
    """SimCLR's recipe for CIFAR-10. side: of the crops, None for the images'."""
    return {"recipe": {"name": "simclr-cifar", "min_scale": scale, **({"size": side} if side else {})}}


def chain(scale: float, *operations: Spec, side: int | None = None) -> Spec:
    """A crop and what follows it."""
    crop = {"name": "random_resized_crop", "scale": [scale, 1.0], **({"size": side} if side else {})}
    return {"chains": {"augment": [crop, *operations]}}


def cell(
    name: str,
    row: str,
    views: Spec,
    *,
    budget: int,
    size: int = 32,
    seed: int = 0,
    batch: int = 64,
    lr: float = 0.2,
    method: Spec | None = None,
    loss: Spec | None = None,
    optimizer: Spec | None = None,
) -> Cell:
    """SimCLR on resnet8 but for what is said. lr: of SGD at batch size 256, scaled linearly."""
    if method is None:
        method, loss = {"name": "simclr"}, loss or {"name": "nt_xent", "temperature": 0.2}
    epochs = max(1, round(budget / (TRAINING_IMAGES[name] // batch * batch)))
    experiment = {
        "method": dict(method),
        "encoder": {"name": "resnet8", "width": 16},
        **({"loss": dict(loss)} if loss else {}),
        **({"views": dict(views)} if views else {}),
        "optimizer": dict(optimizer or {"name": "sgd", "lr": {"base": lr, "per": 256}, "weight_decay": 1e-4}),
        "schedule": {"epochs": epochs, "warmup_epochs": round(0.1 * epochs, 2)},
        "train": {
            "batch_size": batch,
            "precision": "bf16",
            "channels_last": False,
            "compile": False,
            "log_every": 50,
            "save_every": 100_000,
            "knn_every": max(1, epochs // 5),
        },
    }
    return {"row": row, "set": name, "size": size, "seed": seed, "images": budget, "experiment": experiment}
