"""A second look for leaks between splits: images that the encoder can hardly tell apart and whose hashes differ.

Finds what pixels cannot (another crop, a mirrored copy) as far as the encoder has learnt to ignore the change, and also
different things that it confuses, so the pairs are shown to somebody who can tell. Features are centred first: averages
after a rectifier all point one way, and of a small encoder's a third of all pairs have a cosine above 0.98.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cl_core.data.screening import LEAKS
from cl_core.evaluation.features import Features

MIN_COSINE = 0.98  #: of a pair, between centred average features of the last stage
MAX_SHARE = 1e-3  #: of pairs taken at random; where more are above, the features say nothing
_LISTED = 20  # pairs kept per kind, the most alike
_ASKED = 20_000  # images of a split that are compared with all of the other, evenly spaced
_SAMPLE = 1000  # images per split for the share
_CHUNK = 1024


def look_alikes(
    features: Mapping[str, Features], known: Set[tuple[str, str]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Count and name pairs across splits above MIN_COSINE.

    features: split -> its features. known: (key, other) of pairs found by their pixels, which are left out.
    Returns {"stage", "min_cosine", "pairs": {kind: {"count", "first": [[key, other, cosine], ...]}}} of the kinds in
    LEAKS whose splits have images, or {"stage", "min_cosine", "skipped": why} where the features are all too alike.
    """
    stage = list(features["train"].average)[-1]
    head = {"stage": stage, "min_cosine": MIN_COSINE}
    mean = features["train"].average[stage].to(device).float().mean(dim=0)
    sides = {name: _directions(found.average[stage].to(device), mean) for name, found in features.items()}
    pairs = {}
    for kind in LEAKS:
        one, other = kind.split("/")
        if not len(features[one]) or not len(features[other]):
            continue
        share = _share(sides[one], sides[other])
        if share:
            return head | {"skipped": f"{share:.1%} of random pairs of {kind} have a cosine above {MIN_COSINE}"}
        found = [
            (features[one].keys[row], features[other].keys[asked], cosine)
            for row, asked, cosine in _above(sides[one], sides[other])
        ]
        new = sorted((pair for pair in found if pair[:2] not in known), key=lambda pair: -pair[2])
        pairs[kind] = {"count": len(new), "first": [[*pair[:2], round(pair[2], 4)] for pair in new[:_LISTED]]}
    return head | {"pairs": pairs}


def told(result: Mapping[str, Any]) -> str:
    """The result as one line for the log."""
    if "skipped" in result:
        return f"no second look for leaks: {result['skipped']}, so these features cannot tell copies from other images"
    counts = {kind: found["count"] for kind, found in result["pairs"].items() if found["count"]}
    listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    return f"pairs across splits that the encoder hardly tells apart, besides those found by pixels: {listed or 'none'}"


def _directions(values: Tensor, mean: Tensor) -> Tensor:
    """(N, C) -> (N, C) centred and of length 1."""
    return normalize(values.float() - mean, dim=1)


def _share(one: Tensor, other: Tensor) -> float:
    """Of random pairs, how many are above, or 0 where it is so few that they may be copies: one for each image."""
    one, other = (side[:: max(1, len(side) // _SAMPLE)] for side in (one, other))
    above, pairs = int((one @ other.T > MIN_COSINE).sum()), len(one) * len(other)
    return above / pairs if above > max(MAX_SHARE * pairs, len(one) + len(other)) else 0.0


def _above(bank: Tensor, queries: Tensor) -> Iterator[tuple[int, int, float]]:
    """(row of the bank, row of the queries, cosine) of every pair above, in order of the queries."""
    rows = torch.arange(0, len(queries), max(1, -(-len(queries) // _ASKED)), device=queries.device)
    for part in rows.split(_CHUNK):
        cosines = queries[part] @ bank.T
        query, row = (cosines > MIN_COSINE).nonzero(as_tuple=True)
        yield from zip(row.tolist(), part[query].tolist(), cosines[query, row].tolist(), strict=True)
