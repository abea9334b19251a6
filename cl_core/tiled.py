"""Log-sum-exps over all candidates of a batch, tile by tile: memory is linear in the batch where the scores are not.

What contrastive objectives share. The scores of anchors with candidates are never all held at once: the forward pass
keeps a number per anchor, the backward pass computes the tiles again, as FlashAttention does (Dao et al. 2022,
arXiv:2205.14135). Gradients are exact; there are no second derivatives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Score = Callable[[Tensor, Tensor], Tensor]

# Rows and columns of a tile. What fits in one needs no tiles: the plain formula takes it, and is faster there.
CPU_TILE = 512  # 1 MB of float32, which stays in the cache
CPU_TILE_OF_NETWORK = 256  # of a score that is learned and may need much more for a pair than its result
GPU_TILE = 4096  # memory is cheaper there than launching kernels


def dot(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M)."""
    return anchors @ candidates.T


def log_sum_exp(anchors: Tensor, candidates: Tensor, left_out: Tensor | None = None, score: Score = dot) -> Tensor:
    """log sum_j exp(score(anchor i, candidate j)), whatever the size of the scores: (N, D), (M, D) -> (N,).

    left_out: (N, K) int64 in [0, M), the rows of candidates that anchor i does not sum over, such as itself; None sums
        over all. An anchor that leaves out everything gets -inf and no gradient. Anchors may be those of one process
        and candidates those of all: row i of the anchors then is row `offset + i` of the candidates, with the number
        of candidates of the processes before as the offset.
    score: (B, D), (C, D) -> (B, C), looks at one pair at a time and gives the same when asked again. Learned weights
        must be parameters of an nn.Module.

    Gradients reach anchors, candidates and the parameters of the score. Memory is O(N + M) beside these gradients and
    a tile of scores.
    """
    if _fits(anchors, candidates, score):
        with torch.autocast(anchors.device.type, enabled=False):
            scores = score(anchors, candidates)
            return (scores if left_out is None else scores.scatter(1, left_out, -torch.inf)).logsumexp(dim=1)
    by_row, _, _ = _untraced(_Tiled)(score, left_out, False, anchors, candidates, *_learned(score))
    return by_row


def log_sum_exps_of_pairs(anchors: Tensor, candidates: Tensor, score: Score) -> tuple[Tensor, Tensor, Tensor]:
    """Over the candidates of each anchor, over the anchors of each candidate, and the score of each pair.

    anchors, candidates: (N, D); row i of one belongs to row i of the other. Returns three (N,). See `log_sum_exp`.
    """
    if _fits(anchors, candidates, score):
        with torch.autocast(anchors.device.type, enabled=False):
            scores = score(anchors, candidates)
            return scores.logsumexp(dim=1), scores.logsumexp(dim=0), scores.diagonal()
    by_row, by_column, own = _untraced(_Tiled)(score, None, True, anchors, candidates, *_learned(score))
    return by_row, by_column, own


def log_sum_exp_among(z: Tensor, left_out: Tensor) -> Tensor:
    """`log_sum_exp(z, z, left_out)` at half the price: a tile of dot products serves its rows and its columns.

    z: (N, D). left_out: (N, K) int64, mutual: where i leaves out j, j leaves out i. Returns (N,). Where exponentials
    might overflow without a maximum subtracted, as cosines over a temperature below 0.025 do in float32, it is
    `log_sum_exp` that answers.
    """
    if _fits(z, z, dot):
        return log_sum_exp(z, z, left_out)
    largest = z.detach().square().sum(dim=1).amax()  # of all dot products, by Cauchy-Schwarz
    if largest < 0.45 * math.log(torch.finfo(z.dtype).max):
        result: Tensor = _untraced(_TiledAmong)(z, left_out)
        return result
    return log_sum_exp(z, z, left_out)


def _untraced(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Its `apply`, which torch.compile leaves alone: it would write out the loop, tile by tile."""
    return torch.compiler.disable(function.apply)


def _in_full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast off: bfloat16 keeps two digits of a score, and the exponential magnifies what is lost."""

    @functools.wraps(method)
    def run(ctx: Any, *arguments: Any) -> Any:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(device.type, enabled=False):
            return method(ctx, *arguments)

    return run


class _TiledAmong(torch.autograd.Function):
    """Dot products of rows with each other, not shifted, so that a pair needs a single exponential."""

    @staticmethod
    @_in_full_precision
    def forward(ctx: Any, z: Tensor, left_out: Tensor) -> Tensor:
        total = z.new_zeros(len(z))
        for rows, columns, weights in _upper_tiles(z, left_out):
            total[rows] += weights.sum(dim=1)
            if rows != columns:
                total[columns] += weights.sum(dim=0)
        result = total.log()
        ctx.save_for_backward(z, left_out, result)
        return result

    @staticmethod
    @_in_full_precision
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, left_out, result = ctx.saved_tensors
        factor = (gradient * (-result).exp()).masked_fill(result == -torch.inf, 0)
        out = torch.zeros_like(z)
        for rows, columns, weights in _upper_tiles(z, left_out):
            weights.mul_(factor[rows, None] + factor[columns])  # i as the anchor of j, and j as that of i
            out[rows].addmm_(weights, z[columns])
            if rows != columns:
                out[columns].addmm_(weights.T, z[rows])
        return out, None


def _upper_tiles(z: Tensor, left_out: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Exponentials of dot products, 0 where left out, on and above the diagonal; all in one buffer."""
    grid = _Grid(z, z, left_out, dot)
    buffer = z.new_empty(min(grid.side, len(z)) ** 2)
    for rows, columns in grid:
        if rows.start <= columns.start:
            left, right = z[rows], z[columns]
            tile = buffer[: len(left) * len(right)].view(len(left), len(right))
            yield rows, columns, grid.leave_out(torch.mm(left, right.T, out=tile).exp_(), rows, columns, 0.0)


class _Tiled(torch.autograd.Function):
    """Any score of anchors with candidates; `paired` asks for the sums of columns and the scores of pairs too."""

    @staticmethod
    @_in_full_precision
    def forward(  # noqa: PLR0917 - apply() takes no keywords
        ctx: Any, score: Score, left_out: Tensor | None, paired: bool, anchors: Tensor, candidates: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        by_row = anchors.new_full((len(anchors),), -torch.inf)
        by_column, own = (torch.full_like(by_row, -torch.inf) if paired else None for _ in range(2))
        grid = _Grid(anchors, candidates, left_out, score)
        for rows, columns in grid:
            scores = grid.leave_out(score(anchors[rows], candidates[columns]), rows, columns, -torch.inf)
            by_row[rows] = torch.logaddexp(by_row[rows], scores.logsumexp(dim=1))
            if by_column is not None:
                by_column[columns] = torch.logaddexp(by_column[columns], scores.logsumexp(dim=0))
            if own is not None and rows == columns:
                own[rows] = scores.diagonal()
        ctx.score = score
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(left_out, anchors, candidates, by_row, by_column)
        return by_row, by_column, own

    @staticmethod
    @_in_full_precision
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        left_out, anchors, candidates, *sums = ctx.saved_tensors
        grid, learned = _Grid(anchors, candidates, left_out, ctx.score), _learned(ctx.score)
        needed = ctx.needs_input_grad[3:]
        total = [torch.zeros_like(tensor) for tensor in (anchors, candidates, *learned)]
        for rows, columns in grid:
            parts = [anchors[rows].detach(), candidates[columns].detach(), *learned]
            wanted = [part.requires_grad_() for part, need in zip(parts, needed, strict=True) if need]
            with torch.enable_grad():
                scores = ctx.score(*parts[:2])
            values = grid.leave_out(scores.detach().clone(), rows, columns, -torch.inf)
            slope = _slope(values, rows, columns, sums, slopes)
            found = torch.autograd.grad(scores, wanted, slope, materialize_grads=True)
            places = [total[0][rows], total[1][columns], *total[2:]]
            for place, gradient in zip([p for p, need in zip(places, needed, strict=True) if need], found, strict=True):
                place.add_(gradient)
        return None, None, None, *(part if need else None for part, need in zip(total, needed, strict=True))


def _slope(
    scores: Tensor, rows: slice, columns: slice, sums: list[Tensor | None], slopes: tuple[Tensor | None, ...]
) -> Tensor:
    """Gradient of a tile of scores, given those of the results; a score left out is -inf."""
    (by_row, by_column), (for_rows, for_columns, for_own) = sums, slopes
    slope = torch.zeros_like(scores)
    if by_row is not None and for_rows is not None:
        slope += _shares(scores, by_row[rows, None]) * for_rows[rows, None]
    if by_column is not None and for_columns is not None:
        slope += _shares(scores, by_column[columns]) * for_columns[columns]
    if for_own is not None and rows == columns:
        slope.diagonal().add_(for_own[rows])
    return slope


def _shares(scores: Tensor, total: Tensor) -> Tensor:
    """What each score contributes to the sum of exponentials whose log is total; 0 where all are left out."""
    return (scores - total.masked_fill(total == -torch.inf, torch.inf)).exp_()


class _Grid:
    """Slices of anchors and candidates that make up a tile, and which tiles hold something that is left out."""

    def __init__(self, anchors: Tensor, candidates: Tensor, left_out: Tensor | None, score: Score) -> None:
        self.side = _side(anchors, score)
        self.sizes, self.left_out = (len(anchors), len(candidates)), left_out
        self._touched = set() if left_out is None else self._tiles_of(left_out)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        starts = [range(0, size, self.side) for size in self.sizes]
        for row, column in product(*starts):
            yield slice(row, min(row + self.side, self.sizes[0])), slice(column, min(column + self.side, self.sizes[1]))

    def leave_out(self, tile: Tensor, rows: slice, columns: slice, value: float) -> Tensor:
        """The tile, changed in place where an anchor leaves out a candidate."""
        if self.left_out is not None and (rows.start // self.side, columns.start // self.side) in self._touched:
            mine = self.left_out[rows]
            row, which = ((mine >= columns.start) & (mine < columns.stop)).nonzero(as_tuple=True)
            tile[row, mine[row, which] - columns.start] = value
        return tile

    def _tiles_of(self, left_out: Tensor) -> set[tuple[int, int]]:
        """Known in advance, so that a device is asked once and not for each tile."""
        touched = torch.zeros([-(-size // self.side) for size in self.sizes], dtype=torch.bool, device=left_out.device)
        row = torch.arange(len(left_out), device=left_out.device)[:, None]
        touched[row // self.side, left_out // self.side] = True
        return {(first, second) for first, second in touched.nonzero().tolist()}


def _side(anchors: Tensor, score: Score) -> int:
    """Rows and columns of a tile."""
    cpu_tile = CPU_TILE_OF_NETWORK if _learned(score) else CPU_TILE
    return cpu_tile if anchors.device.type == "cpu" else GPU_TILE


def _fits(anchors: Tensor, candidates: Tensor, score: Score) -> bool:
    """Whether all scores fit in one tile."""
    return max(len(anchors), len(candidates)) <= _side(anchors, score)


def _learned(score: Score) -> list[nn.Parameter]:
    """The weights of a score that train."""
    return [weight for weight in score.parameters() if weight.requires_grad] if isinstance(score, nn.Module) else []
