"""Results of finetune as the stage writes them, made of accuracies: metrics and predictions that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

IMAGES, CLASSES = 300, 3
Curve = Mapping[str, float | Sequence[float]]  # budget -> accuracy, or one per draw
COUNTS = {"5": 15, "50": 150, "all": 1500}


def draws_of(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, float) else list(value)


def competitor(accuracies: Sequence[float], margin: float = 0.03, **choices: Any) -> dict[str, Any]:
    """A competitor at a budget, an accuracy per draw."""
    top1 = float(np.mean(accuracies))

    def figures(value: float) -> dict[str, float]:
        rest = {"macro_f1": value - 0.01, "ece": 0.05, "brier": 0.4, "log_loss": 0.7}
        return {"top1": value, "balanced_top1": value, **rest}

    return {
        **figures(top1),
        "top1_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "top1_ci95": [max(0.0, top1 - margin), min(1.0, top1 + margin)],
        "draws": [{**figures(value), "selection_loss": 0.8, "temperature": 1.0, **choices} for value in accuracies],
    }


def few_label_metrics(
    curves: Mapping[str, Curve],
    *,
    counts: Mapping[str, int] = COUNTS,
    chosen: int = 0,
    protocol: str = "finetune/lpft-v2",
    best: str | None = None,
) -> dict[str, Any]:
    """finetune/metrics.json of {competitor: {budget: accuracy}}. best: the use that is picked; None: the higher."""
    budgets = {}
    for name, count in counts.items():
        at = {who: draws_of(curve[name]) for who, curve in curves.items() if name in curve}
        found = {who: competitor(values) for who, values in at.items()}
        if "frozen" in at and "fine_tuned" in at:
            use = best or max(("frozen", "fine_tuned"), key=lambda who: np.mean(at[who]))
            found["best"] = competitor(at[use], use=use)
        budgets[name] = {
            "labels_trained": count,
            "labels_chosen": chosen,
            "per_class": count / CLASSES,
            "same_as": None,
            "competitors": found,
        }
    return {"protocol": protocol, "selection": "validation" if chosen else "labels", "budgets": budgets}


def curves(top1: float, *, yardstick: float = 0.6) -> dict[str, dict[str, float]]:
    """Of all competitors at the budgets of COUNTS."""
    gains = dict(zip(COUNTS, (-0.2, -0.1, 0.05), strict=True))
    return {
        "frozen": {name: top1 + gain / 2 for name, gain in gains.items()},
        "fine_tuned": {name: top1 + gain for name, gain in gains.items()},
        "random_init": {name: 0.8 * yardstick + gain / 2 for name, gain in gains.items()},
        "supervised": {name: yardstick + 1.2 * gain for name, gain in gains.items()},
        "raw_pixels": {name: 0.35 + gain / 2 for name, gain in gains.items()},
    }


def answers(accuracy: float, seed: int, images: int = IMAGES) -> torch.Tensor:
    """Predicted classes of which that share is right; who is right differs from seed to seed."""
    labels = torch.arange(images) % CLASSES
    order = np.random.default_rng(seed).permutation(images)
    wrong = torch.from_numpy(order[round(accuracy * images) :])
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return labels


def write_predictions(folder: Path, tensors: Mapping[str, torch.Tensor], first_row: int = 0) -> None:
    """predictions.safetensors of a stage's folder, about images whose labels go round."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(tensors.values())))
    shared = {"row": torch.arange(count) + first_row, "label": torch.arange(count) % CLASSES}
    save_file({**shared, **tensors}, folder / "predictions.safetensors")


def write_answers(artifacts: Path, name: str, metrics: Mapping[str, Any], seed: int = 0) -> None:
    """The predictions behind the metrics of `few_label_metrics`, and some of linear probe and kNN."""
    tensors = {
        f"{who}/{budget}/{number}": answers(draw["top1"], 1000 * seed + 100 * k + number)
        for budget, result in metrics["budgets"].items()
        for k, (who, found) in enumerate(result["competitors"].items())
        for number, draw in enumerate(found["draws"])
    }
    write_predictions(artifacts / "runs" / name / "finetune", tensors)
    linear = {"predicted": answers(0.7, seed + 7), "knn_predicted": answers(0.6, seed + 8)}
    write_predictions(artifacts / "runs" / name / "linear_eval", linear)
