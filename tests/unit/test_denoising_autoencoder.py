"""The denoising autoencoder against Vincent et al.: what is damaged, what is compared, what trains when."""

import copy
import math

import pytest
import torch
from torch import nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.testing import sample_images
from cl_core.types import Views
from plugins.encoders import resnet8
from plugins.methods.denoising_autoencoder import DenoisingAutoencoder, phase_ends, reconstruction_loss

SIZE = 16


def unchanged(images, rng):
    return images


def method(**options):
    torch.manual_seed(0)
    return DenoisingAutoencoder(resnet8(width=4), unchanged, SIZE, **options)


def views(model, count=64, epoch=0):
    images = sample_images(count, SIZE)
    return images, model.make_views(images, SampleRng(0, epoch, torch.arange(count)))


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_masking_sets_the_stated_share_of_places_to_zero_and_leaves_the_others(rate):
    images, made = views(method(rate=rate))
    damaged, clean = made.images
    hit = made.extras["hit"]
    assert torch.equal(clean, images)
    assert abs(float(hit.float().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / hit.numel())
    assert float(damaged.masked_select(hit.expand_as(damaged)).abs().max()) == 0
    assert torch.equal(damaged.masked_select(~hit.expand_as(damaged)), clean.masked_select(~hit.expand_as(clean)))


def test_blocks_are_masked_as_a_whole():
    hit = views(method(block=4))[1].extras["hit"].float()
    assert torch.equal(hit, nn.functional.avg_pool2d(hit, 4).repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_salt_and_pepper_are_the_extremes_in_equal_parts():
    _, made = views(method(corruption="salt_and_pepper"))
    changed = made.images[0].masked_select(made.extras["hit"].expand_as(made.images[0]))
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert abs(float(changed.mean()) - 0.5) < 0.03


def test_gaussian_noise_has_the_stated_deviation_everywhere():
    _, made = views(method(corruption="gaussian", noise=0.2))
    noise = made.images[0] - made.images[1]
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)
    assert abs(float(noise.mean())) < 4 * 0.2 / math.sqrt(noise.numel())
    assert bool(made.extras["hit"].all())


def test_the_target_is_the_clean_image_whatever_the_network_is_shown():
    model = method(mode="joint")
    _, made = views(model)
    damaged, clean = made.images
    standard = (clean - clean.mean((0, 2, 3), keepdim=True)) / clean.std((0, 2, 3), correction=0, keepdim=True)
    model.decoders[0] = nn.Identity()
    model.encoder.stages = lambda _: {"stage": standard}
    assert float(model(made).loss) == pytest.approx(0, abs=1e-6)  # an oracle
    model.encoder.stages = lambda _: {"stage": torch.zeros_like(standard)}
    dead = model(made)
    assert float(dead.loss) == pytest.approx(model.trivial()["loss"], abs=1e-4)  # the mean
    assert float(dead.metrics["active_share"]) == model.trivial()["active_share"] == 0
    shown = (damaged - clean.mean((0, 2, 3), keepdim=True)) / clean.std((0, 2, 3), correction=0, keepdim=True)
    model.encoder.stages = lambda _: {"stage": shown}
    output = model(made)
    assert float(output.loss) == pytest.approx(float(output.metrics["copy_loss"]), rel=1e-5)  # the identity
    assert float(output.loss) > 0


def test_copying_a_masked_centred_input_costs_the_masked_share_of_its_energy():
    torch.manual_seed(0)
    clean = torch.randn(64, 3, SIZE, SIZE)
    hit = torch.rand(64, 1, SIZE, SIZE) < 0.3
    loss = reconstruction_loss(clean.masked_fill(hit, 0.0), clean, torch.ones(64, 1, SIZE, SIZE))
    assert float(loss) == pytest.approx(0.3 * float(clean.square().mean()), rel=0.02)


def test_full_emphasis_gives_untouched_places_no_gradient_and_equal_weights_the_plain_loss():
    torch.manual_seed(0)
    restored, target = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8)
    hit = torch.rand(4, 1, 8, 8) < 0.5
    reconstruction_loss(restored, target, hit.float()).backward()
    assert torch.equal(restored.grad != 0, hit.expand(4, 3, 8, 8))
    plain = reconstruction_loss(restored, target, torch.full((4, 1, 8, 8), 1.0))
    torch.testing.assert_close(plain, nn.functional.mse_loss(restored, target))


def test_stages_get_the_run_in_falling_parts_and_the_rate_restarts_with_each():
    assert phase_ends(4) == pytest.approx((0.4, 0.7, 0.9, 1.0))
    model = method()
    assert model.lr_restarts == pytest.approx((1 / 2, 5 / 6))
    seen = []
    for step in range(60):
        model.after_update((step + 1) / 60)
        seen.append(int(model.stage))
    assert [seen.count(stage) for stage in range(3)] == [29, 20, 11]  # the step that ends a part already belongs on


def test_a_stage_trains_alone_and_leaves_weights_and_statistics_below_and_above_bit_for_bit():
    model = method().train()
    model.stage.fill_(1)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(3):
        output = model(views(model, epoch=epoch)[1])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("encoder.stage2.", "decoders.1.")) for name in changed)
    assert model.encoder.stage1[0].bn1.training


def test_a_later_stage_is_shown_damage_to_its_own_input_and_judged_by_the_clean_one():
    model = method(rate=0.4).eval()
    model.stage.fill_(1)
    images, made = views(model)
    clean = model.encoder.stages(images)["stage1"].detach()
    shown = []
    model.encoder.stage2.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach()))
    without_damage = Views(images=(images, images), extras=made.extras)
    torch.manual_seed(1)
    loss = model(without_damage).loss
    zeroed = (shown[0] == 0).all(dim=1)
    assert float(zeroed.float().mean()) == pytest.approx(0.4, abs=0.03)
    kept = ~zeroed[:, None].expand_as(clean)
    torch.testing.assert_close(shown[0][kept], clean[kept])
    torch.manual_seed(1)
    assert torch.equal(model(made).loss, loss)  # the damage to the image is none of this stage's business


@pytest.mark.parametrize("mode", ["stacked", "joint"])
def test_the_representation_is_deterministic_and_every_stage_learns(mode):
    model = method(mode=mode).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first, last = {}, {}
    for step in range(90):
        output = model(views(model, 32, epoch=step)[1])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        loss = float(output.loss.detach())
        first.setdefault(int(model.stage), loss)
        last[int(model.stage)] = loss
        model.after_update((step + 1) / 90)
    assert set(first) == ({0, 1, 2} if mode == "stacked" else {0})
    assert all(last[stage] < min(0.8 * first[stage], 0.95) for stage in first)
    representation = model.representation().eval()
    images = sample_images(4, SIZE)
    assert torch.equal(representation.pooled(images), representation.pooled(images))


def test_the_panel_shows_clean_damaged_and_restored_images():
    model = method(mode="joint")
    (panel,) = model.panels(sample_images(8, SIZE), SampleRng(0, 0, torch.arange(8)))
    assert panel.image.shape == (6 * (SIZE + 4) * 6, 3 * (SIZE + 4) * 6, 3)
    assert model.training
    assert method().panels(sample_images(8, SIZE), SampleRng(0, 0, torch.arange(8))) == []


def test_wrong_settings_are_refused_with_the_edit_that_helps():
    with pytest.raises(ConfigError, match=r"emphasis \[0, 0\] leaves no loss"):
        method(emphasis=(0.0, 0.0))

    class Tokens(nn.Module):
        out_dim = 3

        def stages(self, images):
            return {"tokens": images}

    with pytest.raises(ConfigError, match=r"method\.mode: joint"):
        DenoisingAutoencoder(Tokens(), unchanged, SIZE)
    Tokens.stages = lambda self, images: {"tokens": images.mean((2, 3))}
    with pytest.raises(ConfigError, match="tokens has no map"):
        DenoisingAutoencoder(Tokens(), unchanged, SIZE, mode="joint")
