"""How much memory there is, and reading at random from stores that do not fit into it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_core.data import memory, store
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.loader import Loader
from cl_core.data.store import Store
from cl_core.types import Example

CPU = torch.device("cpu")


class Noise:
    def __iter__(self):
        for i in range(50):
            image = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            yield Example(key=str(i), image=image)


@pytest.fixture
def folder(tmp_path):
    ingest(Noise(), tmp_path / "store", size=32, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return tmp_path / "store"


def flags(folder: Path) -> set[str]:
    """The kernel's flags of every part of the store that is mapped."""
    found: set[str] = set()
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            found |= set(line.split()[1:]) if inside else set()
        elif not line.split(maxsplit=1)[0].endswith(":"):
            inside = str(folder) in line
    return found


def test_memory_is_the_machines_or_what_a_control_group_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_limit_files", lambda: iter([tmp_path / "a", tmp_path / "b", tmp_path / "missing"]))
    whole = memory.usable_memory()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "a").write_text("max\n")
    (tmp_path / "b").write_text("1048576\n")
    assert memory.usable_memory() == 2**20


def test_an_encoded_store_that_does_not_fit_gives_the_same_images(tmp_path, monkeypatch):
    options = {"size": 16, "splits": SplitRule(0, 0), "source_spec": {}, "max_shorter_side": 32}
    ingest(Noise(), tmp_path / "store", **options, report=lambda line: None)
    rows = np.random.default_rng(0).permutation(50)
    expected = Store.open(tmp_path / "store").split("train").images(rows)
    monkeypatch.setattr(store, "usable_memory", lambda: 1)
    fetched = []
    monkeypatch.setattr(store, "fetch", lambda mapped: fetched.append(bytes(mapped[:2])))
    split = Store.open(tmp_path / "store").split("train")
    split.expect_random_reads()
    assert torch.equal(split.images(rows), expected)
    assert fetched == [b"\xff\xd8"] * 50  # each begins where a JPEG file does


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize(("usable", "at_random"), [(2**18, True), (2**40, False)])
def test_what_does_not_fit_is_read_row_by_row_with_the_same_batches(folder, monkeypatch, usable, at_random):
    expected = Store.open(folder).split("train").images(np.arange(50))
    monkeypatch.setattr(store, "usable_memory", lambda: usable)
    split = Store.open(folder).split("train")
    batches = list(Loader(split, batch_size=10, seed=0, start=0, stop=5, device=CPU))
    assert ("rr" in flags(folder)) is at_random
    for batch in batches:
        assert torch.equal(batch.images, expected[batch.rows] / 255)
