"""What methods say they cost, against the multiplications that their encoders are seen to do."""

import pytest
import torch
from torch import nn

from cl_core.data.sampling import SampleRng
from cl_core.data.views import Chain
from cl_core.registry import load_registry
from cl_core.testing import sample_images
from plugins.encoders import CifarResNet, ViT, resnet8
from plugins.losses import NTXent

SIZE, COUNT = 32, 4
REGISTRY = load_registry()


def built(name, *, local_size=None, **options):
    """The method on a resnet8 of width 16 (a mae on a vit), its chains flipping, the last one cropping to a size."""
    flip = REGISTRY.build("augmentation", "horizontal_flip", {})
    crop = REGISTRY.build("augmentation", "random_resized_crop", {"size": local_size}) if local_size else flip
    entry = REGISTRY.get("method", name)
    names = [part for part in entry.parts if part.startswith("augment")]
    chains = {part: Chain([("view", crop if part == names[-1] else flip)]) for part in names}

    def factory(**overrides):
        return ViT(width=48, depth=4) if name == "mae" else resnet8(**overrides)

    parts = {"encoder": factory(), "encoder_factory": factory, "loss": NTXent(), "image_size": SIZE}
    return REGISTRY.build("method", name, options, **parts, **chains)


def multiplications(model, step):
    """What all encoders inside a model multiply during a step; those without gradient count a third."""
    total = 0.0

    def count(layer, inputs, output):
        nonlocal total
        weights = layer.weight.numel()
        places = output.numel() / layer.weight.shape[0]
        total += weights * places * (1 if torch.is_grad_enabled() else 1 / 3)

    encoders = [module for module in model.modules() if isinstance(module, CifarResNet | ViT)]
    layers = {layer for encoder in encoders for layer in encoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    handles = [layer.register_forward_hook(count) for layer in layers]
    step()
    for handle in handles:
        handle.remove()
    return total


def measured_units(method, images, reference):
    whole = multiplications(reference, lambda: reference(images))
    views = method.make_views(images, SampleRng(0, 0, torch.arange(len(images))))
    views = views if not method.uses_labels else type(views)(**{**vars(views), "labels": torch.arange(len(images)) % 2})
    return multiplications(method, lambda: method(views)) / whole, method.units(views.areas(SIZE))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("supervised", {}, 1),
        ("context_encoder", {}, 1),
        ("colorization", {}, 1),
        ("denoising_autoencoder", {"mode": "joint"}, 1),
        ("rotation", {}, 4),
        ("jigsaw", {}, 9 / 16),
        ("jigsaw", {"grid": 2}, 9 / 16),
        ("context_prediction", {}, 9 / 16),
        ("counting", {}, 1.25),
        ("split_brain", {}, 0.5),
        ("simclr", {}, 2),
        ("simsiam", {}, 2),
        ("nnclr", {}, 2),
        ("barlow_twins", {}, 2),
        ("moco_v2", {}, 4 / 3),
        ("moco_v3", {}, 8 / 3),
        ("byol", {}, 8 / 3),
        ("dino", {"local_size": 16}, 11 / 3),
        ("swav", {"local_size": 16, "small_crops": 4}, 3),
        ("mae", {}, 1 / 4),
    ],
)
def test_a_method_costs_what_it_says(name, options, expected):
    torch.manual_seed(0)
    images = sample_images(COUNT, SIZE)
    method = built(name, **options)
    reference = ViT(width=48, depth=4) if name == "mae" else resnet8()
    seen, said = measured_units(method, images, reference)
    assert said == pytest.approx(expected, rel=1e-6)
    # One or two channels in, or patches embedded before they are left out, change the first layer's small share.
    assert seen == pytest.approx(said, rel=0.07)


def test_a_stacked_autoencoder_costs_what_its_stages_cost_in_turn():
    images = sample_images(COUNT, SIZE)
    method = built("denoising_autoencoder")
    seen = 0.0
    for stage, length in enumerate((1 / 2, 1 / 3, 1 / 6)):
        method.stage.fill_(stage)
        units, said = measured_units(method, images, resnet8())
        seen += length * units
    assert seen == pytest.approx(said, rel=1e-6)


def test_the_yardstick_without_training_costs_nothing_to_train():
    assert not built("random_init").trains
