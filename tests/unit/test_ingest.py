"""Ingest: every image accounted for, splits, duplicates, refusals, and the same bytes every time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.errors import ConfigError, DataError
from cl_core.types import Example


class ListSource:
    """A source of given examples."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def fingerprint(self) -> dict[str, Any]:
        return {"count": len(self.examples)}

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def noise(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def named(count: int, **fields: Any) -> list[Example]:
    return [Example(key=f"{i:04d}", image=noise(i), **fields) for i in range(count)]


def run(examples: list[Example], out: Path, validation: float = 0, test: float = 0, **options: Any) -> Store:
    options = {"size": 8, "source_spec": {"name": "list", "options": {}}, "report": lambda line: None} | options
    ingest(ListSource(examples), out, splits=SplitRule(validation, test), **options)
    return Store.open(out)


def quarantine(store: Store) -> dict[str, str]:
    with (store.path / "quarantine.csv").open(newline="") as file:
        return {row["key"]: row["reason"] for row in csv.DictReader(file)}


def split_of(store: Store) -> dict[str, str]:
    return {key: name for name in ("train", "validation", "test") for key in store.split(name).keys}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# the store as a whole


def test_every_example_is_stored_or_quarantined_in_the_order_of_the_source(tmp_path):
    (tmp_path / "empty.png").touch()
    broken = [
        Example(key="empty.png", image=tmp_path / "empty.png"),
        Example(key='odd, "name".png', image=b"text"),
        Example(key="gone.png", image=tmp_path / "gone.png"),
    ]
    good = named(50)
    store = run(good[:20] + broken + good[20:], tmp_path / "store")
    assert store.split("train").keys == [e.key for e in good]
    assert quarantine(store) == {
        "empty.png": "the file is empty",
        'odd, "name".png': "not an image in a known format",
        "gone.png": "cannot be read: No such file or directory",
    }
    assert store.manifest["quarantined"] == 3
    images = store.split("train").images(torch.arange(50)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, np.stack([e.image for e in good]))


def test_the_manifest_counts_classes_per_split_and_lists_every_shard(tmp_path):
    examples = [
        Example(key="a", image=noise(0), label="cat", split="train"),
        Example(key="b", image=noise(1), label="dog", split="train"),
        Example(key="c", image=noise(2), label="eel", split="test"),
        Example(key="d", image=noise(3), split="test"),
    ]
    store = run(examples, tmp_path / "store", source_spec={"name": "list", "options": {"path": "${DATA}"}})
    assert store.manifest["classes"] == ["cat", "dog", "eel"]
    assert store.manifest["splits"]["train"]["class_counts"] == {"cat": 1, "dog": 1, "eel": 0}
    assert store.manifest["splits"]["test"]["class_counts"] == {"cat": 0, "dog": 0, "eel": 1}
    assert [store.manifest["splits"][name]["count"] for name in ("train", "validation", "test")] == [2, 0, 2]
    assert store.split("test").labels.tolist() == [2, -1]
    assert store.manifest["source"] == {"name": "list", "options": {"path": "${DATA}"}}
    assert sorted(p.name for p in store.path.iterdir()) == [
        "manifest.json",
        "near_duplicates.csv",
        "quarantine.csv",
        "test-00000.arrow",
        "train-00000.arrow",
    ]


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path):
    examples = [Example(key=str(n), image=noise(n), label=str(n)) for n in (10, 9, 2, 0)]
    examples.append(Example(key="x", image=noise(1), label="other"))
    store = run(examples, tmp_path / "store")
    assert store.classes == ["0", "2", "9", "10", "other"]
    assert store.split("train").labels.tolist() == [3, 2, 1, 0, 4]


def test_an_unlabelled_source_has_no_classes(tmp_path):
    store = run(named(3), tmp_path / "store")
    assert store.classes == []
    assert not store.has_labels
    assert store.split("train").labels.tolist() == [-1, -1, -1]


def test_the_same_images_give_the_same_bytes_for_1_and_4_threads_and_a_second_run(tmp_path):
    examples = [*named(300, label="x"), Example(key="bad", image=b"?"), Example(key="twin", image=noise(5))]
    for name, workers in (("one", 1), ("four", 4), ("four", 4)):
        run(examples, tmp_path / name, validation=0.2, test=20, workers=workers)
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "four"))
    assert one == four
    assert len(one) == 6


def test_the_summary_tells_splits_quarantine_leakage_and_missing_classes(tmp_path):
    examples = [
        Example(key="a", image=noise(0), label="cat", split="train"),
        Example(key="b", image=noise(0), label="dog", split="test"),
        Example(key="c", image=b"text", label="cat", split="train"),
    ]
    lines: list[str] = []
    run(examples, tmp_path / "store", report=lines.append)
    assert lines == [
        "2 images, 2 classes: train 1, validation 0, test 1",
        "no image in train of 1 classes: dog",
        "quarantined 1 (all in quarantine.csv): c (not an image in a known format)",
        "leakage: 1 images of validation or test have the very pixels of an image in an earlier split: b = a",
        "leakage: 1 pairs of near duplicates across splits (train/test 1; all in near_duplicates.csv): "
        "a = b (train/test)",
    ]


def test_pillows_own_pixel_limit_does_not_count_and_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    examples = [Example(key="png", image=encoded(Image.fromarray(noise(0)), "PNG")), *named(1)]
    assert len(run(examples, tmp_path / "a").split("train")) == 2
    assert Image.MAX_IMAGE_PIXELS == 20
    assert quarantine(run(examples, tmp_path / "b", max_pixels=70)) == {}
    with pytest.raises(DataError, match="8 x 8 pixels, more than the limit of 60"):
        run(examples, tmp_path / "c", max_pixels=60)


# duplicates


def test_duplicates_across_splits_are_found_by_pixels_and_named_with_their_first_place(tmp_path):
    png = encoded(Image.fromarray(noise(1)), "PNG")
    examples = [
        Example(key="test-1", image=noise(1), split="test"),
        Example(key="train-0", image=noise(0), split="train"),
        Example(key="train-1", image=png, split="train"),
        Example(key="train-1-again", image=noise(1), split="train"),
        Example(key="val-1", image=noise(1), split="validation"),
        Example(key="val-2", image=noise(2), split="validation"),
        Example(key="test-2", image=noise(2), split="test"),
    ]
    duplicates = run(examples, tmp_path / "store").manifest["duplicates"]
    assert duplicates["count"] == 3
    assert sorted(duplicates["across_splits"]) == [["train-1", "test-1"], ["train-1", "val-1"], ["val-2", "test-2"]]


def test_the_list_of_duplicates_is_capped_and_their_count_is_not(tmp_path):
    examples = [Example(key=f"train/{i}", image=noise(i), split="train") for i in range(150)]
    examples += [Example(key=f"test/{i}", image=noise(i), split="test") for i in range(150)]
    duplicates = run(examples, tmp_path / "store").manifest["duplicates"]
    assert duplicates["count"] == 150
    assert duplicates["across_splits"] == [[f"train/{i}", f"test/{i}"] for i in range(100)]


def test_duplicates_within_a_split_are_no_leakage(tmp_path):
    examples = [Example(key=str(i), image=noise(0)) for i in range(5)]
    assert run(examples, tmp_path / "store").manifest["duplicates"] == {"across_splits": [], "count": 0}


# splits


def test_splits_of_the_source_are_kept_and_missing_ones_carved_from_train(tmp_path):
    examples = [Example(key=f"{s}{i}", image=noise(i), split=s) for s in ("train", "test") for i in range(200)]
    store = run(examples, tmp_path / "store", validation=0.25, test=0.5)
    assert set(store.split("test").keys) == {f"test{i}" for i in range(200)}
    assert 25 <= len(store.split("validation")) <= 75
    assert len(store.split("train")) + len(store.split("validation")) == 200


def test_a_source_with_all_splits_is_left_as_it_is(tmp_path):
    examples = [Example(key=s, image=noise(0), split=s) for s in ("train", "validation", "test")]
    store = run(examples, tmp_path / "store", validation=0.5, test=0.4)
    assert split_of(store) == {s: s for s in ("train", "validation", "test")}


def test_a_share_gives_about_that_share_of_all_images(tmp_path):
    store = run(named(2000), tmp_path / "store", validation=0.3, test=0.4, size=1)
    assert len(store.split("test")) == pytest.approx(800, abs=90)
    assert len(store.split("validation")) == pytest.approx(600, abs=90)


def test_with_shares_adding_images_moves_no_other_one(tmp_path):
    few = split_of(run(named(200), tmp_path / "few", validation=0.2, test=0.2))
    many = split_of(run(named(400)[::-1], tmp_path / "many", validation=0.2, test=0.2))
    assert {key: many[key] for key in few} == few
    assert set(few.values()) == {"train", "validation", "test"}


def test_a_number_gives_exactly_that_many_whatever_their_order(tmp_path):
    store = run(named(100), tmp_path / "a", validation=17, test=5)
    assert [len(store.split(s)) for s in ("train", "validation", "test")] == [78, 17, 5]
    assert split_of(run(named(100)[::-1], tmp_path / "b", validation=17, test=5)) == split_of(store)


def test_a_number_moves_only_as_many_images_as_enter(tmp_path):
    before = set(run(named(100), tmp_path / "a", validation=20).split("validation").keys)
    after = set(run(named(105), tmp_path / "b", validation=20).split("validation").keys)
    assert len(before & after) >= 15


@pytest.mark.parametrize(("validation", "test"), [(0.3, 0.3), (30, 30), (0.3, 30)])
def test_groups_are_never_split(tmp_path, validation, test):
    examples = [Example(key=str(i), image=noise(i), group=f"patient {i % 25}") for i in range(200)]
    splits = split_of(run(examples, tmp_path / "store", validation=validation, test=test))
    per_group = [{splits[str(i)] for i in range(g, 200, 25)} for g in range(25)]
    assert all(len(found) == 1 for found in per_group)
    assert set.union(*per_group) == {"train", "validation", "test"}


def test_a_number_takes_whole_groups_until_it_is_reached(tmp_path):
    examples = [Example(key=str(i), image=noise(i), group=str(i % 20)) for i in range(100)]
    assert len(run(examples, tmp_path / "store", validation=12).split("validation")) == 15


def test_a_split_numbers_the_groups_that_the_source_names_and_leaves_the_others_alone(tmp_path):
    names = ["ann", None, "bob", "ann", None, "bob"]
    examples = [Example(key=str(i), image=noise(i), group=name, split="train") for i, name in enumerate(names)]
    split = run(examples, tmp_path / "store").split("train")
    assert split.groups.dtype == np.int64
    same = np.triu(split.groups[:, None] == split.groups[None], 1)
    assert np.argwhere(same).tolist() == [[0, 3], [2, 5]]
    assert split.select(torch.tensor([3, 1, 0])).groups.tolist() == split.groups[[3, 1, 0]].tolist()


@pytest.mark.parametrize("max_shorter_side", [None, 8])
def test_only_a_store_with_groups_has_a_column_for_them(tmp_path, max_shorter_side):
    plain = run(named(3), tmp_path / "plain", max_shorter_side=max_shorter_side)
    assert plain.split("train").groups is None
    assert plain.split("test").groups is None
    names = [shard["file"] for shard in plain.manifest["splits"]["train"]["shards"]]
    assert "group" not in pa.ipc.open_file(str(plain.path / names[0])).schema.names
    grouped = run(named(3, group="g"), tmp_path / "grouped", max_shorter_side=max_shorter_side).split("train")
    assert grouped.groups.tolist() == [0, 0, 0]
    assert torch.equal(grouped.images(torch.arange(3)), plain.split("train").images(torch.arange(3)))


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (1.0, 0), (-1, 0), (0, -0.1)])
def test_an_impossible_split_rule_is_refused(validation, test):
    with pytest.raises(ConfigError, match=r"leave nothing for train|must be a share in \[0, 1\)"):
        SplitRule(validation, test)


# refusals


def test_a_key_that_comes_twice_names_both_examples(tmp_path):
    examples = [*named(3), Example(key="0001", image=tmp_path / "other.png")]
    with pytest.raises(DataError, match=r"key '0001' to two examples: number 1 and number 3 \(.*other\.png\); rename"):
        run(examples, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        ({"key": ""}, "has the key ''; a key is a text that is not empty"),
        ({"key": 3}, "has the key 3"),
        ({"key": "a", "label": 3}, r"\('a'\) has label 3 and group None; both are text or None"),
        ({"key": "a", "split": "val"}, r"\('a'\) has the split 'val'; choose one of train, validation, test"),
        ({"key": "caf\udce9"}, "has a name that is not valid text"),
    ],
)
def test_an_invalid_example_names_its_place_and_the_rule(tmp_path, example, problem):
    with pytest.raises(DataError, match="example 1 of the source .*" + problem):
        run([*named(1), Example(image=noise(0), **example)], tmp_path / "store")


def test_a_source_without_examples_is_refused(tmp_path):
    with pytest.raises(DataError, match="the source 'list' gives no image"):
        run([], tmp_path / "store")


def test_a_source_whose_images_are_all_unreadable_is_refused_with_the_first_reasons(tmp_path):
    examples = [Example(key=f"{i}.png", image=b"") for i in range(5)]
    with pytest.raises(
        DataError, match=r"none of the 5 files can be used as an image: 0\.png \(the file is empty\); 1"
    ):
        run(examples, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_splits_that_leave_nothing_for_train_are_refused(tmp_path):
    with pytest.raises(DataError, match="no image is left for train: validation 10 and test 0 take all 4"):
        run(named(4), tmp_path / "store", validation=10)


class ChangingSource(ListSource):
    """Loses an example between the first and the second pass."""

    def __iter__(self) -> Iterator[Example]:
        examples = list(self.examples)
        del self.examples[2:3]
        return iter(examples)


@pytest.mark.parametrize("count", [3, 5])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, count):
    with pytest.raises(DataError, match="the source changed while it was read"):
        ingest(ChangingSource(named(count)), tmp_path / "out", size=8, splits=SplitRule(0, 0), source_spec={})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_store_is_not_replaced(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=r"is not a store \(it holds 'holiday\.jpg'\) and would be replaced"):
        run(named(3), tmp_path)
    assert (tmp_path / "holiday.jpg").exists()
    with pytest.raises(DataError, match="is a file; the store is a folder"):
        run(named(3), tmp_path / "holiday.jpg")


def test_a_failed_ingest_leaves_the_old_store_and_nothing_else(tmp_path):
    before = run(named(5), tmp_path / "store").digest
    with pytest.raises(DataError, match="no image is left for train"):
        run(named(5), tmp_path / "store", validation=99)
    assert Store.open(tmp_path / "store").digest == before
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_new_ingest_replaces_the_old_store_and_the_rubble_of_a_killed_one(tmp_path):
    run(named(5), tmp_path / "store", validation=2)
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "test-00007.arrow").touch()
    store = run(named(7), tmp_path / "store")
    assert len(store.split("train")) == 7
    assert not list(store.path.glob("*-00007.arrow")) + list(store.path.glob("validation-*"))
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
