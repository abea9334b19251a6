"""Near duplicates: copies are found and unlike images are not, the search is exact, and what ingest does about them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cl_core.data import duplicates
from cl_core.data.duplicates import Hash, candidates, difference, near_duplicates, perceptual_hashes, reduced
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.screening import read_pairs
from cl_core.data.store import Store
from cl_core.errors import DataError
from cl_core.types import Example


def photo(seed: int, size: int = 64) -> Image.Image:
    """Smooth colours with a few sharp things on them."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC))
    for _ in range(6):
        top, left = generator.integers(0, size - size // 4, 2)
        height, width = generator.integers(size // 10, size // 4, 2)
        pixels[top : top + height, left : left + width] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels)


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.BILINEAR).resize(image.size),
    "recompressed": recompressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped": lambda image: image.crop((1, 1, image.width - 1, image.height - 1)).resize(image.size),
}


def perceptual_hash(image: np.ndarray) -> Hash:
    return perceptual_hashes([image])[0]


def found(images: list[Image.Image]) -> set[tuple[int, int]]:
    """Pairs among images that are all of train."""
    arrays = [np.array(image) for image in images]
    bits, flat = zip(*perceptual_hashes(arrays), strict=True)
    splits = np.zeros(len(arrays), dtype=np.uint8)
    pairs = near_duplicates(np.array(bits, dtype=np.uint64), np.array(flat), splits, arrays.__getitem__)
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize("change", COPIES)
def test_most_changed_copies_are_found_and_nothing_else_is(change):
    originals = [photo(seed) for seed in range(60)]
    copies = [COPIES[change](image) for image in originals]
    pairs = found(originals + copies)
    right = {(i, i + 60) for i in range(60)}
    assert pairs <= right
    assert len(pairs) >= (45 if change == "cropped" else 57)


def test_the_hash_says_which_low_frequencies_lie_above_their_median():
    pixels = np.array(photo(3, size=32))
    grey = np.array(Image.fromarray(pixels).convert("L"), dtype=float)
    x = np.arange(32)
    low = [
        sum(
            grey[i, j] * np.cos(np.pi * u * (2 * i + 1) / 64) * np.cos(np.pi * v * (2 * j + 1) / 64)
            for i in x
            for j in x
        )
        * (0.5**0.5 if u == 0 else 1)
        * (0.5**0.5 if v == 0 else 1)
        for u in range(8)
        for v in range(8)
    ][1:]
    expected = sum(1 << (63 - place) for place, value in enumerate(low) if value > np.median(low))
    seen = perceptual_hash(pixels)
    assert not seen.flat
    assert (
        seen.bits ^ expected
    ).bit_count() <= 2  # whole numbers round, and the two next to the median may change places


@pytest.mark.parametrize("side", [8, 32, 48, 100])
def test_reducing_averages_over_equal_parts(side):
    image = np.array(photo(1, size=side))
    by_steps = image.repeat(32, axis=0).repeat(32, axis=1).reshape(32, side, 32, side, 3).mean(axis=(1, 3))
    assert np.abs(reduced(image) - by_steps).max() <= 0.51


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_an_image_of_one_colour_is_flat_even_with_some_noise(colour):
    noise = np.random.default_rng(0).integers(-3, 4, (64, 64, 3))
    assert perceptual_hash(np.full((32, 32, 3), colour, dtype=np.uint8)).flat
    assert perceptual_hash((noise + colour).clip(0, 255).astype(np.uint8)).flat


def test_the_difference_of_equal_and_brighter_images_is_nothing_and_of_unlike_ones_about_one():
    image = np.array(photo(0).resize((32, 32))).astype(np.float32)
    other = np.array(photo(1).resize((32, 32))).astype(np.float32)
    apart = difference(np.stack([image, image, image]), np.stack([image, 0.5 * image + 20, other]))
    assert apart[:2] == pytest.approx([0, 0], abs=1e-4)
    assert apart[2] > 0.8


def test_the_search_finds_every_pair_of_at_most_four_bits_once():
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 500, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in generator.choice(64, k % 7, replace=False)) for k in range(500)]
    hashes = np.concatenate([hashes, hashes ^ np.array(flips, dtype=np.uint64), hashes[:20]])
    every = {
        (i, j) for i in range(len(hashes)) for j in np.flatnonzero(np.bitwise_count(hashes[i] ^ hashes) <= 4) if i < j
    }
    pairs = [(a, b) for one, other in candidates(hashes) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == every


def test_a_crowd_of_look_alikes_costs_no_square_of_its_size_and_is_said_to_be_incomplete(monkeypatch):
    monkeypatch.setattr(duplicates, "_REACH", 30)
    image = np.array(photo(0))
    asked = []
    hashes = np.full(2000, perceptual_hash(image).bits, dtype=np.uint64)
    pairs = near_duplicates(
        hashes, np.zeros(2000, dtype=bool), np.arange(2000) % 3, lambda row: asked.append(row) or image
    )
    assert not pairs.complete
    assert set(pairs.first.tolist()) | set(pairs.second.tolist()) == set(range(2000))
    assert len(pairs.first) < 2000 * 30


# what ingest does about them


class Listed:
    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def example(key: str, image: Image.Image, split: str) -> Example:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Example(key=key, image=buffer.getvalue(), label=key[0], split=split)


def leaking() -> list[Example]:
    """20 images of train: 3 come back in test, 1 in validation, 1 in train; one of validation in test."""
    train = [example(f"a{i}", photo(i), "train") for i in range(20)]
    test = [example(f"t{i}", recompressed(photo(i)), "test") for i in range(3)]
    validation = [example("v3", photo(3), "validation"), example("v100", photo(100), "validation")]
    again = [example("t100", COPIES["brighter"](photo(100)), "test")]
    return [*train, *test, *validation, *again, example("again", recompressed(photo(9)), "train")]


def run(out: Path, examples: list[Example], **options: Any) -> tuple[Store, list[str]]:
    lines: list[str] = []
    options = {"size": 32, "splits": SplitRule(0, 0), "source_spec": {}, "report": lines.append} | options
    ingest(Listed(examples), out, **options)
    return Store.open(out), lines


@pytest.mark.parametrize("max_shorter_side", [None, 64])
def test_leaks_are_counted_by_the_splits_they_join_and_listed_the_most_alike_first(tmp_path, max_shorter_side):
    store, lines = run(tmp_path / "store", leaking(), max_shorter_side=max_shorter_side)
    summary = store.manifest["near_duplicates"]
    assert summary["pairs"] == {"train/validation": 1, "train/test": 3, "validation/test": 1, "train/train": 1}
    pairs = read_pairs(store.path)
    assert {(pair.key, pair.other) for pair in pairs} == {
        *((f"a{i}", f"t{i}") for i in range(3)),
        ("a3", "v3"),
        ("v100", "t100"),
        ("a9", "again"),
    }
    tested = [pair.difference for pair in pairs if pair.kind == "train/test"]
    assert tested == sorted(tested)
    assert any("5 pairs of near duplicates across splits (train/validation 1, train/test 3" in line for line in lines)
    assert len(store.split("train")) == 21


@pytest.mark.parametrize("max_shorter_side", [None, 64])
def test_drop_leaves_out_the_images_of_the_earlier_split_and_says_why(tmp_path, max_shorter_side):
    options = {"max_shorter_side": max_shorter_side, "duplicates": "drop"}
    store, lines = run(tmp_path / "store", leaking(), **options)
    assert store.split("train").keys == [*(f"a{i}" for i in range(4, 20)), "again"]
    assert store.split("validation").keys == ["v3"]
    assert len(store.split("test")) == 4
    with (store.path / "quarantine.csv").open(newline="") as file:
        reasons = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"a0", "a1", "a2", "a3", "v100"}
    assert reasons["a3"] == "near duplicate of 'v3' in validation (data.duplicates: drop)"
    assert store.manifest["splits"]["train"]["class_counts"]["a"] == 17
    assert store.manifest["near_duplicates"]["dropped"] == 5
    assert sum(store.manifest["near_duplicates"]["pairs"].values()) == 1
    assert store.manifest["duplicates"]["count"] == 0
    assert "dropped 5 near duplicates of images in a later split (all in quarantine.csv)" in lines
    store.verify()
    clean = [each for each in leaking() if each.key not in reasons]
    same, _ = run(tmp_path / "clean", clean, **options)
    assert [s["sha256"] for s in store.manifest["splits"]["train"]["shards"]] == [
        s["sha256"] for s in same.manifest["splits"]["train"]["shards"]
    ]


def test_fail_names_the_pairs_and_the_ways_out_and_leaves_no_store(tmp_path):
    with pytest.raises(DataError, match=r"5 pairs .* a3 = v3 \(train/validation\); .*the same group; or set data.dupl"):
        run(tmp_path / "store", leaking(), duplicates="fail")
    assert list(tmp_path.iterdir()) == []


def test_fail_lets_pass_what_has_no_leak(tmp_path):
    store, _ = run(tmp_path / "store", [example(f"a{i}", photo(i), "train") for i in range(5)], duplicates="fail")
    assert len(store.split("train")) == 5


def test_drop_refuses_to_leave_nothing_to_train_on(tmp_path):
    examples = [example("a", photo(0), "train"), example("b", photo(0), "test")]
    with pytest.raises(DataError, match="no image is left for train: all are near duplicates"):
        run(tmp_path / "store", examples, duplicates="drop")


def test_images_of_one_colour_are_named_and_compared_with_nothing(tmp_path):
    black = Image.new("RGB", (32, 32))
    examples = [example(f"{i}", black, split) for i, split in enumerate(["train", "train", "test"])]
    store, lines = run(tmp_path / "store", [*examples, example("x", photo(0), "train")], duplicates="drop")
    assert store.manifest["near_duplicates"]["flat"] == {"count": 3, "first": ["0", "1", "2"]}
    assert store.manifest["duplicates"]["count"] == 0
    assert len(store.split("train")) == 3
    assert lines[-1] == "3 images of one colour were not looked at for near duplicates: 0; 1; 2"


def test_a_damaged_list_of_pairs_is_a_data_error(tmp_path):
    store, _ = run(tmp_path / "store", leaking())
    (store.path / "near_duplicates.csv").write_text("kind,key\ntrain/test,a\n")
    with pytest.raises(DataError, match=r"near_duplicates.csv cannot be read .* ingest the images again"):
        read_pairs(store.path)
