"""Counter-based randomness: every draw is a pure function of (seed, epoch, sample, view, draw number).

So the view of sample i in epoch e is the same for every batch size, worker count and device count and after every
resume, and nothing about randomness is ever checkpointed. Draws come from the SplitMix64 finaliser (Steele, Lea &
Flood 2014, "Fast splittable pseudorandom number generators") over a per-sample key, vectorised over the batch.
Torch has no unsigned 64-bit arithmetic; two's-complement int64 wraps the same way, only shifts need a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of SplitMix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers to one in [0, 2^63): the seed of anything derived from (seed, epoch, ...). Never add seeds."""
    state = 0
    for word in words:
        state = _finalise_int((state ^ (word & _MASK)) + _GAMMA)
    return state >> 1


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Order in which the n samples are visited in an epoch: (n,) int64 on the CPU. Pure, so resuming needs no state."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, 0x0DE5))
    return torch.randperm(n, generator=generator)


def batch_rows(n: int, batch: int, step: int, seed: int, *, part: int = 0, parts: int = 1) -> tuple[Tensor, int]:
    """Rows of the batch at `step`, and its epoch: ((batch,) int64, epoch). An epoch drops its last n % batch rows.

    part, parts: give only the share of one of several processes, see `part_of`.
    """
    epoch, k = divmod(step, n // batch)
    return epoch_order(n, seed, epoch)[k * batch : (k + 1) * batch][part_of(batch, part, parts)], epoch


def part_of(batch: int, part: int, parts: int) -> slice:
    """Which rows of a batch one of several processes takes: whole runs of equal length, in order."""
    share = batch // parts
    return slice(part * share, (part + 1) * share)


class SampleRng:
    """Random numbers for a batch of samples; each method returns one row per sample and advances the draw number.

    seed: experiment seed. epoch: how often each sample has been seen. indices: (N,) int64, the samples' rows in their
    split. The values of a row depend on nothing else: not on the other rows, the batch size or the device.
    Uniform, bernoulli, integers and permutation are bit-equal on CPU and GPU, normal within 1e-6.
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor) -> None:
        indices = indices.to(torch.int64)
        self._keys = _finalise(indices * _signed(_GAMMA) + _signed(mix(seed, epoch) << 1))
        self._draws = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def device(self) -> torch.device:
        """Where the draws are made."""
        return self._keys.device

    def child(self, name: int) -> SampleRng:
        """An independent stream (a view, an operation of a chain), whatever was drawn from this one before."""
        child = object.__new__(SampleRng)
        child._keys = _finalise(self._keys ^ _signed(mix(name, 0xC41D)))
        child._draws = 0
        return child

    def rows(self, rows: Tensor) -> SampleRng:
        """The same streams at the same draw number for some of the samples; rows: (M,) int64 or (N,) bool."""
        part = object.__new__(SampleRng)
        part._keys = self._keys[rows]
        part._draws = self._draws
        return part

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        """(N, *shape) float32 in [low, high), on a grid of 2^-24 of the width."""
        unit = self._unit(shape, 24, torch.float32)
        # Two separate operations: a fused multiply-add would round differently on a GPU.
        return unit if (low, high) == (0.0, 1.0) else unit.mul(high - low).add(low)

    def normal(self, mean: float = 0.0, std: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        """(N, *shape) float32, normally distributed (Box-Muller in double precision)."""
        radius = (1.0 - self._unit(shape, 53, torch.float64)).log().mul(-2).sqrt()
        angle = self._unit(shape, 53, torch.float64).mul(2 * math.pi)
        return (radius * angle.cos()).mul(std).add(mean).to(torch.float32)

    def bernoulli(self, prob: float) -> Tensor:
        """(N,) bool, true with the given probability; always false for 0 and always true for 1."""
        return self.uniform() < prob

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """(N, *shape) int64 in [low, high), the upper end left out. Bias below 2^-40 for any range under 2^22."""
        return (self._bits(shape) >> 1 & (_MASK >> 2)) % (high - low) + low

    def permutation(self, n: int) -> Tensor:
        """(N, n) int64: one uniformly drawn order of 0..n-1 per sample."""
        return self._bits((n,)).argsort(dim=1, stable=True)

    def _unit(self, shape: Sequence[int], bits: int, dtype: torch.dtype) -> Tensor:
        """(N, *shape) in [0, 1), on a grid of 2^-bits."""
        return self._bits(shape, bits).to(dtype).mul_(2.0**-bits)

    def _bits(self, shape: Sequence[int], keep: int = 64) -> Tensor:
        """(N, *shape) int64 of the `keep` highest of 64 random bits.

        Value j of draw d hashes counter (d, j) under the sample's key.
        """
        first, count = (self._draws << 32) + 1, math.prod(shape)
        self._draws += 1
        words = _words_on_cpu if self.device.type == "cpu" else _words
        return words(self._keys, first, count, keep).view(len(self), *shape)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Logical shift; torch's own shift of int64 is arithmetic."""
    return (x >> by) & (_MASK >> by) if by else x


def _finalise(x: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64-bit words."""
    if x.device.type == "cpu":
        return torch.from_numpy(_finalise_array(x.numpy().view(np.uint64)).view(np.int64))
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _finalise_array(x: np.ndarray) -> np.ndarray:
    """The same by numpy, which has unsigned words and whose calls cost a third of torch's.

    Batches are small and draws are many, so that calls are what drawing costs on a CPU.
    """
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(_MIX_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MIX_2)
    x ^= x >> np.uint64(31)
    return x


def _words(keys: Tensor, first: int, count: int, keep: int) -> Tensor:
    """(N, count) int64: the `keep` highest bits of the hashes of counters `first` and on under the keys (N,)."""
    counters = torch.arange(first, first + count, device=keys.device)
    return _shift_right(_finalise(keys[:, None] + counters * _signed(_GAMMA)), 64 - keep)


def _words_on_cpu(keys: Tensor, first: int, count: int, keep: int) -> Tensor:
    """The same by numpy."""
    steps = np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GAMMA)
    words = _finalise_array(keys.numpy().view(np.uint64)[:, None] + steps)
    words >>= np.uint64(64 - keep)
    return torch.from_numpy(words.view(np.int64))


def _finalise_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ x >> 30) * _MIX_1) & _MASK
    x = ((x ^ x >> 27) * _MIX_2) & _MASK
    return x ^ x >> 31
