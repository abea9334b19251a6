"""Small networks that methods put on top of an encoder."""

from __future__ import annotations

import itertools

from torch import nn


def mlp(widths: list[int], *, last_norm: bool = False) -> nn.Sequential:
    """Linear-BN-ReLU between consecutive widths, a plain linear at the end: (N, widths[0]) -> (N, widths[-1]).

    last_norm: batch norm after the last linear too (SimCLR v2's released head).
    """
    layers: list[nn.Module] = []
    for index, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        last = index == len(widths) - 2
        normed = not last or last_norm
        layers.append(nn.Linear(wide, narrow, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(narrow))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
