"""The loader: order, resuming, what a batch holds, errors and the end of its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.loader import Batch, Loader
from cl_core.data.resident import fits, near
from cl_core.data.sampling import batch_rows
from cl_core.data.store import Split, Store
from cl_core.errors import DataError
from cl_core.types import Example

CPU = torch.device("cpu")


class Noise:
    """23 images with the labels 0, 1, 2, 0, 1 ..."""

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def __iter__(self) -> Iterator[Example]:
        for i in range(23):
            image = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            yield Example(key=str(i), image=image, label=str(i % 3))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    out: Path = tmp_path_factory.mktemp("loader") / "store"
    ingest(Noise(), out, size=4, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(out)


@pytest.fixture
def train(store) -> Split:
    return store.split("train")


def loader(split: Split, start: int = 0, stop: int = 12, batch_size: int = 5, prefetch: int = 2) -> Loader:
    return Loader(split, batch_size=batch_size, seed=3, start=start, stop=stop, device=CPU, prefetch=prefetch)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def equal(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "labels", "rows"))
    return tensors and (a.epoch, a.step) == (b.epoch, b.step)


def test_the_order_is_that_of_batch_rows_over_several_epochs(train):
    batches = list(loader(train))
    assert [b.step for b in batches] == list(range(12))
    for batch in batches:
        rows, epoch = batch_rows(23, 5, batch.step, seed=3)
        assert torch.equal(batch.rows, rows)
        assert batch.epoch == epoch
    assert batches[-1].epoch == 2


def test_a_batch_holds_the_images_and_labels_of_its_rows(train):
    for batch in loader(train, stop=5):
        assert torch.equal(batch.images, train.images(batch.rows).float() / 255)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, torch.from_numpy(train.labels)[batch.rows])
        assert batch.labels.dtype == batch.rows.dtype == torch.int64


def test_pixels_kept_on_the_device_give_the_same_batches_and_read_the_store_no_more(train, monkeypatch):
    some = train.select(np.arange(22, 4, -1))
    for split in (train, some):
        expected = list(loader(split, stop=6))
        kept = split.on(CPU)
        with monkeypatch.context() as patch:
            patch.setattr(Split, "images", lambda *_: pytest.fail("the store was read"))
            found = list(loader(kept, stop=6))
        assert all(equal(a, b) for a, b in zip(expected, found, strict=True))
        assert found[0].images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(kept.select(np.array([3, 0])).images(np.array([0, 1])), split.images(np.array([3, 0])))


def test_pixels_are_kept_on_a_device_only_where_they_leave_room_and_never_on_a_cpu(train):
    pixels = 23 * 4 * 4 * 3
    assert fits(train, 4 * pixels)
    assert not fits(train, 4 * pixels - 1)
    assert near(train, CPU) is train


@pytest.mark.parametrize("start", [1, 4, 7, 11])
def test_a_loader_that_starts_late_gives_the_batches_of_one_that_did_not(train, start):
    whole = list(loader(train))
    resumed = list(loader(train, start=start))
    assert len(resumed) == 12 - start
    assert all(equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_the_batches_do_not_depend_on_how_far_ahead_they_are_made(train):
    assert all(equal(a, b) for a, b in zip(loader(train, prefetch=1), loader(train, prefetch=7), strict=True))


def test_iterating_again_begins_at_the_start_again(train):
    batches = loader(train, start=2, stop=4)
    assert [b.step for b in batches] == [b.step for b in batches] == [2, 3]


def test_no_steps_left_give_no_batches(train):
    assert list(loader(train, start=12)) == []


def test_steps_per_epoch_leaves_out_the_incomplete_batch(train):
    assert loader(train).steps_per_epoch == 4
    assert loader(train, batch_size=23).steps_per_epoch == 1


def test_a_split_smaller_than_a_batch_names_both_numbers_and_the_edit(train):
    with pytest.raises(
        DataError, match=r"train has 23 images, fewer than train\.batch_size 256; set train\.batch_size to at most 23"
    ):
        loader(train, batch_size=256)


def test_a_split_without_images_is_refused(store):
    with pytest.raises(DataError, match="validation has no images; add some"):
        loader(store.split("validation"))


def test_an_error_in_the_thread_reaches_the_consumer_after_the_batches_before_it(train, monkeypatch):
    gather = Split.images

    def failing(self: Split, rows: torch.Tensor) -> torch.Tensor:
        if torch.equal(rows, batch_rows(23, 5, 3, seed=3)[0]):
            raise OSError("the disk is gone")
        return gather(self, rows)

    monkeypatch.setattr(Split, "images", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch.step for batch in loader(train))
    assert not loader_threads()


def test_an_error_does_not_swallow_the_batches_made_before_it(train, monkeypatch):
    calls = iter([True, True, False])
    gather = Split.images

    def failing(self: Split, rows: torch.Tensor) -> torch.Tensor:
        if next(calls):
            return gather(self, rows)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Split, "images", failing)
    batches = iter(loader(train))
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_leaving_early_ends_the_thread(train):
    for batch in loader(train, stop=100_000):
        if batch.step == 2:
            break
    assert not loader_threads()


def test_an_error_of_the_consumer_ends_the_thread(train):
    def consume() -> None:
        for _ in loader(train, stop=100_000):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not loader_threads()


def test_no_more_batches_are_made_than_were_asked_for_ahead(train, monkeypatch):
    made = []
    gather = Split.images
    monkeypatch.setattr(Split, "images", lambda self, rows: made.append(1) or gather(self, rows))
    batches = iter(loader(train, stop=50, prefetch=2))
    next(batches)
    time.sleep(0.3)
    assert len(made) <= 1 + 2 + 1  # taken, waiting in the queue, waiting to enter it
    batches.close()


def test_waited_counts_the_time_until_late_data_arrive(train, monkeypatch):
    gather = Split.images
    monkeypatch.setattr(Split, "images", lambda self, rows: time.sleep(0.1) or gather(self, rows))
    batches = loader(train, stop=3)
    list(batches)
    assert batches.waited >= 0.25


def test_waited_leaves_out_the_time_that_the_consumer_takes(train):
    batches = loader(train, stop=4)
    began = time.perf_counter()
    for _ in batches:
        time.sleep(0.1)
    assert batches.waited <= time.perf_counter() - began - 4 * 0.1
