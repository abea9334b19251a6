"""The built-in sources: what they yield, in which order, under which key; and what they refuse."""

from __future__ import annotations

import importlib.metadata
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cl_core.data.ingest import SplitRule, ingest
from cl_core.errors import ConfigError, DataError
from plugins.sources import Digits, ImageFolder, TorchvisionDataset, register_sources


def touch(root: Path, *names: str) -> None:
    """Files with some content; sources open none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(root: Path) -> list[tuple[str, str | None, str | None]]:
    return [(e.key, e.label, e.split) for e in ImageFolder(str(root))]


# registration


def test_the_sources_are_named_without_importing_torch_or_torchvision():
    code = "import sys, plugins.sources as s; s.register_sources(); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "sklearn", "numpy"} & set(modules)
    assert set(register_sources()) == {"digits", "image_folder", "torchvision"}


def test_every_registered_factory_can_be_imported_from_where_it_is_said_to_be():
    for target in register_sources().values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_an_unknown_name_in_the_package_is_an_attribute_error():
    import plugins.sources

    with pytest.raises(AttributeError, match=r"'plugins\.sources' has no attribute 'Digit'"):
        _ = plugins.sources.Digit


# digits


def test_digits_are_scikit_learns_1797_images_scaled_to_255():
    examples = list(Digits())
    digits = load_digits()
    assert [e.label for e in examples] == [str(t) for t in digits.target]
    assert len({e.key for e in examples}) == 1797
    stack = np.stack([e.image for e in examples])
    assert stack.dtype == np.uint8
    assert stack.shape == (1797, 8, 8)
    assert np.abs(stack / 255 - digits.images / 16).max() <= 0.5 / 255 + 1e-12


def test_the_fingerprint_of_digits_names_version_and_count():
    assert Digits().fingerprint() == {
        "dataset": "digits",
        "scikit-learn": importlib.metadata.version("scikit-learn"),
        "images": len(list(Digits())),
    }


# image folders: layouts


def test_a_flat_folder_is_unlabelled_and_sorted_by_name(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "c.tiff")
    assert listed(tmp_path) == [("a.JPG", None, None), ("b.png", None, None), ("c.tiff", None, None)]


def test_class_folders_label_everything_below_them(tmp_path):
    touch(tmp_path, "dog/1.jpg", "cat/2.jpg", "cat/indoor/old/1.jpg")
    assert listed(tmp_path) == [
        ("cat/2.jpg", "cat", None),
        ("cat/indoor/old/1.jpg", "cat", None),
        ("dog/1.jpg", "dog", None),
    ]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_split_folders_above_class_folders_give_split_and_label(tmp_path, validation):
    touch(tmp_path, "train/cat/1.jpg", f"{validation}/cat/2.jpg", "test/dog/x/3.jpg")
    assert sorted(listed(tmp_path)) == sorted(
        [
            ("test/dog/x/3.jpg", "dog", "test"),
            ("train/cat/1.jpg", "cat", "train"),
            (f"{validation}/cat/2.jpg", "cat", "validation"),
        ]
    )


def test_split_folders_may_hold_images_directly_and_differ_in_that(tmp_path):
    touch(tmp_path, "train/cat/1.jpg", "test/2.jpg")
    assert listed(tmp_path) == [("test/2.jpg", None, "test"), ("train/cat/1.jpg", "cat", "train")]


def test_keys_are_posix_paths_and_images_are_paths_below_the_root(tmp_path):
    touch(tmp_path, "a/b/c.png")
    (example,) = ImageFolder(str(tmp_path))
    assert example.key == "a/b/c.png"
    assert example.image == tmp_path / "a/b/c.png"


def test_hidden_files_and_companions_of_images_are_left_out(tmp_path):
    touch(
        tmp_path, "a.png", ".DS_Store", ".hidden/b.png", "labels.csv", "notes.TXT", "Thumbs.db", "README", "a.png.dvc"
    )
    assert [key for key, *_ in listed(tmp_path)] == ["a.png"]


def test_a_file_of_another_kind_is_yielded_so_that_it_is_quarantined(tmp_path):
    touch(tmp_path, "cat/a.png", "cat/archive.zip", "stray", "dog/b.png")
    assert listed(tmp_path) == [
        ("cat/a.png", "cat", None),
        ("cat/archive.zip", "cat", None),
        ("dog/b.png", "dog", None),
        ("stray", None, None),
    ]


def test_a_link_to_nowhere_is_yielded_and_fingerprinted(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert [key for key, *_ in listed(tmp_path)] == ["a.png", "gone.png"]
    assert ImageFolder(str(tmp_path)).fingerprint()["files"] == 2


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/1.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "images") == [("cat/1.png", "cat", None)]


def test_links_that_lead_back_are_yielded_in_place_of_what_they_would_repeat(tmp_path):
    touch(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "cat" / "self.png").symlink_to("self.png")
    assert listed(tmp_path) == [
        ("cat/1.png", "cat", None),
        ("cat/again", "cat", None),
        ("cat/self.png", "cat", None),
        ("here", None, None),
    ]


def test_a_link_that_leads_back_is_no_class_beside_flat_images(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "here").symlink_to(tmp_path)
    assert [key for key, *_ in listed(tmp_path)] == ["1.png", "here"]
    assert ImageFolder(str(tmp_path)).fingerprint()["files"] == 2


def test_a_file_name_that_is_not_utf8_gets_a_key_that_can_be_written(tmp_path):
    Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.png")).write_bytes(b"x")
    assert listed(tmp_path) == [("caf\\xe9.png", None, None)]
    assert ImageFolder(str(tmp_path)).fingerprint()["files"] == 1


@pytest.mark.parametrize("group", ["p[0-9]+", "(p[0-9]+)_"])
def test_a_pattern_names_the_groups_and_what_it_does_not_match_has_none(tmp_path, group):
    touch(tmp_path, "cat/p1_a.png", "dog/p1_b.png", "dog/p22_a.png", "dog/other.png")
    groups = {example.key: example.group for example in ImageFolder(str(tmp_path), group=group)}
    assert groups == {"cat/p1_a.png": "p1", "dog/p1_b.png": "p1", "dog/p22_a.png": "p22", "dog/other.png": None}


def test_a_pattern_that_is_no_regular_expression_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"group '\(p' is no regular expression \(.*\); correct it"):
        ImageFolder(str(tmp_path), group="(p")


def test_an_empty_class_folder_is_no_class_and_no_ambiguity(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "empty").mkdir()
    assert listed(tmp_path) == [("a.png", None, None)]


# image folders: refusals


def test_a_missing_folder_is_named_with_the_option_to_set(tmp_path):
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist; set `path`"):
        ImageFolder(str(tmp_path / "nowhere")).fingerprint()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png is a file, not a folder"):
        listed(tmp_path / "a.png")


@pytest.mark.parametrize("names", [(), ("labels.csv",), (".git/a.png",)])
def test_a_folder_without_images_is_refused_by_fingerprint_and_iteration(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=r"holds no images; put image files"):
        ImageFolder(str(tmp_path)).fingerprint()
    with pytest.raises(DataError, match=r"holds no images; put image files"):
        listed(tmp_path)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_images_beside_class_folders_are_ambiguous(tmp_path, prefix):
    touch(tmp_path, f"{prefix}a.png", f"{prefix}cat/b.png")
    with pytest.raises(DataError, match=r"'a\.png', 1 in all\) beside the folder\(s\) cat.*move the images into class"):
        listed(tmp_path)


@pytest.mark.parametrize("stray", ["bus/b.png", "b.png"])
def test_split_folders_beside_anything_else_are_ambiguous(tmp_path, stray):
    touch(tmp_path, "train/a.png", stray)
    with pytest.raises(
        DataError, match=r"split folder\(s\) train and beside them the .*put all the class folders into"
    ):
        listed(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path):
    touch(tmp_path, "train/a.png", "val/b.png", "valid/c.png")
    with pytest.raises(DataError, match=r"val, valid in .* would all be the validation split"):
        listed(tmp_path)


def test_split_folders_without_train_are_refused(tmp_path):
    touch(tmp_path, "val/b.png", "test/c.png")
    with pytest.raises(DataError, match="holds test, val but no train/ folder"):
        listed(tmp_path)


# image folders: fingerprint


def test_the_fingerprint_changes_when_a_file_is_added_renamed_removed_or_replaced(tmp_path):
    touch(tmp_path, "cat/a.png", "cat/b.png")
    source = ImageFolder(str(tmp_path))
    seen = [source.fingerprint()]
    assert source.fingerprint() == seen[0]
    touch(tmp_path, "dog/c.png")
    seen.append(source.fingerprint())
    (tmp_path / "dog/c.png").rename(tmp_path / "dog/d.png")
    seen.append(source.fingerprint())
    (tmp_path / "dog/d.png").write_bytes(b"longer")
    seen.append(source.fingerprint())
    os.utime(tmp_path / "dog/d.png", ns=(1, 1))
    seen.append(source.fingerprint())
    assert len({f["sha256"] for f in seen}) == len(seen)
    (tmp_path / "dog/d.png").unlink()
    assert source.fingerprint() == seen[0]


def test_the_fingerprint_ignores_companions_and_the_place_of_the_folder(tmp_path):
    touch(tmp_path, "one/a.png")
    os.utime(tmp_path / "one/a.png", ns=(1, 1))
    before = ImageFolder(str(tmp_path / "one")).fingerprint()
    touch(tmp_path, "one/notes.txt")
    (tmp_path / "one").rename(tmp_path / "two")
    assert ImageFolder(str(tmp_path / "two")).fingerprint() == before


# torchvision


def write_mnist(root: Path, train: int, test: int) -> None:
    """The four idx files of MNIST (LeCun's format), label i % 10, every pixel 10 * label."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.repeat(labels * 10, 28 * 28).astype(np.uint8)
        images = struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def test_a_dataset_with_a_train_flag_gives_both_splits_with_class_names(tmp_path):
    write_mnist(tmp_path, train=12, test=3)
    examples = list(TorchvisionDataset("MNIST", str(tmp_path)))
    assert [(e.key, e.split) for e in examples[:2]] == [("train/000000", "train"), ("train/000001", "train")]
    assert [e.split for e in examples].count("test") == 3
    assert examples[3].label == "3 - three"
    assert examples[3].image.shape == (28, 28)
    assert (examples[3].image == 30).all()


def test_options_that_choose_a_part_leave_the_splits_to_ingest(tmp_path):
    write_mnist(tmp_path, train=4, test=3)
    examples = list(TorchvisionDataset("MNIST", str(tmp_path), options={"train": False}))
    assert [(e.key, e.split) for e in examples] == [("000000", None), ("000001", None), ("000002", None)]


def test_a_dataset_without_splits_or_root_works_and_repeats_itself():
    source = TorchvisionDataset("FakeData", "unused", options={"size": 4, "image_size": (3, 6, 5), "num_classes": 12})
    first, again = list(source), list(source)
    assert [e.image.shape for e in first] == [(6, 5, 3)] * 4
    assert all(np.array_equal(a.image, b.image) and a.label == b.label for a, b in zip(first, again, strict=True))


def test_a_dataset_with_named_splits_hands_over_paths_of_its_files(tmp_path):
    folders = {"train": "train", "validation": "valid", "test": "test"}
    for folder in folders.values():
        touch(tmp_path / "rendered-sst2" / folder, "positive/1.png", "negative/2.png")
    examples = list(TorchvisionDataset("RenderedSST2", str(tmp_path)))
    assert [(e.key, e.label, e.split) for e in examples] == [
        (f"rendered-sst2/{folder}/{name}", label, split)
        for split, folder in folders.items()
        for label, name in (("negative", "negative/2.png"), ("positive", "positive/1.png"))
    ]
    assert all(e.image == tmp_path / e.key for e in examples)


def test_a_damaged_file_of_a_torchvision_dataset_is_quarantined_and_not_fatal(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        Image.effect_noise((8, 8), 50).save(tmp_path / "images" / name)
    (tmp_path / "images/cat/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    manifest = ingest(
        TorchvisionDataset("ImageFolder", str(tmp_path / "images")),
        tmp_path / "store",
        size=8,
        splits=SplitRule(0, 0),
        source_spec={},
        report=lambda line: None,
    )
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["quarantined"] == 1


def test_an_unknown_dataset_gives_the_nearest_name():
    with pytest.raises(ConfigError, match="no dataset called 'cifar10' - did you mean 'CIFAR10'"):
        TorchvisionDataset("cifar10", "data").fingerprint()


def test_an_unknown_option_gives_the_nearest_option():
    with pytest.raises(ConfigError, match="FakeData takes no option 'sizes' - did you mean 'size'"):
        TorchvisionDataset("FakeData", "data", options={"sizes": 3}).fingerprint()


def test_options_that_the_dataset_refuses_are_the_users_to_correct(tmp_path):
    with pytest.raises(ConfigError, match=r"STL10 refuses its arguments .*folds.*; correct `options`"):
        list(TorchvisionDataset("STL10", str(tmp_path), options={"folds": 99}))


def test_a_missing_root_says_to_download_or_to_put_the_files_there(tmp_path):
    with pytest.raises(DataError, match=r"missing does not exist; set `download: true`, or put its files under"):
        TorchvisionDataset("MNIST", str(tmp_path / "missing")).fingerprint()


def test_a_missing_dataset_says_to_download_or_to_put_the_files_there(tmp_path):
    with pytest.raises(DataError, match=r"MNIST: Dataset not found.*; set `download: true`, or put its files under"):
        list(TorchvisionDataset("MNIST", str(tmp_path)))


def test_a_dataset_that_cannot_be_downloaded_does_not_offer_it(tmp_path):
    with pytest.raises(DataError, match="torchvision cannot download it: put its files under"):
        list(TorchvisionDataset("ImageNet", str(tmp_path)))


def test_the_fingerprint_is_the_same_before_and_after_the_files_arrive(tmp_path):
    source = TorchvisionDataset("MNIST", str(tmp_path / "root"), download=True)
    before = source.fingerprint()
    write_mnist(tmp_path / "root", train=2, test=2)
    assert source.fingerprint() == before
    assert before["torchvision"] == importlib.metadata.version("torchvision")
    other = TorchvisionDataset("MNIST", str(tmp_path / "root"), options={"train": True})
    assert other.fingerprint() != before
