"""Every registered part, third-party ones included, keeps the contract of its kind."""

import pytest
import torch

from cl_core.assembly import PixelEncoder
from cl_core.data.views import Chain
from cl_core.registry import load_registry
from cl_core.testing import (
    check_augmentation,
    check_encoder,
    check_loss,
    check_method,
    check_recipe,
    check_source,
    check_tracker,
)

REGISTRY = load_registry()

# Options of parts that have no default for what they wrap.
REQUIRED = {
    ("augmentation", "torchvision"): {"transform": "RandomInvert"},
    ("encoder", "timm"): {"model": "resnet10t"},
    ("encoder", "resnet50"): {"stem": "cifar"},
    ("source", "torchvision"): {"dataset": "FakeData", "root": "."},
}


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
    check_loss(build(entry))


@parts("method")
def test_method(entry):
    from plugins.encoders import resnet8
    from plugins.losses import NTXent

    def encoder_factory(**overrides):
        torch.manual_seed(0)
        return resnet8(width=4, **overrides)

    flip = REGISTRY.build("augmentation", "horizontal_flip", {})
    chains = {name: Chain([("horizontal_flip", flip)]) for name in entry.parts if name.startswith("augment")}
    parts = {"encoder": encoder_factory(), "encoder_factory": encoder_factory, "loss": NTXent(), "image_size": 32}
    check_method(build(entry, **parts, **chains))


@parts("method")
def test_the_views_of_a_method_do_not_depend_on_its_encoder(entry):
    from cl_core.data.sampling import SampleRng
    from cl_core.testing import sample_images
    from plugins.encoders import resnet8
    from plugins.losses import NTXent

    images, rows = sample_images(), torch.arange(8)
    views = []
    for encoder in (PixelEncoder(), resnet8(width=4)):
        torch.manual_seed(0)
        chains = {name: Chain([]) for name in entry.parts if name.startswith("augment")}
        parts = {"encoder": encoder, "encoder_factory": lambda e=encoder, **_: e, "loss": NTXent(), "image_size": 32}
        method = build(entry, **parts, **chains)
        views.append(method.make_views(images, SampleRng(0, 0, rows)).images)
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))


@parts("tracker")
def test_tracker(entry, tmp_path):
    if entry.name == "tensorboard":
        pytest.importorskip("tensorboard", reason='needs pip install "contrast[tensorboard]"')
    check_tracker(build(entry), tmp_path)
