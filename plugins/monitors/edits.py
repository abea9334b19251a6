"""What to change where training brings nothing: the likeliest edits, from what the run shows and how it is set up.

The order is that of benchmarks on images nobody had tuned for: views that are too hard for the encoder hold a loss at
chance whatever else is set, then come too few updates, then the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HARDLY_LEARNT = 0.1  # of chance: a contrastive loss that is no further below it points to the views
FEW_UPDATES = 1500
SMALLEST_BATCH = 32
_FASTEST = 5.0  # at a batch of 256: more than any paper's rate, LARS included (SimCLR 0.3, SimCLR v2 0.32, SwAV 0.6)
_GENTLE_SCALE = 0.4  # smallest area of a crop
_GENTLE_HUE = 0.1  # of simclr-cifar; the full strength is 0.2


def likely_edits(config: Mapping[str, Any], *, updates: int, below_chance: float | None) -> list[str]:
    """The two likeliest edits, each as a setting with its value.

    config: the resolved configuration of pretraining, {} where it is not known. updates: of the whole run.
    below_chance: how far a contrastive loss is below chance, as a share of that; None for other losses.
    """
    edits = [_sane_rate(config)] if _rate(config) > _FASTEST else []
    edits += [_milder_views(config)] if below_chance is not None and below_chance < HARDLY_LEARNT else []
    edits += [_more_updates(config, updates)] if updates < FEW_UPDATES else []
    return [*edits, _lower_rate(config), _longer(config)][:2]


def _rate(config: Mapping[str, Any]) -> float:
    """At a batch of 256; 0 where it is not known."""
    optimizer = config.get("optimizer", {})
    rate = optimizer.get("lr")
    if isinstance(rate, Mapping):
        return float(rate["base"]) * 256 / rate.get("per", 256)
    batch = config.get("train", {}).get("batch_size", 256)
    return 0.0 if rate is None else float(rate) * 256 / batch


def _sane_rate(config: Mapping[str, Any]) -> str:
    return f"a learning rate that can be learnt with ({_rate(config):g} at a batch of 256 in place of 0.02 to 0.6)"


def _milder_views(config: Mapping[str, Any]) -> str:
    chains: Mapping[str, Any] = config.get("chains") or {}
    found = [(spec["name"], spec.get("options") or {}) for chain in chains.values() for spec in chain]
    hues = [float(o.get("hue", 0)) * float(o.get("strength", 1)) for name, o in found if name == "color_jitter"]
    scales = [float(o["scale"][0]) for name, o in found if name == "random_resized_crop" and "scale" in o]
    if not found or max(hues, default=0) > _GENTLE_HUE:
        return "milder views (views.recipe {name: simclr-cifar, min_scale: 0.4})"
    if any(name == "gaussian_blur" for name, _ in found):
        return "milder views (no gaussian_blur)"
    if min(scales, default=1.0) < _GENTLE_SCALE:
        return f"milder views (crops of at least {_GENTLE_SCALE:g} of the image: min_scale or scale)"
    return "milder views (fewer or weaker operations)"


def _more_updates(config: Mapping[str, Any], updates: int) -> str:
    batch, epochs = config.get("train", {}).get("batch_size"), config.get("schedule", {}).get("epochs")
    if batch is not None and batch > SMALLEST_BATCH:
        return f"more than {updates:,} updates (train.batch_size {max(SMALLEST_BATCH, batch // 4)} in place of {batch})"
    if epochs is not None:
        times = -(-FEW_UPDATES // updates)
        return f"more than {updates:,} updates (schedule.epochs {times * epochs} in place of {epochs})"
    return f"more than {updates:,} updates (a smaller train.batch_size, more schedule.epochs)"


def _lower_rate(config: Mapping[str, Any]) -> str:
    rate = config.get("optimizer", {}).get("lr")
    if isinstance(rate, Mapping):
        return f"a third of the learning rate (optimizer.lr.base {rate['base'] / 3:.2g} in place of {rate['base']:g})"
    place = "" if rate is None else f" {rate / 3:.2g} in place of {rate:g}"
    return f"a third of the learning rate (optimizer.lr{place})"


def _longer(config: Mapping[str, Any]) -> str:
    epochs = config.get("schedule", {}).get("epochs")
    return "more schedule.epochs" if epochs is None else f"longer training (schedule.epochs {2 * epochs})"
