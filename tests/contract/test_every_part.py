"""Every registered part, third-party ones included, keeps the contract of its kind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cl_core.assembly import PixelEncoder
from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.data.views import Chain
from cl_core.errors import CollapseError, Interrupted
from cl_core.registry import load_registry
from cl_core.testing import (
    check_augmentation,
    check_encoder,
    check_loss,
    check_method,
    check_recipe,
    check_score,
    check_source,
    check_tracker,
)
from cl_core.training.progress import PlainProgress
from cl_core.training.tracking import Observers
from cl_core.training.trainer import pretrain

REGISTRY = load_registry()

# Options of parts that have no default for what they wrap.
REQUIRED = {
    ("augmentation", "torchvision"): {"transform": "RandomInvert"},
    ("encoder", "timm"): {"model": "resnet10t"},
    ("encoder", "resnet50"): {"stem": "cifar"},
    ("score", "bilinear"): {"dim": 16},
    ("score", "mlp"): {"dim": 16},
    ("source", "torchvision"): {"dataset": "FakeData", "root": "."},
}
# Methods that a constant output satisfies, or that start from one.
JOINT_EMBEDDING = {
    "simclr", "supcon", "moco_v2", "moco_v3", "nnclr", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino",
    "counting",
}  # fmt: skip
TRANSFORMERS = {"mae"}  # methods that leave tokens out


def parts(kind):
    return pytest.mark.parametrize("entry", REGISTRY.entries(kind), ids=lambda entry: f"{entry.provider}:{entry.name}")


def build(entry, **handed_over):
    options = REQUIRED.get((entry.kind, entry.name), {})
    return REGISTRY.build(entry.kind, entry.name, options, **handed_over)


@parts("source")
def test_source(entry, tmp_path):
    if entry.name == "image_folder":
        from PIL import Image

        for index in range(3):
            Image.new("RGB", (8, 8), (index * 80, 0, 0)).save(tmp_path / f"{index}.png")
        check_source(REGISTRY.build("source", entry.name, {"path": str(tmp_path)}))
    else:
        check_source(build(entry))


@parts("augmentation")
def test_augmentation(entry):
    check_augmentation(build(entry))


@parts("recipe")
def test_recipe(entry):
    chains = build(entry)
    check_recipe(chains)
    for specs in chains.values():
        for spec in specs:
            options = {key: value for key, value in spec.items() if key != "name"}
            check_augmentation(REGISTRY.build("augmentation", spec["name"], options))


@parts("encoder")
def test_encoder(entry):
    torch.manual_seed(0)
    check_encoder(build(entry))


@parts("loss")
def test_loss(entry):
    from plugins.losses import Cosine

    check_loss(build(entry, score=Cosine()))


@parts("score")
def test_score(entry):
    torch.manual_seed(0)
    check_score(build(entry))


def build_method(entry, size=32):
    """The method as the pipeline would build it, small, flipping its images."""
    from plugins.encoders import ViT, resnet8
    from plugins.losses import SupCon

    def encoder_factory(**overrides):
        torch.manual_seed(0)
        return ViT(width=24, depth=4) if entry.name in TRANSFORMERS else resnet8(width=4, **overrides)

    flip = REGISTRY.build("augmentation", "horizontal_flip", {})
    chains = {name: Chain([("horizontal_flip", flip)]) for name in entry.parts if name.startswith("augment")}
    parts = {"encoder": encoder_factory(), "encoder_factory": encoder_factory, "loss": SupCon(), "image_size": size}
    return build(entry, **parts, **chains)


@parts("method")
def test_method(entry):
    check_method(build_method(entry))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """48 coloured images of 16 px in three classes."""
    folder = tmp_path_factory.mktemp("store")
    photos = folder / "photos"
    rng = np.random.default_rng(0)
    for index in range(48):
        pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        pixels[..., index % 3] += 120
        (photos / str(index % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(photos / str(index % 3) / f"{index}.png")
    source = REGISTRY.build("source", "image_folder", {"path": str(photos)})
    ingest(source, folder / "store", size=16, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(folder / "store")


@pytest.mark.parametrize(
    "entry", [entry for entry in REGISTRY.entries("method") if entry.factory.trains], ids=lambda entry: entry.name
)
def test_a_method_that_is_stopped_and_continued_ends_in_the_same_bytes(entry, store, tmp_path):
    def train(folder, stop=lambda: False):
        pretrain(
            build_method(entry, size=16),
            store.split("train"),
            optimizer=OptimizerConfig(lr=0.02),
            schedule=ScheduleConfig(epochs=3, warmup_epochs=0),
            train=TrainConfig(batch_size=16, precision="fp32", channels_last=False, compile=False, log_every=1),
            seed=0,
            out=folder / "out",
            checkpoints=folder / "checkpoints",
            card={},
            observers=Observers(progress=PlainProgress(lambda line: None)),
            validation=None,
            materialized=None,
            decisions=folder / "decisions.json",
            stop=stop,
        )
        return [(folder / "out" / name).read_bytes() for name in ("encoder.safetensors", "curves.csv")]

    whole = train(tmp_path / "whole")
    for _ in range(2):
        steps = iter(range(1, 100))
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", stop=lambda steps=steps: next(steps) == 3)
    assert train(tmp_path / "stopped") == whole


def train_watched(method, store, folder, epochs):
    """Train under the installed monitors; the last figures that they saw."""
    seen: list[dict[str, float]] = []
    tracker = SimpleNamespace(
        start=lambda run: None, log=lambda step, metrics: seen.append(metrics), end=lambda summary: None
    )
    pretrain(
        method,
        store.split("train"),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=0),
        train=TrainConfig(
            batch_size=16, precision="fp32", channels_last=False, compile=False, log_every=1, knn_every=0
        ),
        seed=0,
        out=folder / "out",
        checkpoints=folder / "checkpoints",
        card={},
        observers=Observers(REGISTRY.manager.hook, [tracker], PlainProgress(lambda line: None)),
        validation=None,
        materialized=None,
        decisions=folder / "decisions.json",
    )
    return seen[-1]


@parts("method")
def test_a_constant_network_is_stopped_as_collapsed_and_a_fresh_one_is_not(entry, store, tmp_path):
    fresh = build_method(entry, size=16)
    if not fresh.trains:
        pytest.skip("is not trained")
    figures = train_watched(fresh, store, tmp_path / "fresh", epochs=3)
    if "feature_std" not in figures:
        assert entry.name not in JOINT_EMBEDDING, "report an embedding, or nobody notices that it collapses"
        return
    collapsed = build_method(entry, size=16)
    for network in collapsed.modules():
        if type(network) is type(collapsed.encoder):  # moving averages of it too
            network.register_forward_hook(lambda _network, _images, features: features * 0 + 1)
    with pytest.raises(CollapseError, match=r"feature_std is .* below 0\.1.*plugins\.block"):
        train_watched(collapsed, store, tmp_path / "collapsed", epochs=3)


@parts("method")
def test_the_views_of_a_method_do_not_depend_on_its_encoder(entry):
    from cl_core.data.sampling import SampleRng
    from cl_core.testing import sample_images
    from plugins.encoders import resnet8
    from plugins.losses import SupCon

    images, rows = sample_images(), torch.arange(8)
    views = []
    for encoder in (PixelEncoder(), resnet8(width=4)):
        torch.manual_seed(0)
        chains = {name: Chain([]) for name in entry.parts if name.startswith("augment")}
        parts = {"encoder": encoder, "encoder_factory": lambda e=encoder, **_: e, "loss": SupCon(), "image_size": 32}
        method = build(entry, **parts, **chains)
        views.append(method.make_views(images, SampleRng(0, 0, rows)).images)
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))


@parts("tracker")
def test_tracker(entry, tmp_path):
    if entry.name == "tensorboard":
        pytest.importorskip("tensorboard", reason='needs pip install "contrast[tensorboard]"')
    check_tracker(build(entry), tmp_path)
