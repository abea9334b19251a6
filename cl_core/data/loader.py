"""Batches for training, gathered ahead of time by one background thread.

The order is `sampling.batch_rows`, a pure function of (seed, step), so a loader started at step s gives what an
uninterrupted one gives from s on, and it has no state to save. One thread is enough: from a decoded store a batch is
one gather from memory-mapped pixels, and everything random happens later, batched, on the device that trains. From an
encoded store the thread also makes the views, for only they know which crops to decode; more threads decode for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue

import torch
from torch import Tensor

from cl_core.data.sampling import epoch_order, part_of
from cl_core.data.store import Split, moved
from cl_core.errors import DataError
from cl_core.types import Views

_POLL = 0.1  # seconds after which a thread that waits for room looks whether it should end


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step trains on, all of it on the device that trains; where several processes train, the share of one.

    images: (N, C, H, W) float32 in [0, 1], channels-last memory. labels: (N,) int64, -1 where there is none. rows: (N,)
    int64 rows within the split. epoch: how often each of them has been seen before. step: counted from 0. views: made
    of the images already, where the loader was asked to.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    epoch: int
    step: int
    views: Views | None = None


class Loader:
    """The batches of steps `start` to `stop` - 1; every iteration begins at `start` again.

    batch_size: images of a step, over all `parts` that it is cut into; this loader gives number `part` of them.
    device: where the batches go. views: makes the views of each batch, in the thread. prefetch: batches made ahead; one
    more is in the making. waited: seconds that the consumer has spent waiting for data, over all iterations.
    Raises DataError where the split cannot fill a batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        device: torch.device,
        views: Callable[[Batch], Views] | None = None,
        part: int = 0,
        parts: int = 1,
        prefetch: int = 2,
    ) -> None:
        _check_batch_size(split, batch_size)
        split.expect_random_reads()
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._share = part_of(batch_size, part, parts)
        self._steps = range(start, stop)
        self._device, self._views = device, views
        self._prefetch = prefetch
        self._labels = torch.from_numpy(split.labels)
        self.steps_per_epoch = len(split) // batch_size
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; an exception of the thread is raised here, leaving early ends the thread."""
        ready: Queue[Batch | BaseException] = Queue(maxsize=self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop), name="loader", daemon=True)
        thread.start()
        try:
            for _ in self._steps:
                yield self._next(ready)
        finally:
            stop.set()
            _drain(ready)
            thread.join()

    def _next(self, ready: Queue[Batch | BaseException]) -> Batch:
        began = time.perf_counter()
        batch = ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _fill(self, ready: Queue[Batch | BaseException], stop: threading.Event) -> None:
        try:
            for batch in self._batches():
                if not _put(ready, batch, stop):
                    return
        except BaseException as error:  # whatever it is, the consumer must hear of it or it would wait for ever
            _put(ready, error, stop)

    def _batches(self) -> Iterator[Batch]:
        """As `sampling.batch_rows` has it, but the order of an epoch is drawn once and not once per batch."""
        order, order_epoch = torch.empty(0), -1
        for step in self._steps:
            epoch, k = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(len(self._split), self._seed, epoch), epoch
            rows = order[k * self._batch_size : (k + 1) * self._batch_size]
            yield self._batch(rows[self._share], epoch, step)

    def _batch(self, rows: Tensor, epoch: int, step: int) -> Batch:
        batch = Batch(
            images=self._split.floats(rows, self._device),
            labels=moved(self._labels[rows], self._device),
            rows=moved(rows, self._device),
            epoch=epoch,
            step=step,
        )
        return batch if self._views is None else replace(batch, views=self._views(batch))


def _check_batch_size(split: Split, batch_size: int) -> None:
    if len(split) == 0:
        raise DataError(f"{split.name} has no images; add some, or set smaller shares for the other splits")
    if len(split) < batch_size:
        raise DataError(
            f"{split.name} has {len(split):,} images, fewer than train.batch_size {batch_size}; set train.batch_size "
            f"to at most {len(split)}"
        )


def _put(ready: Queue[Batch | BaseException], item: Batch | BaseException, stop: threading.Event) -> bool:
    """Put an item as soon as there is room; False if asked to stop before."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL)
        except Full:
            continue
        return True
    return False


def _drain(ready: Queue[Batch | BaseException]) -> None:
    """Make room, so that a thread that waits for it goes on at once."""
    try:
        while True:
            ready.get_nowait()
    except Empty:
        pass
