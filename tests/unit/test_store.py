"""The store: reading by rows, subsets by hash, errors that name file and remedy, and other Arrow readers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cl_core.data import shards
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store, to_float
from cl_core.errors import DataError
from cl_core.types import Example

SIZE = 4


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class Numbered:
    """`count` examples with the labels 0, 1, none, 0, 1, none ..."""

    def __init__(self, count: int) -> None:
        self.count = count

    def fingerprint(self) -> dict[str, int]:
        return {"count": self.count}

    def __iter__(self):
        for i in range(self.count):
            yield Example(key=f"k{i}", image=pixels(i), label=None if i % 3 == 2 else str(i % 3))


def make(out: Path, count: int, validation: int = 0) -> Store:
    ingest(
        Numbered(count),
        out,
        size=SIZE,
        splits=SplitRule(validation, 0),
        source_spec={"name": "numbered"},
        report=lambda line: None,
    )
    return Store.open(out)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Store:
    """Two shards of train, in several record batches each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 600)
        patch.setattr(shards, "_BATCH_BYTES", 250 * SIZE * SIZE * 3)
        return make(tmp_path_factory.mktemp("store") / "large", 1000, validation=70)


def number(key: str) -> int:
    return int(key[1:])


def test_rows_are_cut_into_record_batches_and_shards_of_bounded_size(large):
    assert [s["rows"] for s in large.manifest["splits"]["train"]["shards"]] == [600, 330]
    reader = pa.ipc.open_file(str(large.path / "train-00000.arrow"))
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [250, 250, 100]


def test_any_arrow_reader_opens_a_shard_and_finds_its_columns(large):
    with pa.OSFile(str(large.path / "validation-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert {f.name: str(f.type) for f in table.schema} == {
        "key": "string",
        "label": "int32",
        "image": f"fixed_size_binary[{SIZE * SIZE * 3}]",
    }
    assert table.schema.metadata == {b"format": b"contrast-store/1", b"image_shape": b"4,4,3"}
    for row in table.to_pylist():
        i = number(row["key"])
        assert row["label"] == (None if i % 3 == 2 else i % 3)
        assert row["image"] == pixels(i).tobytes()


def test_images_are_gathered_in_any_order_across_batches_and_shards(large):
    train = large.split("train")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:300]
    rows = torch.cat([rows, rows[:5], torch.tensor([0, len(train) - 1])])
    images = train.images(rows)
    assert images.dtype == torch.uint8
    assert images.shape == (307, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([pixels(number(train.keys[row])) for row in rows])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)


def test_rows_may_be_a_numpy_array_and_may_be_none(large):
    train = large.split("train")
    assert torch.equal(train.images(np.array([3, 1])), train.images(torch.tensor([3, 1])))
    assert train.images(np.array([], dtype=np.int64)).shape == (0, 3, SIZE, SIZE)


def test_gathered_images_are_copies_of_the_read_only_map(large):
    train = large.split("train")
    train.images(torch.tensor([0])).fill_(7)
    assert np.array_equal(train.images(torch.tensor([0]))[0].permute(1, 2, 0).numpy(), pixels(number(train.keys[0])))


@pytest.mark.parametrize("row", [-1, 930])
def test_a_row_that_is_not_there_is_an_index_error(large, row):
    with pytest.raises(IndexError, match="of train, which has 930"):
        large.split("train").images(torch.tensor([0, row]))


def test_keys_and_labels_belong_to_the_same_rows(large):
    for name in ("train", "validation"):
        split = large.split(name)
        assert len(split) == len(split.keys) == len(split.labels)
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [-1 if number(k) % 3 == 2 else number(k) % 3 for k in split.keys]


def test_a_split_without_images_is_empty_and_an_unknown_one_an_error(large):
    test = large.split("test")
    assert (len(test), test.keys, test.labels.tolist()) == (0, [], [])
    assert test.images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, SIZE, SIZE)
    with pytest.raises(DataError, match="no split 'val'; choose one of train, validation, test"):
        large.split("val")


def test_a_selection_keeps_the_given_order_and_can_be_selected_from(large):
    train = large.split("train")
    some = train.select(torch.tensor([500, 3, 700]))
    assert some.keys == [train.keys[500], train.keys[3], train.keys[700]]
    assert some.labels.tolist() == [train.labels[row] for row in (500, 3, 700)]
    assert torch.equal(some.images(torch.tensor([2, 0])), train.images(torch.tensor([700, 500])))
    assert some.select(np.array([1])).keys == [train.keys[3]]


def test_a_subset_by_hash_keeps_the_order_and_is_nested(large):
    train = large.split("train")
    few, more = train.by_hash(100), train.by_hash(400)
    assert len(few) == 100
    assert [k for k in train.keys if k in set(few.keys)] == few.keys
    assert set(few.keys) < set(more.keys)
    assert train.by_hash(5000).keys == train.keys
    assert len(train.by_hash(0)) == 0


def test_a_subset_by_hash_does_not_depend_on_the_order_of_the_rows(large):
    train = large.split("train")
    reversed_order = train.select(np.arange(len(train))[::-1].copy())
    assert set(reversed_order.by_hash(50).keys) == set(train.by_hash(50).keys)


def test_a_subset_by_hash_is_not_the_part_next_to_the_validation_split(large):
    """Splits and subsets use different words of the hash, or a subset would depend on the split rule."""
    everything = make(large.path.parent / "whole", 1000).split("train")
    assert len(set(everything.by_hash(70).keys) & set(large.split("validation").keys)) < 20


def test_has_labels_needs_two_classes_in_train(tmp_path):
    assert not make(tmp_path / "one", 1).has_labels
    assert make(tmp_path / "two", 2).has_labels


def test_to_float_maps_0_and_255_to_0_and_1_and_keeps_input_and_layout():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8).to(memory_format=torch.channels_last)
    floats = to_float(images)
    assert floats.dtype == torch.float32
    assert torch.equal(floats.flatten().double().sort().values, (torch.arange(256) / 255).double())
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert images.max() == 255


# digest and damage


def test_the_digest_is_that_of_the_manifest_and_moves_with_the_images(tmp_path):
    store = make(tmp_path / "a", 10)
    assert store.digest == hashlib.sha256((store.path / "manifest.json").read_bytes()).hexdigest()
    assert make(tmp_path / "b", 10).digest == store.digest
    assert make(tmp_path / "c", 11).digest != store.digest


def test_verify_names_the_shard_in_which_a_byte_has_changed(tmp_path):
    store = make(tmp_path / "store", 20, validation=5)
    store.verify()
    path = store.path / "train-00000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged in train-00000\.arrow; restore it with `dvc checkout`"):
        Store.open(store.path).verify()


def test_a_missing_store_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match=r"holds no store .* run `contrast run` to ingest the images"):
        Store.open(tmp_path)


def test_a_missing_shard_is_named_with_the_remedy(tmp_path):
    (make(tmp_path / "store", 10).path / "train-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"train-00000\.arrow is missing; restore it with `dvc checkout`, or delete"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("content", [b"", b"ARROW1 no", None])
def test_a_damaged_shard_is_named_with_the_remedy(tmp_path, content):
    path = make(tmp_path / "store", 10).path / "train-00000.arrow"
    content = path.read_bytes()[:-100] if content is None else content
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000\.arrow is damaged .*; restore it with"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "contrast-store/9"}, r"has the format 'contrast-store/9', this version of contrast reads"),
        ({"image_size": 5}, r"does not hold 5 x 5 images"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, problem):
    path = make(tmp_path / "store", 10).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=problem):
        Store.open(tmp_path / "store")


def test_a_row_count_that_differs_from_the_manifest_is_refused(tmp_path):
    path = make(tmp_path / "store", 10).path / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 10', '"rows": 11'))
    with pytest.raises(DataError, match=r"train-00000\.arrow has 10 rows, the manifest says 11; restore"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_manifest_that_is_not_one_is_damaged(tmp_path, content):
    path = make(tmp_path / "store", 10).path / "manifest.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        Store.open(tmp_path / "store")


def test_a_shard_with_other_columns_is_refused(tmp_path):
    path = make(tmp_path / "store", 10).path / "train-00000.arrow"
    table = pa.table({"image": [b"x"]})
    path.unlink()
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"train-00000\.arrow has the columns image; restore"):
        Store.open(tmp_path / "store")
