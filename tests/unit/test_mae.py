"""The masked autoencoder and its transformer against He et al.: what is seen, what is judged, what comes back."""

import pytest
import torch
import torch.nn.functional as F

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.testing import sample_images
from plugins.encoders import resnet8
from plugins.encoders.vit import ViT, positions
from plugins.methods.mae import MAE, patchify, standardised, taken, unpatchify

SIZE = 16


def unchanged(images, rng):
    return images


def method(**options):
    torch.manual_seed(0)
    return MAE(ViT(width=24, depth=4), unchanged, **options)


def views(model, count=8, epoch=0):
    return model.make_views(sample_images(count, SIZE), SampleRng(0, epoch, torch.arange(count)))


def test_patches_come_row_by_row_and_go_back_exactly():
    images = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).view(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4], images[1, :, 4:8, 4:8].flatten())
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)


@pytest.mark.parametrize(("hidden", "visible"), [(0.75, 4), (0.6, 6), (0.99, 1)])
def test_exactly_the_stated_share_is_hidden_and_differs_from_image_to_image(hidden, visible):
    model = method(hidden=hidden)
    order = views(model).extras["order"]
    assert model._visible(order) == visible
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(8, 16))
    assert len({tuple(row[:visible].tolist()) for row in order}) > 1


def test_the_encoder_sees_the_visible_patches_alone():
    model = method().eval()
    made = views(model)
    images, order = made.images[0].clone().requires_grad_(), made.extras["order"]
    model.paint(images, order).square().sum().backward()
    reached = patchify(images.grad, 4).abs().sum(dim=2) > 0
    shown = torch.zeros_like(reached).scatter(1, order[:, :4], True)
    assert torch.equal(reached, shown)


def test_the_loss_ignores_what_is_painted_on_visible_patches():
    model = method()
    made = views(model)
    painted = torch.randn(8, 16, 48)
    model.paint = lambda whole, order: painted
    before = float(model(made).loss)
    shown = torch.zeros(8, 16, dtype=torch.bool).scatter(1, made.extras["order"][:, :4], True)
    painted = torch.where(shown[..., None], torch.randn(8, 16, 48), painted)
    assert float(model(made).loss) == before
    target = standardised(patchify(made.images[0], 4))[0]
    expected = F.mse_loss(painted[~shown], target[~shown])
    assert before == pytest.approx(float(expected), rel=1e-5)


def test_painting_the_mean_costs_all_but_one_part_of_the_unbiased_variance():
    model = method()
    torch.manual_seed(0)
    images = torch.rand(8, 3, SIZE, SIZE)
    model.paint = lambda whole, order: torch.zeros(8, 16, 48)
    output = model(model.make_views(images, SampleRng(0, 0, torch.arange(8))))
    assert model.trivial()["loss"] == 47 / 48
    assert float(output.loss) == pytest.approx(47 / 48, rel=1e-3)


def test_taken_tokens_are_those_named():
    tokens = torch.arange(2 * 3 * 2.0).view(2, 3, 2)
    assert torch.equal(taken(tokens, torch.tensor([[2, 0], [1, 1]]))[1], tokens[1, [1, 1]])


def test_the_transformer_treats_tokens_by_their_position_not_by_their_order():
    torch.manual_seed(0)
    encoder = ViT(width=24, depth=4).eval()
    tokens = encoder.tokens(sample_images(2, SIZE))
    order = torch.randperm(16)
    torch.testing.assert_close(encoder.encode(tokens[:, order]), encoder.encode(tokens)[:, order], atol=1e-5, rtol=1e-4)
    last = encoder.stages(sample_images(2, SIZE))["stage4"]
    torch.testing.assert_close(encoder.encode(tokens), last.flatten(2).transpose(1, 2))


def test_positions_tell_rows_from_columns_at_any_size():
    codes = positions(3, 5, 24, torch.zeros(1))
    assert codes.shape == (15, 24)
    assert len({tuple(code.tolist()) for code in codes}) == 15
    torch.testing.assert_close(codes[:5], positions(1, 5, 24, torch.zeros(1)))


def test_training_paints_better_than_the_mean():
    model = method().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images = sample_images(2, SIZE).repeat(16, 1, 1, 1)  # two pictures, to be known by heart
    for step in range(120):
        output = model(model.make_views(images, SampleRng(0, step, torch.arange(32))))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert float(output.loss.detach()) < 0.85 * model.trivial()["loss"]


def test_the_panel_keeps_visible_patches_as_they_are():
    (panel,) = method().panels(sample_images(2, SIZE), SampleRng(0, 0, torch.arange(2)))
    frame = (SIZE + 4) * 6
    assert panel.image.shape == (2 * frame, 3 * frame, 3)
    columns = [panel.image[:frame, k * frame : (k + 1) * frame] for k in range(3)]
    kept = (columns[1] == columns[0]).all(axis=2)
    assert (columns[2][kept] == columns[0][kept]).all()


def test_wrong_settings_are_refused_with_the_edit_that_helps():
    with pytest.raises(ConfigError, match="decoder_dim 30"):
        method(decoder_dim=30)
    with pytest.raises(ConfigError, match="width 30"):
        ViT(width=30)
    with pytest.raises(ConfigError, match="set depth to 4"):
        ViT(depth=3)
    model = method(patch=5)
    with pytest.raises(ConfigError, match="patch 5 does not divide"):
        views(model)
    with pytest.raises(ConfigError, match="14x14 px does not divide"):
        ViT().stages(sample_images(2, 14))
    convolutional = MAE(resnet8(width=4), unchanged)
    made = views(convolutional)
    with pytest.raises(ConfigError, match=r"encoder: \{name: vit, patch: 4\}"):
        convolutional(made)
