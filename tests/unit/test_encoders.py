"""Built-in encoders against the papers' sizes, torchvision's and timm's own outputs."""

from __future__ import annotations

import copy
import importlib
import math
import socket
import subprocess
import sys
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from cl_core.assembly import build_encoder
from cl_core.errors import ConfigError
from cl_core.registry import load_registry
from cl_core.types import global_average
from plugins.encoders import CifarResNet, TimmEncoder, resnet8, resnet18, resnet20, resnet50
from plugins.encoders.cifar_resnet import BasicBlock

CONVOLUTIONAL = {
    "resnet8": resnet8,
    "resnet8-wide": lambda: resnet8(width=24),
    "resnet20": lambda: resnet20(width=8),
    "resnet18": resnet18,
    "resnet18-imagenet": lambda: resnet18(stem="imagenet"),
    "timm-resnet": lambda: TimmEncoder(model="test_resnet"),
    "timm-efficientnet": lambda: TimmEncoder(model="test_efficientnet"),
    "timm-channels-last": lambda: TimmEncoder(model="mambaout_femto"),
    "timm-vit": lambda: TimmEncoder(model="test_vit"),
}

convolutional = pytest.mark.parametrize("encoder", CONVOLUTIONAL.values(), ids=CONVOLUTIONAL)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def random_images(n: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(side))


@convolutional
@torch.no_grad()
def test_output_is_the_global_average_of_the_last_stage(encoder):
    encoder = encoder().eval()
    images = random_images(3, 32)
    last = list(encoder.stages(images).values())[-1]
    assert last.ndim == 4
    torch.testing.assert_close(encoder(images), global_average(last))


@convolutional
@pytest.mark.parametrize("side", [8, 32, 64])
@torch.no_grad()
def test_output_has_the_promised_width_at_every_image_size(encoder, side):
    encoder = encoder().train()
    output = encoder(random_images(4, side))
    assert output.shape == (4, encoder.out_dim)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize(
    "encoder",
    [resnet8, lambda: resnet50(stem="imagenet"), lambda: TimmEncoder(model="vit_tiny_patch16_224")],
    ids=["resnet8", "resnet50", "timm-vit"],
)
@torch.no_grad()
def test_large_images_pass(encoder):
    encoder = encoder().eval()
    assert encoder(random_images(1, 224)).shape == (1, encoder.out_dim)


@convolutional
@torch.no_grad()
def test_stages_come_early_to_late_and_are_numbered(encoder):
    stages = encoder().eval().stages(random_images(2, 32))
    assert list(stages) == [f"stage{number}" for number in range(1, len(stages) + 1)]
    sides = [stage.shape[-1] for stage in stages.values()]
    assert sides == sorted(sides, reverse=True)


@convolutional
@torch.no_grad()
def test_stages_of_a_sample_do_not_depend_on_its_batch(encoder):
    encoder = encoder().eval()
    images = random_images(4, 32)
    whole, alone = encoder.stages(images), encoder.stages(images[:1])
    for name, stage in whole.items():
        torch.testing.assert_close(stage[:1], alone[name], atol=1e-4, rtol=1e-4)


@convolutional
def test_forward_computes_every_layer_once(encoder):
    encoder, calls = encoder().eval(), Counter()
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        encoder(random_images(1, 32))
    assert calls
    assert set(calls.values()) == {1}


@convolutional
def test_every_parameter_receives_gradient(encoder):
    encoder = encoder().train()
    encoder(random_images(4, 32)).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@convolutional
@torch.no_grad()
def test_a_deep_copy_shares_nothing(encoder):
    encoder = encoder().eval()
    images = random_images(2, 32)
    before = encoder(images)
    twin = copy.deepcopy(encoder)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    assert torch.equal(encoder(images), before)
    assert not torch.allclose(twin(images), before)


@convolutional
def test_equal_seeds_give_equal_weights(encoder):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(encoder().state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_resnets_have_the_layers_and_parameters_of_he_et_al_table_6(depth):
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}[depth]
    encoder = CifarResNet(depth)
    classifier = nn.Linear(encoder.out_dim, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in encoder.modules()) + 1 == depth
    assert (count(encoder) + count(classifier)) / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.006)


@torch.no_grad()
def test_resnet20_has_the_map_sizes_of_he_et_al_section_4_2():
    shapes = {name: tuple(stage.shape) for name, stage in resnet20().eval().stages(random_images(1, 32)).items()}
    assert shapes == {"stage1": (1, 16, 32, 32), "stage2": (1, 32, 16, 16), "stage3": (1, 64, 8, 8)}


@torch.no_grad()
def test_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    block = BasicBlock(4, 8, stride=2).eval()
    block.bn2.weight.zero_()
    features = random_images(2, 6, channels=4)
    expected = torch.cat([features[:, :, ::2, ::2], torch.zeros(2, 4, 3, 3)], dim=1)
    assert torch.equal(block(features), expected)
    assert sum(isinstance(module, nn.Conv2d) for module in block.modules()) == 2


def test_cifar_resnet_weights_follow_he_initialisation():
    torch.manual_seed(0)
    weight = resnet8(width=64).stage3[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.01)


def test_a_depth_that_is_not_6n_plus_2_is_refused():
    with pytest.raises(ConfigError, match="depth 18 does not exist; depths are 6n"):
        CifarResNet(18)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_imagenet_stem_gives_the_features_of_torchvision(name):
    encoder = {"resnet18": resnet18, "resnet50": resnet50}[name](stem="imagenet").eval()
    reference = getattr(models, name)(weights=None).eval()
    reference.fc = nn.Identity()
    reference.load_state_dict(encoder.state_dict(), strict=True)
    images = random_images(2, 64)
    torch.testing.assert_close(encoder(images), reference(images))


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    [
        (lambda: resnet18(stem="imagenet"), 11_689_512 - 513_000),
        (resnet18, 11_689_512 - 513_000 - 9408 + 1728),
        (lambda: resnet50(stem="imagenet"), 25_557_032 - 2_049_000),
        (resnet50, 25_557_032 - 2_049_000 - 9408 + 1728),
    ],
)
def test_torchvision_resnets_have_their_known_number_of_parameters(encoder, parameters):
    assert count(encoder()) == parameters


@torch.no_grad()
def test_cifar_stem_keeps_the_resolution():
    stages = resnet18().eval().stages(random_images(1, 32))
    assert [stage.shape[-1] for stage in stages.values()] == [32, 16, 8, 4]


@torch.no_grad()
def test_zero_init_residual_makes_every_block_start_as_its_shortcut():
    block = resnet18(zero_init_residual=True).eval().layer1[0]
    features = random_images(1, 8, channels=64)
    assert torch.equal(block(features), features)


@pytest.mark.parametrize(
    "encoder",
    [resnet8, resnet18, lambda **arguments: TimmEncoder(model="test_resnet", **arguments)],
    ids=["resnet8", "resnet18", "timm"],
)
@torch.no_grad()
def test_encoders_take_other_numbers_of_channels(encoder):
    encoder = encoder(in_channels=1).eval()
    assert encoder(random_images(2, 32, channels=1)).shape == (2, encoder.out_dim)


def test_a_narrower_net_is_asked_for_by_a_factor_and_refused_where_the_encoder_has_none():
    registry, spec = load_registry(), {"name": "resnet8", "options": {"width": 16}}
    half = build_encoder(registry, spec, seed=0, image_size=32, width_mult=0.5, in_channels=2)
    assert half.out_dim == 32
    assert half.conv1.weight.shape[:2] == (8, 2)
    other = {"name": "timm", "options": {"model": "test_resnet"}}
    with pytest.raises(ConfigError, match="'timm' takes no width_mult"):
        build_encoder(registry, other, seed=0, image_size=32, width_mult=0.5)


@torch.no_grad()
def test_timm_conv_net_gives_the_maps_of_timm():
    encoder = TimmEncoder(model="test_resnet").eval()
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    missing = plain.load_state_dict(encoder.net.state_dict(), strict=False).missing_keys
    assert missing == []
    images = random_images(2, 32)
    torch.testing.assert_close(list(encoder.stages(images).values())[-1], plain.forward_features(images))


@torch.no_grad()
def test_timm_vit_gives_the_average_of_the_normalised_patch_tokens():
    encoder = TimmEncoder(model="vit_tiny_patch16_224", img_size=32, model_args={"patch_size": 8}).eval()
    stages = encoder.stages(random_images(2, 32))
    assert [tuple(stage.shape) for stage in stages.values()] == [(2, 192, 4, 4)] * 4
    tokens = encoder.net.net.forward_features(random_images(2, 32))
    torch.testing.assert_close(encoder(random_images(2, 32)), tokens[:, 1:].mean(dim=1))


@torch.no_grad()
def test_timm_vit_stages_follow_its_blocks():
    encoder = TimmEncoder(model="vit_tiny_patch16_224", img_size=32).eval()
    net, images = encoder.net.net, random_images(1, 32)
    before = encoder.stages(images)
    net.blocks[6].mlp.fc2.weight.zero_()  # the seventh of twelve: after stage2, before stage3
    changed = {name: not torch.equal(stage, before[name]) for name, stage in encoder.stages(images).items()}
    assert changed == {"stage1": False, "stage2": False, "stage3": True, "stage4": True}


def test_timm_model_arguments_reach_the_model():
    assert TimmEncoder(model="test_vit", model_args={"embed_dim": 32, "num_heads": 2}).out_dim == 32


def test_timm_without_pretrained_opens_no_connection(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert TimmEncoder(model="resnet10t").out_dim == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnt18"}, "timm .* has no model 'resnt18'; the nearest names are resnet18"),
        ({"model": "hf-hub:timm/resnet18.a1_in1k"}, "has no model 'hf-hub:timm"),
        ({"model": "resnet18.nope"}, "resnet18.nope cannot be built: Invalid pretrained tag"),
        ({"model": "resnet18", "img_size": 32}, "cannot be built: .*img_size.*check img_size and model_args"),
        ({"model": "test_vit", "model_args": {"depht": 3}}, "cannot be built: .*'depht'"),
    ],
)
def test_timm_models_that_cannot_be_built_are_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TimmEncoder(**arguments)


@torch.no_grad()
def test_timm_model_of_a_fixed_size_explains_other_sizes():
    encoder = TimmEncoder(model="mixer_s16_224", img_size=32).eval()
    assert encoder(random_images(1, 32)).shape == (1, 512)
    with pytest.raises(ConfigError, match=r"mixer_s16_224 does not take 64x64 px images .* set img_size"):
        encoder(random_images(1, 64))


@torch.no_grad()
def test_channels_last_images_give_the_same_features():
    encoder = resnet8().eval()
    images = random_images(3, 32)
    expected = encoder(images)
    encoder = encoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(images.to(memory_format=torch.channels_last)), expected)


@torch.no_grad()
def test_bf16_autocast_stays_near_full_precision():
    encoder = resnet8().eval()
    images = random_images(3, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(images)
    assert F.cosine_similarity(half.float(), encoder(images)).min() > 0.99


def test_registering_encoders_losses_and_methods_loads_no_torch():
    code = """
import sys
import plugins.encoders, plugins.losses, plugins.methods
parts = plugins.encoders.register_encoders(), plugins.losses.register_losses(), plugins.methods.register_methods()
print(all(parts), sorted({"torch", "timm", "torchvision"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


@pytest.mark.parametrize("package", ["encoders", "losses", "methods"])
def test_unknown_names_of_the_packages_are_attribute_errors(package):
    module, name = importlib.import_module(f"plugins.{package}"), "Nothing"
    with pytest.raises(AttributeError, match=f"module 'plugins.{package}' has no attribute 'Nothing'"):
        getattr(module, name)
