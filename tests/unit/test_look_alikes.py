"""The second look for leaks by features: copies are named, known pairs are not, and alike features say nothing."""

from __future__ import annotations

import pytest
import torch

from cl_core.evaluation import look_alikes as module
from cl_core.evaluation.features import Features
from cl_core.evaluation.look_alikes import look_alikes, told


def features(split: str, values: torch.Tensor) -> Features:
    return Features(
        probe={"first": values, "last": values},
        average={"first": torch.ones(len(values), 2), "last": values},
        labels=torch.zeros(len(values), dtype=torch.int64),
        keys=[f"{split}/{i}" for i in range(len(values))],
    )


@pytest.fixture
def splits() -> dict[str, Features]:
    """Features far from the origin, as after a rectifier; test/4 and validation/2 are nearly images of train."""
    values = torch.randn(230, 16, generator=torch.Generator().manual_seed(0)) + 20
    train, validation, test = values.split([150, 40, 40])
    test[4] = train[7] + 0.01
    validation[2] = train[9] + 0.02
    return {name: features(name, v) for name, v in (("train", train), ("validation", validation), ("test", test))}


def test_copies_are_named_with_their_cosine_though_all_features_point_one_way(splits):
    plain = torch.nn.functional.normalize(splits["train"].average["last"], dim=1)
    assert (plain @ plain.T > 0.98).all()
    found = look_alikes(splits, set())
    assert (found["stage"], found["min_cosine"]) == ("last", 0.98)
    assert found["pairs"]["train/test"] == {"count": 1, "first": [["train/7", "test/4", pytest.approx(1, abs=1e-3)]]}
    assert [pair[:2] for pair in found["pairs"]["train/validation"]["first"]] == [["train/9", "validation/2"]]
    assert found["pairs"]["validation/test"] == {"count": 0, "first": []}
    assert told(found).endswith("besides those found by pixels: train/validation 1, train/test 1")


def test_pairs_that_pixels_have_found_are_left_out(splits):
    found = look_alikes(splits, {("train/7", "test/4"), ("train/9", "validation/2")})
    assert sum(kind["count"] for kind in found["pairs"].values()) == 0
    assert told(found).endswith("none")


def test_features_of_a_collapsed_encoder_are_said_to_tell_nothing(splits):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))
    collapsed = {name: features(name, 3 + found.average["last"][:, :1] * direction) for name, found in splits.items()}
    found = look_alikes(collapsed, set())
    assert "pairs" not in found
    assert found["skipped"] == "an image of validation has on average more than one in train above 0.98"
    assert "cannot tell copies from other images" in told(found)


def test_a_split_without_images_is_left_out_and_only_the_most_alike_are_listed(splits, monkeypatch):
    monkeypatch.setattr(module, "_LISTED", 3)
    values = splits["train"].average["last"]
    copies = {
        "train": splits["train"],
        "validation": features("validation", values[:0]),
        "test": features("test", values),
    }
    found = look_alikes(copies, set())
    assert list(found["pairs"]) == ["train/test"]
    assert found["pairs"]["train/test"]["count"] == 150
    assert len(found["pairs"]["train/test"]["first"]) == 3
