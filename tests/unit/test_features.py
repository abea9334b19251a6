"""Features: pooling, extraction from a frozen representation, files, strict loading of weights."""

import json
import stat

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store, to_float
from cl_core.errors import CheckpointError, DataError
from cl_core.evaluation.features import Features, extract, load_weights, pool, raw_pixels
from cl_core.types import Example


class Images:
    """Random images of two classes; every fifth has no label."""

    def fingerprint(self):
        return {"name": "images"}

    def __iter__(self):
        rng = np.random.default_rng(0)
        for number in range(30):
            label = None if number % 5 == 0 else "ab"[number % 2]
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            yield Example(key=f"{number:02d}", image=image, label=label, split="test" if number < 10 else "train")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "dataset"
    rule = SplitRule(validation=0.0, test=0.0)
    ingest(Images(), out, size=16, splits=rule, source_spec={"name": "images"}, workers=1, report=lambda line: None)
    return Store.open(out)


class Net(nn.Module):
    """Two maps and a vector, with batch norm between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 6)

    def forward(self, images):
        early = self.norm(self.conv(images))
        late = early[:, :, ::2, ::2]
        return {"early": early, "late": late, "vector": self.linear(late.mean(dim=(2, 3)))}


@pytest.mark.parametrize(
    ("shape", "max_values", "side"),
    [((16, 32, 32), 2048, 11), ((32, 16, 16), 2048, 8), ((64, 8, 8), 2048, 5), ((4, 2, 3), 2048, 2), ((9, 4, 4), 8, 1)],
)
def test_maps_are_pooled_to_the_largest_square_grid_that_fits(shape, max_values, side):
    maps = torch.rand(2, *shape)
    assert torch.equal(pool(maps, max_values), adaptive_avg_pool2d(maps, side).flatten(1))


def test_vectors_are_left_as_they_are():
    vectors = torch.rand(2, 3000)
    assert pool(vectors, 2048) is vectors


def test_extraction_gives_grids_and_averages_of_every_stage_in_order(store):
    split, net = store.split("train"), Net()
    features = extract(net, split, max_values=64, batch_size=7)
    expected = net.eval()(to_float(split.images(np.arange(len(split)))))
    assert list(features.probe) == ["early", "late", "vector"]
    assert features.dims == {"early": 64, "late": 64, "vector": 6}
    for stage, values in expected.items():
        torch.testing.assert_close(features.probe[stage].float(), pool(values, 64), atol=2e-3, rtol=2e-3)
        average = values.mean(dim=(2, 3)) if values.ndim == 4 else values
        torch.testing.assert_close(features.average[stage].float(), average, atol=2e-3, rtol=2e-3)
    assert features.keys == split.keys
    assert features.labels.tolist() == split.labels.tolist()


def test_an_empty_split_gives_empty_stages_of_the_right_width(store):
    features = extract(Net(), store.split("validation"), max_values=64)
    assert len(features) == 0
    assert features.dims == {"early": 64, "late": 64, "vector": 6}


def test_every_part_gets_its_own_mode_back(store):
    net = Net()
    net.conv.eval()
    extract(net, store.split("test"))
    assert (net.training, net.conv.training, net.norm.training) == (True, False, True)


def test_a_representation_that_updates_batch_norm_is_caught(store):
    class Thawed(Net):
        def forward(self, images):
            self.norm.train()
            return super().forward(images)

    with pytest.raises(
        DataError, match=r"the frozen Thawed changed while features were computed: .*norm\.running_mean"
    ):
        extract(Thawed(), store.split("test"))


def test_a_stage_that_is_not_finite_is_named_with_its_image(store):
    class Diverged(Net):
        def forward(self, images):
            stages = super().forward(images)
            stages["late"] = stages["late"].clone()  # a view of the early stage otherwise
            stages["late"][1] = float("nan")
            return stages

    with pytest.raises(DataError, match=r"'late' gives NaN or infinity for 1 images, the first '01'"):
        extract(Diverged(), store.split("test"))


def test_a_stage_of_another_shape_is_an_error(store):
    class Tokens(nn.Module):
        def forward(self, images):
            return {"tokens": images.flatten(2)}

    with pytest.raises(DataError, match=r"'tokens' has the shape \(10, 3, 256\)"):
        extract(Tokens(), store.split("test"))


@pytest.mark.parametrize("scale", [1e6, 1e-7])
def test_what_float16_cannot_hold_stays_float32(store, scale):
    class Scaled(nn.Module):
        def forward(self, images):
            return {"scaled": images * scale, "plain": images}

    features = extract(Scaled(), store.split("test"))
    assert (features.probe["scaled"].dtype, features.probe["plain"].dtype) == (torch.float32, torch.float16)


def test_features_survive_a_file_with_stage_order_and_keys(store, tmp_path):
    features = extract(Net(), store.split("train"))
    features.save(tmp_path / "train.safetensors")
    loaded = Features.load(tmp_path / "train.safetensors")
    assert list(loaded.probe) == list(features.probe)
    assert loaded.keys == features.keys
    for stage in features.probe:
        assert torch.equal(loaded.probe[stage], features.probe[stage])
        assert torch.equal(loaded.average[stage], features.average[stage])


def test_equal_features_give_equal_bytes_that_colleagues_may_read(store, tmp_path):
    for name in ("a", "b"):
        extract(Net(), store.split("train")).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_file_of_another_format_a_damaged_and_a_missing_one_are_told_apart(store, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match="there are no features at"):
        Features.load(path)
    path.write_bytes(b"not tensors")
    with pytest.raises(DataError, match="are damaged"):
        Features.load(path)
    extract(Net(), store.split("test")).save(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        header = json.loads(file.metadata()["features"])
    save_file(tensors, path, metadata={"features": json.dumps(header | {"format": "contrast-features/9"})})
    with pytest.raises(DataError, match="contrast-features/9"):
        Features.load(path)


def test_unlabelled_examples_are_left_out_by_name(store):
    features = extract(Net(), store.split("train"))
    labelled = features.labelled()
    assert labelled.keys == [k for k, label in zip(features.keys, features.labels.tolist(), strict=True) if label >= 0]
    assert 0 < len(labelled) < len(features)


def test_raw_pixels_are_whole_where_they_are_few_and_pooled_where_not(store):
    split = store.split("test")
    images = to_float(split.images(np.arange(len(split))))
    torch.testing.assert_close(raw_pixels(split).probe["pixels"].float(), images.flatten(1), atol=1e-3, rtol=1e-3)
    assert raw_pixels(split, max_values=100).dims == {"pixels": 75}


def test_weights_that_fit_are_loaded_and_others_are_named(tmp_path):
    path = tmp_path / "encoder.safetensors"
    source, target = Net(), Net()
    nn.init.ones_(source.linear.weight)
    save_file(source.state_dict(), path)
    load_weights(target, path)
    assert torch.equal(target.linear.weight, source.linear.weight)

    state = source.state_dict() | {"linear.weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    del state["norm.bias"]
    save_file(state, path)
    message = r"missing: norm\.bias; unexpected: extra; of another shape: linear\.weight"
    with pytest.raises(CheckpointError, match=message):
        load_weights(target, path)


def test_weights_that_cannot_be_read_are_an_error_of_the_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(Net(), tmp_path / "absent.safetensors")
