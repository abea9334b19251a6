"""Training from an encoded store: views made ahead, in order and in bounds; a killed run ends in equal bytes."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from toy_photos import SIZE, make_store, photo
from toy_training import BATCH, STEPS, after, crash, result, train

from cl_core.data.loader import Batch, Loader
from cl_core.data.sampling import SampleRng, batch_rows
from cl_core.data.store import Store
from cl_core.data.views import Chain, views_of
from cl_core.errors import DataError, Interrupted
from cl_core.evaluation.classifier import Batches
from cl_core.evaluation.features import extract
from cl_core.types import Method, Views
from plugins.augmentations import ColorJitter, HorizontalFlip, RandomResizedCrop
from plugins.encoders import resnet8
from plugins.losses import NTXent
from plugins.methods import DINO, DenoisingAutoencoder, Jigsaw, SimCLR

COUNT, HELD_OUT = 48, 8  # 42 to train on, as many as toy_training has
CPU = torch.device("cpu")


def chain(size: int | None = None) -> Chain:
    return Chain([("crop", RandomResizedCrop(size=size)), ("flip", HorizontalFlip()), ("jitter", ColorJitter())])


def dino() -> Method:
    chains = {"augment_a": chain(), "augment_b": chain(), "augment_local": chain(16)}
    return DINO(resnet8(width=4), prototypes=8, hidden_dim=8, local_crops=2, **chains)


METHODS = {
    "simclr": lambda: SimCLR(resnet8(width=4), chain(), NTXent(), hidden_dim=8, out_dim=8),
    "jigsaw": lambda: Jigsaw(resnet8(width=4), tile_dim=8, hidden_dim=16),
    "denoising_autoencoder": lambda: DenoisingAutoencoder(resnet8(width=4), Chain([]), SIZE),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    images = [photo(i, 40 + i % 7, 60 - i % 11) for i in range(COUNT)]
    return make_store(tmp_path_factory.mktemp("encoded") / "store", images, held_out=HELD_OUT)


def pretrained(store: Store, folder, name: str, **options):
    torch.manual_seed(0)
    return train(store, folder, name, method=METHODS[name](), **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_broken_off_or_stopped_ends_in_the_bytes_of_an_uninterrupted_one(store, tmp_path, monkeypatch, name):
    expected = result(pretrained(store, tmp_path / "whole", name))
    assert {"encoder.safetensors", "metrics.json"} <= expected.keys()
    with pytest.raises(KeyboardInterrupt):
        pretrained(store, tmp_path / "broken", name, stop=after(4, crash))
    monkeypatch.setenv("CONTRAST_DECODE_THREADS", "3")
    with pytest.raises(Interrupted):
        pretrained(store, tmp_path / "broken", name, stop=after(STEPS - 5, lambda: True))
    assert result(pretrained(store, tmp_path / "broken", name)) == expected


def views_maker(store: Store, method: Method, made: list[int] | None = None):
    """Makes the views of a batch as training does, writing down of which step."""

    def make(batch: Batch) -> Views:
        if made is not None:
            made.append(batch.step)
        return views_of(method, batch.images, 3, batch.epoch, batch.rows)

    return make


def loader(store: Store, make, start: int = 0, stop: int = 12, prefetch: int = 2) -> Loader:
    split = store.split("train")
    options = {"seed": 3, "start": start, "stop": stop, "device": CPU, "prefetch": prefetch}
    return Loader(split, batch_size=BATCH, views=make, **options)


class TestMakingViewsAhead:
    def test_they_are_those_of_the_step_however_the_loader_was_started(self, store):
        method = METHODS["simclr"]()
        make = views_maker(store, method)
        whole = list(loader(store, make))
        for batch in [*whole, *loader(store, make, start=7)]:
            rows, epoch = batch_rows(len(store.split("train")), BATCH, batch.step, 3)
            expected = views_of(method, store.split("train").floats(rows, CPU), 3, epoch, rows)
            for ours, view in zip(batch.views.images, expected.images, strict=True):
                assert torch.equal(ours, view)

    def test_no_more_batches_are_made_than_there_is_room_for(self, store):
        made: list[int] = []
        batches = iter(loader(store, views_maker(store, METHODS["simclr"](), made), prefetch=2))
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # time enough to make more
        assert made == [0, 1, 2, 3]  # one taken, two ready, one in the making
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "loader"]

    def test_nothing_stays_decoded_once_the_views_are_made(self, store):
        for batch in loader(store, views_maker(store, METHODS["simclr"]()), stop=3):
            assert not batch.images._files._decoded
            assert batch.images._squares is None

    def test_what_goes_wrong_in_the_thread_is_raised_in_training(self, store):
        def fail(batch: Batch) -> Views:
            if batch.step == 2:
                raise DataError("the image 'k9' of train cannot be decoded")
            return views_maker(store, METHODS["simclr"]())(batch)

        batches = iter(loader(store, fail))
        assert [next(batches).step, next(batches).step] == [0, 1]
        with pytest.raises(DataError, match="'k9'"):
            next(batches)
        assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_multi_crop_methods_get_views_of_both_sizes_and_train(store, tmp_path):
    torch.manual_seed(0)
    out = train(store, tmp_path, "dino", method=dino())
    assert (out / "encoder.safetensors").is_file()
    rows = torch.arange(4)
    views = views_of(dino(), store.split("train").floats(rows, CPU), 0, 0, rows)
    assert [view.shape[-1] for view in views.images] == [SIZE, SIZE, 16, 16]


def test_features_are_those_of_the_decoded_squares(store, tmp_path):
    images = [photo(i, 40 + i % 7, 60 - i % 11) for i in range(COUNT)]
    plain = make_store(tmp_path / "plain", images, max_shorter_side=None, held_out=HELD_OUT)
    torch.manual_seed(0)
    representation = METHODS["simclr"]().representation()
    ours, expected = (extract(representation, s.split("validation")) for s in (store, plain))
    assert all(torch.equal(ours.probe[stage], expected.probe[stage]) for stage in expected.probe)


def test_fine_tuning_crops_the_stored_images(store):
    split, rows = store.split("train"), torch.arange(0, 40, 2)
    batches = Batches(split=split, rows=rows.numpy(), size=8, augment=chain(), seed=1, device=CPU)
    images, labels = batches.at(3)
    picked, epoch = batch_rows(len(rows), 8, 3, 1)
    expected = chain()(split.floats(rows[picked], CPU), SampleRng(1, epoch, rows[picked]))
    assert torch.equal(images, expected)
    assert labels.tolist() == split.labels[rows[picked].numpy()].tolist()
