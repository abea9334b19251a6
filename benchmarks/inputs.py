"""What several benchmarks feed both sides with: pictures, and the chains of recipes as the registry takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def photographs(count: int, side: int) -> Tensor:
    """(N, 3, side, side) uint8: blots of all sizes in several colours, with edges, as contrasty as photographs."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, side, side)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += interpolate(noise, side, mode="bicubic") / cells**0.5
    edges = interpolate(torch.randn(count, 1, 5, 5, generator=generator), side, mode="nearest")
    return ((total * 0.2 + edges * 0.1 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


def specs(steps: Iterable[Mapping[str, Any]], *, interpolation: str | None = None) -> list[dict[str, Any]]:
    """A recipe's steps for `build_chain`. interpolation: of the crop, where the peers' is not that of the recipe."""
    return [_spec(**step, changes={"interpolation": interpolation} if interpolation else {}) for step in steps]


def _spec(name: str, changes: Mapping[str, str], **options: Any) -> dict[str, Any]:
    return {"name": name, "options": options | {key: value for key, value in changes.items() if key in options}}
