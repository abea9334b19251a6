"""Rotation: the four turns are exact, each meets its own label, and the method has its closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from cl_core.types import Encoder, Views
from plugins.encoders import resnet8
from plugins.methods.rotation import Rotation, rotations


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def unchanged(images: Tensor, rng: SampleRng) -> Tensor:
    return images.clone()


def rotation(augment=noisy) -> Rotation:
    torch.manual_seed(0)
    return Rotation(resnet8(width=4), augment)


def random_images(n: int = 6, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


class Corner(Encoder):
    """Brightness of the four corners, counter-clockwise from the top left: says by itself how an image is turned."""

    out_dim = 4

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        corners = [images[:, 0, y, x] for y, x in [(0, 0), (-1, 0), (-1, -1), (0, -1)]]
        return {"corners": torch.stack(corners, dim=1)}


@pytest.mark.parametrize("turns", range(4))
def test_slot_k_holds_the_image_turned_k_times(turns):
    images = random_images()
    assert torch.equal(rotations(images)[:, turns], torch.rot90(images, turns, dims=(-2, -1)))


def test_four_quarter_turns_give_the_image_back():
    turned = images = random_images()
    for _ in range(4):
        turned = rotations(turned)[:, 1]
    assert torch.equal(turned, images)
    assert not torch.equal(rotations(images)[:, 1], images)


def test_chain_is_drawn_once_per_image_and_comes_before_the_rotation():
    images = random_images()
    (views,) = rotation().make_views(images, rng()).images
    assert torch.equal(views, rotations(noisy(images, rng().child(0))))


def test_views_of_a_sample_do_not_depend_on_its_batch():
    images = random_images()
    whole = rotation().make_views(images, rng()).images[0]
    alone = rotation().make_views(images[4:5], SampleRng(7, 0, torch.tensor([4]))).images[0]
    assert torch.equal(alone[0], whole[4])


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8)])
def test_images_that_are_not_square_are_refused(height, width):
    with pytest.raises(ConfigError, match=f"gives {height}x{width} px; set data.size, or end the chain with a crop"):
        rotation().make_views(random_images(6, height, width), rng())


def test_chain_that_makes_images_square_is_welcome():
    method = rotation(lambda images, _: images[..., :8])
    assert method.make_views(random_images(6, 8, 12), rng()).images[0].shape == (6, 4, 3, 8, 8)


def test_each_rotation_of_each_image_meets_its_own_label():
    """A classifier that reads the turned corner is right for all four rotations of every image, and only then."""
    method = Rotation(Corner(), unchanged)
    with torch.no_grad():
        method.classifier.weight.copy_(torch.eye(4))
        method.classifier.bias.zero_()
    images = torch.zeros(5, 1, 8, 8)
    images[..., 0, 0] = 1
    views = method.make_views(images, rng(5))
    assert method(views).metrics["accuracy"].item() == 1
    swapped = views.images[0].clone()
    swapped[2, [0, 3]] = swapped[2, [3, 0]]
    assert method(Views(images=(swapped,))).metrics["accuracy"].item() == pytest.approx(18 / 20)


def test_loss_is_the_mean_cross_entropy_of_every_label_once_per_image():
    method = rotation().eval()
    views = method.make_views(random_images(), rng())
    slots = [method.classifier(method.encoder(views.images[0][:, k])) for k in range(4)]
    expected = sum(F.cross_entropy(logits, torch.full((6,), k)) for k, logits in enumerate(slots)) / 4
    right = sum((logits.argmax(1) == k).sum() for k, logits in enumerate(slots))
    output = method(views)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert output.metrics["accuracy"].item() == pytest.approx(right.item() / 24)


def test_zero_logits_show_the_trivial_figures():
    method = rotation()
    nn.init.zeros_(method.classifier.weight)
    nn.init.zeros_(method.classifier.bias)
    output = method(method.make_views(random_images(), rng()))
    assert method.trivial() == {"loss": pytest.approx(math.log(4)), "accuracy": 0.25}
    assert output.loss.item() == pytest.approx(method.trivial()["loss"], abs=1e-6)
    assert output.metrics["accuracy"].item() == method.trivial()["accuracy"]
    assert {"loss", *output.metrics} == set(method.trivial())


def test_gradient_reaches_every_parameter():
    method = rotation()
    method(method.make_views(random_images(), rng())).loss.backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_representation_is_the_encoder_on_images_as_they_are():
    method = rotation().eval()
    representation = method.representation()
    assert representation.input_name == "rgb"
    assert torch.equal(representation.pooled(random_images()), method.encoder(random_images()))


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = rotation()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_rotation_learns_where_up_is():
    n, side = 16, 8
    images = random_images(n) * 0.5
    images[:, 2, : side // 2] += 0.5  # blue sky above
    method = rotation()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(15):
        output = method(method.make_views(images, rng(n, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.metrics["accuracy"] > 0.95


def test_panel_turns_images_back_by_the_answer_and_frames_right_ones_green():
    method = rotation(unchanged)
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))  # always "one quarter turn"
    images = random_images()
    turns = rng().integers(0, 4)
    (panel,) = method.panels(images, rng())
    rows = np.split(panel.image, 6)  # 8 px enlarged 8 times, 2 px frame, 2 px gap: 16 px of 8 each, per column
    pixels = [[cell[::8, ::8][4:-4, 4:-4] for cell in np.split(row, 3, axis=1)] for row in rows]
    for turn, image, (upright, shown, undone) in zip(turns.tolist(), images, pixels, strict=True):
        original = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(upright, original)
        assert np.array_equal(shown, np.rot90(original, turn))
        assert np.array_equal(undone, np.rot90(original, turn - 1))
    frames = [np.split(row, 3, axis=1)[2][::8, ::8][2, 2].tolist() for row in rows]
    assert [frame[1] > frame[0] for frame in frames] == [turn == 1 for turn in turns.tolist()]
    assert f"{turns.tolist().count(1)} of 6 are right" in panel.caption
