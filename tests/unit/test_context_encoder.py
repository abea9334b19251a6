"""The context encoder against Pathak et al.: what is hidden, what is judged, who trains whom."""

import math

import pytest
import torch
from torch import nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.testing import sample_images
from plugins.encoders import resnet8
from plugins.methods.context_encoder import FILL, ChannelwiseLinear, ContextEncoder, masked_mse, psnr

SIZE = 32


def unchanged(images, rng):
    return images


def method(**options):
    torch.manual_seed(0)
    return ContextEncoder(resnet8(width=4), unchanged, SIZE, **options)


def views(model, count=32, epoch=0):
    return model.make_views(sample_images(count, SIZE), SampleRng(0, epoch, torch.arange(count)))


def test_the_centre_is_a_quarter_of_the_image_and_its_ring_is_visible_and_counts_ten_times():
    holed, whole = views(method(holes="centre")).images
    weight = views(method(holes="centre")).extras["mask"][0, 0]
    assert torch.count_nonzero(weight) == SIZE * SIZE // 4
    hidden = (holed != whole).any(dim=1).any(dim=0)
    assert hidden.sum() == 12 * 12  # 16 px less a ring of 2 on each side
    assert torch.equal(weight == 1, hidden)
    assert set(weight.unique().tolist()) == {0.0, 1.0, 10.0}
    torch.testing.assert_close(holed[0, :, 16, 16], torch.tensor(FILL))
    assert torch.equal(holed[:, :, ~hidden], whole[:, :, ~hidden])


def test_regions_take_a_quarter_of_each_image_and_differ_from_image_to_image():
    made = views(method())
    weight, (holed, whole) = made.extras["mask"], made.images
    share = weight.mean((1, 2, 3))
    assert share.min() >= 0.2
    assert share.max() <= 0.3
    assert len({tuple(mask.flatten().tolist()) for mask in weight}) == len(weight)
    assert torch.equal(holed.masked_select(weight == 0), whole.masked_select(weight == 0))
    filled = torch.tensor(FILL)[None, :, None, None].expand_as(whole)
    hidden = (weight > 0).expand_as(whole)
    assert torch.equal(holed[hidden], filled[hidden])


def test_the_reconstruction_ignores_what_is_outside_the_hole_and_weighs_the_ring():
    torch.manual_seed(0)
    painted, target = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8)
    weight = torch.zeros(2, 1, 8, 8)
    weight[:, :, 2:6, 2:6] = 10.0
    weight[:, :, 3:5, 3:5] = 1.0
    masked_mse(painted, target, weight).backward()
    assert torch.equal(painted.grad != 0, (weight > 0).expand_as(painted))
    slopes = painted.grad / (painted - target).detach()
    assert float(slopes[0, 0, 2, 2] / slopes[0, 0, 3, 3]) == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("holes", ["centre", "regions"])
def test_pixels_inside_the_hole_do_not_reach_the_network(holes):
    model = method(holes=holes).eval()
    images = sample_images(4, SIZE).requires_grad_()
    made = model.make_views(images, SampleRng(0, 0, torch.arange(4)))
    model.paint(made.images[0]).square().sum().backward()
    hidden = (made.images[0] != made.images[1]).any(dim=1, keepdim=True).expand_as(images)
    assert float(images.grad[hidden].abs().max()) == 0
    assert float(images.grad.abs().max()) > 0


def test_an_oracle_has_no_loss():
    model = method()
    made = views(model, 4)
    model.paint = lambda holed: made.images[1] * 2 - 1
    output = model(made)
    assert float(output.loss) == 0
    assert float(output.metrics["psnr"]) == pytest.approx(100)


def test_psnr_follows_its_formula():
    assert float(psnr(torch.full((8,), 0.5), torch.full((8,), 0.6))) == pytest.approx(20, abs=1e-3)


def test_the_channelwise_layer_mixes_places_but_not_channels():
    layer = ChannelwiseLinear(3, 4)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4**4 + 3 * 4**2
    maps = torch.randn(1, 3, 4, 4)
    jacobian = torch.autograd.functional.jacobian(layer, maps)[0, :, :, :, 0]  # (C, h, w, C, h, w)
    reach = jacobian.abs().sum((1, 2, 4, 5))
    assert torch.equal(reach > 0, torch.eye(3, dtype=torch.bool))
    assert float(jacobian[1, :, :, 1].abs().min()) > 0


def test_one_backward_pass_trains_each_net_by_its_own_loss_alone():
    model = method(holes="centre", adversarial=0.25).train()
    made = views(model)
    painted = model.paint(made.images[0])
    target = model._window(made.images[1]) * 2 - 1
    fooled, caught, _ = model._contest(painted, target)
    judge = list(model.discriminator.parameters())
    painter = [*model.encoder.parameters(), *model.bottleneck.parameters(), *model.decoder.parameters()]
    assert all(g is None for g in torch.autograd.grad(fooled, judge, retain_graph=True, allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(caught, painter, retain_graph=True, allow_unused=True))
    assert all(g is not None for g in torch.autograd.grad(caught, judge, retain_graph=True))
    assert any(float(g.abs().sum()) > 0 for g in torch.autograd.grad(fooled, painter))
    output = model(made)
    parts = {name: float(value) for name, value in output.metrics.items()}
    expected = 0.75 * parts["reconstruction"] + 0.25 * parts["adversarial"] + parts["discriminator"]
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_an_undecided_discriminator_costs_both_sides_log_two():
    model = method(holes="centre", adversarial=0.5)
    final = next(layer for layer in model.discriminator if isinstance(layer, nn.Linear))
    nn.init.zeros_(final.weight)
    nn.init.zeros_(final.bias)
    metrics = model(views(model)).metrics
    assert float(metrics["adversarial"]) == pytest.approx(math.log(2))
    assert float(metrics["discriminator"]) == pytest.approx(math.log(2))
    assert float(metrics["d_real"]) == float(metrics["d_fake"]) == 0.5


def test_the_discriminator_learns_at_a_tenth_of_the_rate():
    model = method(holes="centre", adversarial=0.001)
    judge = {id(p) for p in model.discriminator.parameters()}
    for group in model.parameter_groups():
        assert {id(p) in judge for p in group.params} == {group.lr_mult == 0.1}


def test_training_paints_better_than_the_mean_colour():
    model = method().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(50):
        output = model(views(model, epoch=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert float(output.metrics["psnr"]) > float(output.metrics["psnr_mean"]) + 1


def test_the_panel_shows_the_image_the_hole_and_the_painted_hole():
    model = method(holes="centre")
    images = sample_images(2, SIZE)
    (panel,) = model.panels(images, SampleRng(0, 0, torch.arange(2)))
    frame = SIZE + 4
    assert panel.image.shape == (2 * frame * 3, 3 * frame * 3, 3)
    tile = panel.image[6 : 6 + 3 * SIZE : 3, 2 * 3 * frame + 6 : 2 * 3 * frame + 6 + 3 * SIZE : 3]
    true = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert (tile[:8] == true[:8]).all()  # outside the hole the third column is the image itself
    assert (tile[12:20, 12:20] != true[12:20, 12:20]).any()


def test_wrong_settings_are_refused_with_the_edit_that_helps():
    with pytest.raises(ConfigError, match=r"method\.holes: centre"):
        method(adversarial=0.1)
    uneven = ContextEncoder(resnet8(width=4), unchanged, 30, holes="centre")
    with pytest.raises(ConfigError, match="30x30 px has none"):
        uneven.make_views(sample_images(2, 30), SampleRng(0, 0, torch.arange(2)))
