"""Encoded stores: what is kept byte for byte, what is compressed anew, and reading it back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from toy_photos import SIZE, Files, encoded, make_store, photo, picture

from cl_core.data import jpeg, shards
from cl_core.data.decode import UnreadableImageError, decode
from cl_core.data.encode import encode
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import EncodedSplit, Store
from cl_core.errors import DataError

CAP = 2 * SIZE
SIZES = [(60, 80), (80, 60), (64, 64), (40, 200), (33, 47)]


def stored(store: Store, row: int = 0, split: str = "train") -> bytes:
    return bytes(store.split(split)._files([row]).data[0])


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [photo(i, *SIZES[i % len(SIZES)]) for i in range(20)]


@pytest.fixture(scope="module")
def store(files, tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("encoded") / "store", files)


def test_upright_jpegs_within_the_limit_are_kept_byte_for_byte(store, files):
    assert [stored(store, row) for row in range(len(files))] == files


def test_any_arrow_reader_opens_a_shard_and_finds_its_columns(store, files):
    with pa.OSFile(str(store.path / "train-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    columns = {"key": "string", "label": "int32", "image": "binary", "height": "int32", "width": "int32"}
    assert {field.name: str(field.type) for field in table.schema} == columns
    assert table.schema.metadata == {b"format": b"contrast-store/1", b"image_encoding": b"jpeg"}
    assert table.column("image").to_pylist() == files
    sizes = list(zip(table.column("height").to_pylist(), table.column("width").to_pylist(), strict=True))
    assert sizes == [SIZES[i % len(SIZES)] for i in range(len(files))]
    assert store.manifest["layout"] == "encoded"


def test_kept_files_give_the_very_squares_of_a_decoded_store(store, files, tmp_path):
    plain = make_store(tmp_path / "plain", files, max_shorter_side=None)
    rows = torch.tensor([7, 0, 19, 7])
    squares = store.split("train").images(rows)
    assert torch.equal(squares, plain.split("train").images(rows))
    assert squares.shape == (4, 3, SIZE, SIZE)
    assert squares.dtype == torch.uint8
    assert squares.is_contiguous(memory_format=torch.channels_last)


def test_keys_labels_selection_and_digest_work_as_in_any_store(store, files, tmp_path):
    split = store.split("train")
    some = split.select(np.array([5, 3])).by_hash(5)
    assert isinstance(some, EncodedSplit)
    assert some.keys == ["k5", "k3"]
    assert torch.equal(some.images([1]), split.images([3]))
    assert split.labels.tolist() == [i % 3 for i in range(len(files))]
    store.verify()
    assert make_store(tmp_path / "again", files, workers=3).digest == store.digest
    assert len(store.split("test").images([])) == 0


def test_rows_are_found_in_several_shards_and_record_batches(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 9)
    monkeypatch.setattr(shards, "_BATCH_BYTES", 3 * len(files[0]))
    cut = make_store(tmp_path / "cut", files)
    assert [shard["rows"] for shard in cut.manifest["splits"]["train"]["shards"]] == [9, 9, 2]
    assert len(cut.split("train")._blocks) > 3
    assert [stored(cut, row) for row in range(len(files))] == files


def test_a_shorter_side_beyond_the_limit_is_scaled_down_to_it(tmp_path):
    image = picture(0, 200, 301)
    jpeg_file = stored(make_store(tmp_path / "s", [encoded(image)]))
    small = opened(jpeg_file)
    assert small.size == (96, CAP)
    assert small.info.get("dpi") is None
    expected = np.asarray(image.resize((96, CAP), Image.Resampling.BICUBIC))
    assert difference(np.asarray(small), expected) < 3


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_jpegs_are_compressed_anew_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(picture(0, 40, 60), exif=exif)
    data = encode(source, size=SIZE, max_shorter_side=CAP)
    turned = opened(data.jpeg)
    assert turned.size == ((40, 60) if orientation > 4 else (60, 40))
    assert (data.width, data.height) == turned.size
    assert not turned.getexif()
    assert np.array_equal(data.square, decode(source, size=SIZE))
    assert difference(decode(data.jpeg, size=SIZE), data.square) < 4


def test_other_sources_are_compressed_anew_as_decode_converts_them():
    image, deep = picture(1, 50, 70), (np.arange(50 * 70).reshape(50, 70) * 18).astype(np.uint16)
    sources = {
        "png": encoded(image, "PNG"),
        "grey": encoded(image.convert("L"), "PNG"),
        "cmyk": encoded(image.convert("CMYK"), quality=95),
        "16 bits": encoded(Image.fromarray(deep), "PNG"),
        "array": np.asarray(image),
        "16-bit array": deep,
    }
    for name, source in sources.items():
        data = encode(source, size=SIZE, max_shorter_side=CAP)
        found = opened(data.jpeg)
        assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (70, 50)), name
        assert difference(decode(data.jpeg, size=SIZE), decode(source, size=SIZE)) < 4, name


def test_grey_jpegs_are_kept_and_paths_are_read(tmp_path):
    grey, path = encoded(picture(2, 50, 50).convert("L")), tmp_path / "a.jpg"
    path.write_bytes(grey)
    assert encode(path, size=SIZE, max_shorter_side=CAP).jpeg == grey
    assert make_store(tmp_path / "s", [path]).split("train").images([0]).shape == (1, 3, SIZE, SIZE)


def test_a_strip_longer_than_a_jpeg_may_be_loses_its_ends():
    strip = np.zeros((2, 70_000, 3), dtype=np.uint8)
    strip[:, 34_990:35_010] = 255
    data = encode(strip, size=8, max_shorter_side=16)
    assert opened(data.jpeg).size == (65_500, 2) == (data.width, data.height)
    assert decode(data.jpeg, size=2).mean() > 200


def test_files_that_cannot_be_used_are_quarantined_as_in_a_decoded_store(tmp_path):
    whole = photo(0)
    bad = [
        whole[: len(whole) // 2],
        b"",
        b"no image",
        tmp_path / "missing.jpg",
        encoded(picture(1, 90, 90), "PNG")[:500],
    ]
    images = [whole, *bad, photo(1)]
    lists = []
    for name, side in (("encoded", CAP), ("decoded", None)):
        made = make_store(tmp_path / name, images, max_shorter_side=side)
        assert made.manifest["quarantined"] == len(bad)
        assert made.split("train").keys == ["k0", f"k{len(bad) + 1}"]
        lists.append((tmp_path / name / "quarantine.csv").read_text())
    assert lists[0] == lists[1]


def test_too_many_pixels_are_refused_unread():
    with pytest.raises(UnreadableImageError, match="more than the limit of 1000"):
        encode(photo(0), size=SIZE, max_shorter_side=CAP, max_pixels=1000)


def test_duplicates_across_splits_are_found_whatever_the_layout(tmp_path):
    image = picture(3, 50, 50)
    same = [encoded(image, "PNG"), encoded(image, "BMP"), photo(4), photo(5)]
    found = [
        make_store(tmp_path / str(side), same, max_shorter_side=side, held_out=4).manifest["duplicates"]
        for side in (CAP, None)
    ]
    assert found[0] == found[1]
    assert found[0]["across_splits"] == [["k1", "k0"]]


def test_a_damaged_image_is_named_with_the_remedy(files, tmp_path):
    broken = make_store(tmp_path / "store", files[:3])
    path = broken.path / "train-00000.arrow"
    data = bytearray(path.read_bytes())
    start = data.index(files[1])
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    split = Store.open(broken.path).split("train")
    assert split.images([0, 2]).shape[0] == 2
    with pytest.raises(DataError, match=r"the image 'k1' of train cannot be decoded.*restore it with"):
        split.images([2, 1])
    with pytest.raises(DataError, match=r"damaged in train-00000\.arrow"):
        Store.open(broken.path).verify()


def test_an_unknown_layout_is_refused(files, tmp_path):
    made = make_store(tmp_path / "store", files[:2])
    manifest = made.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"encoded"', '"shredded"'))
    with pytest.raises(DataError, match="has the layout 'shredded', not decoded or encoded"):
        Store.open(made.path)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_threads_do_not_change_the_pixels_and_pass_on_what_is_raised(store, monkeypatch, threads):
    rows = np.arange(20)
    expected = store.split("train").images(rows)
    monkeypatch.setenv(jpeg.THREADS, threads)
    assert torch.equal(store.split("train").images(rows), expected)

    def fail(number: int) -> None:
        raise DataError(f"number {number}")

    with pytest.raises(DataError, match="number"):
        jpeg.in_threads(fail, range(20))


def test_decoded_stores_are_written_as_before(tmp_path):
    out: Path = tmp_path / "plain"
    manifest = ingest(Files([photo(0)]), out, size=8, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    table = pa.ipc.open_file(str(out / "train-00000.arrow")).read_all()
    assert manifest["layout"] == "decoded"
    assert table.column("image").to_pylist() == [decode(photo(0), size=8).tobytes()]
