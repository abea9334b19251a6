"""Built-in augmentations against torchvision's functional operations, sample by sample, under the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as reference

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError, DataError
from plugins.augmentations import (
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    QuarterTurns,
    RandomCrop,
    RandomResizedCrop,
    Rotation,
    Solarize,
    TorchvisionTransform,
)
from plugins.augmentations.operation import Operation

PIXEL = 5e-6  # float32 rounding of a few dozen operations on values up to 1
ROTATED = 5e-5  # sampling positions near 100 carry a rounding of 1e-5 pixels
BATCHES = 1e-6  # pixels of a sample in batches of different sizes

EVERY_OPERATION: dict[str, Callable[[], Operation]] = {
    "random_resized_crop": lambda: RandomResizedCrop(interpolation="bicubic"),
    "random_resized_crop to 20": lambda: RandomResizedCrop(size=20),
    "random_crop": RandomCrop,
    "random_crop reflect": lambda: RandomCrop(padding=3, mode="reflect"),
    "horizontal_flip": HorizontalFlip,
    "rotation": lambda: Rotation(degrees=180, prob=0.7),
    "quarter_turns": QuarterTurns,
    "color_jitter": ColorJitter,
    "grayscale": lambda: Grayscale(prob=0.5),
    "solarize": lambda: Solarize(prob=0.5),
    "gaussian_blur": GaussianBlur,
    "cutout": lambda: Cutout(prob=0.7),
    "torchvision": lambda: TorchvisionTransform("RandomPerspective", {"distortion_scale": 0.4}, prob=0.8),
}


def rng(count: int, epoch: int = 0) -> SampleRng:
    return SampleRng(0, epoch, torch.arange(count))


def noise(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Random images, with a black, a white, a grey and a one-coloured one among them."""
    images = SampleRng(9, 9, torch.arange(count)).uniform(shape=(channels, height, width))
    for row, value in zip(range(1, count), (0.0, 1.0, 0.5), strict=False):
        images[row] = value
    if count > 4 and channels == 3:
        images[4] = torch.tensor([0.2, 0.9, 0.2])[:, None, None]
    return images


def assert_each_sample(found: Tensor, images: Tensor, expected: Callable[[int], Tensor], atol: float) -> None:
    assert len(found) == len(images)
    for row in range(len(images)):
        torch.testing.assert_close(found[row], expected(row), atol=atol, rtol=0, msg=lambda m, row=row: f"{row}: {m}")


@pytest.mark.parametrize("make", EVERY_OPERATION.values(), ids=EVERY_OPERATION)
class TestEveryOperation:
    @pytest.mark.parametrize("batch", [1, 7, 256])
    def test_parameters_are_equal_and_pixels_within_1e_6_for_every_batch_size(
        self, make: Callable[[], Operation], batch: int
    ) -> None:
        operation, images, rows = make(), noise(256, 24, 24), torch.arange(256)
        drawn, together = operation.draw(SampleRng(5, 2, rows), 24, 24), operation(images, SampleRng(5, 2, rows))
        for part in rows[: min(256, 6 * batch)].split(batch):
            here = SampleRng(5, 2, part)
            for name, values in operation.draw(here, 24, 24).items():
                assert torch.equal(values, drawn[name][part]), name
            pixels = operation(images[part], SampleRng(5, 2, part))
            torch.testing.assert_close(pixels, together[part], atol=BATCHES, rtol=0)

    def test_input_is_left_untouched_in_either_memory_layout(self, make: Callable[[], Operation]) -> None:
        operation, images = make(), noise(16)
        before, plain = images.clone(), operation(images, rng(16))
        assert torch.equal(images, before)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(operation(channels_last, rng(16)), plain, atol=BATCHES, rtol=0)
        assert torch.equal(channels_last, before)

    def test_output_is_a_new_float32_tensor_in_the_unit_interval(self, make: Callable[[], Operation]) -> None:
        images = noise(16)
        result = make()(images, rng(16))
        assert result.dtype == torch.float32
        assert result.shape[:2] == images.shape[:2]
        assert float(result.min()) >= 0
        assert float(result.max()) <= 1
        assert result.shape != images.shape or not torch.equal(result, images)

    def test_result_has_no_part_in_global_random_state(self, make: Callable[[], Operation]) -> None:
        images, state = noise(4), torch.random.get_rng_state()
        first = make()(images, rng(4))
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(make()(images, rng(4)), first)

    def test_empty_batch_stays_empty(self, make: Callable[[], Operation]) -> None:
        assert len(make()(noise(0), rng(0))) == 0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, None), (32, 32, 64), (96, 40, 24), (40, 56, None)])
def test_random_resized_crop_equals_torchvision_with_the_same_boxes(
    height: int, width: int, size: int | None, interpolation: str
) -> None:
    images = noise(24, height, width)
    crop = RandomResizedCrop(size=size, interpolation=interpolation)
    boxes = crop.draw(rng(24), height, width)
    out = [size, size] if size else [height, width]

    def expected(row: int) -> Tensor:
        box = [int(boxes[name][row]) for name in ("top", "left", "height", "width")]
        mode = InterpolationMode(interpolation)
        return reference.resized_crop(images[row], *box, out, mode, antialias=True).clamp(0, 1)

    assert_each_sample(crop.apply(images, **boxes), images, expected, PIXEL)


def test_crop_of_one_pixel_and_of_everything_are_exact() -> None:
    images = noise(2, 8, 8)
    box = {"top": [3, 0], "left": [5, 0], "height": [1, 8], "width": [1, 8]}
    result = RandomResizedCrop().apply(images, **{name: torch.tensor(value) for name, value in box.items()})
    assert torch.equal(result[0], images[0, :, 3:4, 5:6].expand(3, 8, 8))
    assert torch.equal(result[1], images[1])


def test_crop_boxes_follow_the_asked_area_and_aspect() -> None:
    boxes = RandomResizedCrop(scale=(0.2, 0.6)).draw(rng(20_000), 100, 100)
    area = (boxes["height"] * boxes["width"]).double() / 1e4
    aspect = (boxes["width"] / boxes["height"]).double()
    assert 0.19 < float(area.min()) < 0.21
    assert 0.59 < float(area.max()) < 0.61
    assert abs(float(area.mean()) - 0.4) < 0.005  # uniform, hardly a candidate is rejected
    assert 0.73 < float(aspect.min()) < 0.77
    assert 1.3 < float(aspect.max()) < 1.37
    assert abs(float(aspect.log().mean())) < 0.01  # log-uniform: wide as often as tall
    for side, start in (("height", "top"), ("width", "left")):
        assert int(boxes[start].min()) == 0
        assert int((boxes[start] + boxes[side]).max()) == 100


def test_crop_boxes_are_torchvisions_algorithm_on_the_same_candidates() -> None:
    """The loop of RandomResizedCrop.make_params, fed with our draws; scale 1 in a wide image rejects many of them."""
    crop, height, width = RandomResizedCrop(scale=(0.5, 1.0), ratio=(0.5, 2.0)), 24, 40
    boxes, again = crop.draw(rng(300), height, width), rng(300)
    areas = again.uniform(0.5, 1.0, (10,)).double() * (height * width)
    ratios = again.uniform(math.log(0.5), math.log(2.0), (10,)).double().exp()
    rejected = 0
    for row in range(300):
        found = None
        for area, ratio in zip(areas[row].tolist(), ratios[row].tolist(), strict=True):
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                found = (h, w)
                break
            rejected += 1
        assert (found or (24, 40)) == (int(boxes["height"][row]), int(boxes["width"][row]))
    assert rejected > 100


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (10, 10, (0, 0, 10, 10))]
)
def test_crop_falls_back_to_the_largest_centre_box_where_no_candidate_fits(
    height: int, width: int, box: tuple[int, ...]
) -> None:
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
    drawn = crop.draw(rng(50), height, width)
    boxes = torch.stack([drawn[name] for name in ("top", "left", "height", "width")], dim=1)
    fitting = (boxes == torch.tensor(box)).all(dim=1)
    assert fitting.all() if height != width else fitting.any()


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_random_crop_equals_torchvision_pad_then_crop(mode: str) -> None:
    images, crop = noise(24, 12, 16), RandomCrop(padding=4, mode=mode)
    corner = crop.draw(rng(24), 12, 16)
    padding = "constant" if mode == "zero" else mode

    def expected(row: int) -> Tensor:
        padded = reference.pad(images[row], [4, 4, 4, 4], padding_mode=padding)
        return reference.crop(padded, int(corner["top"][row]), int(corner["left"][row]), 12, 16)

    assert_each_sample(crop.apply(images, **corner), images, expected, 0)
    assert set(crop.draw(rng(1000), 12, 16)["top"].tolist()) == set(range(9))


def test_random_crop_refuses_to_reflect_more_than_the_image() -> None:
    with pytest.raises(DataError, match=r"random_crop.padding 8 cannot reflect 8 x 8 images; lower it"):
        RandomCrop(padding=8, mode="reflect")(noise(2, 8, 8), rng(2))


def test_horizontal_flip_mirrors_about_the_asked_share() -> None:
    images, flip = noise(32), HorizontalFlip(prob=0.3)
    hit = flip.draw(rng(32), 32, 32)["hit"]
    pick = lambda row: reference.horizontal_flip(images[row]) if hit[row] else images[row]  # noqa: E731
    assert_each_sample(flip.apply(images, hit), images, pick, 0)
    assert abs(float(flip.draw(rng(20_000), 1, 1)["hit"].float().mean()) - 0.3) < 0.02


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
def test_rotation_equals_torchvision_with_the_same_angles(height: int, width: int, interpolation: str) -> None:
    images = noise(24, height, width)
    rotation = Rotation(degrees=180, interpolation=interpolation, prob=0.8)
    drawn = rotation.draw(rng(24), height, width)

    def expected(row: int) -> Tensor:
        angle = float(drawn["angle"][row]) if drawn["hit"][row] else 0.0
        return reference.rotate(images[row], angle, InterpolationMode(interpolation))

    assert_each_sample(rotation.apply(images, **drawn), images, expected, ROTATED)
    angles = Rotation(degrees=20).draw(rng(5000), 1, 1)["angle"]
    assert -20 <= float(angles.min()) < -19.9
    assert 19.9 < float(angles.max()) <= 20


def test_rotation_fills_what_was_outside() -> None:
    images, rotation = noise(24), Rotation(degrees=180, interpolation="nearest", fill=0.75)
    drawn = rotation.draw(rng(24), 32, 32)

    def expected(row: int) -> Tensor:
        return reference.rotate(images[row], float(drawn["angle"][row]), InterpolationMode.NEAREST, fill=[0.75] * 3)

    assert_each_sample(rotation.apply(images, **drawn), images, expected, ROTATED)
    paper = torch.ones(8, 1, 32, 32)
    torch.testing.assert_close(Rotation(degrees=30, fill=1.0)(paper, rng(8)), paper)


def test_quarter_turns_equal_torchvision_rotations_and_come_equally_often() -> None:
    images, turn = noise(24), QuarterTurns()
    turns = turn.draw(rng(24), 32, 32)["turns"]
    rotated = lambda row: reference.rotate(images[row], 90.0 * int(turns[row]))  # noqa: E731
    assert_each_sample(turn.apply(images, turns), images, rotated, 0)
    counts = torch.bincount(turn.draw(rng(8000), 8, 8)["turns"])
    assert counts.shape == (4,)
    assert int(counts.min()) > 1850
    with pytest.raises(DataError, match="quarter_turns needs square images, got 8 x 9"):
        turn(noise(1, 8, 9), rng(1))


ADJUST = (
    ("brightness", reference.adjust_brightness),
    ("contrast", reference.adjust_contrast),
    ("saturation", reference.adjust_saturation),
    ("hue", reference.adjust_hue),
)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_equals_torchvision_adjustments_in_the_drawn_order(channels: int) -> None:
    images, jitter = noise(96, channels=channels), ColorJitter(hue=0.5)
    drawn = jitter.draw(rng(96), 32, 32)

    def expected(row: int) -> Tensor:
        image = images[row]
        for step in drawn["order"][row].tolist() if drawn["hit"][row] else []:
            name, adjust = ADJUST[step]
            image = adjust(image, float(drawn[name][row]))
        return image

    assert_each_sample(jitter.apply(images, **drawn), images, expected, PIXEL)


@pytest.mark.parametrize("only", range(4), ids=[name for name, _ in ADJUST])
def test_each_jitter_step_alone_equals_torchvision(only: int) -> None:
    images, jitter = noise(32), ColorJitter(hue=0.5, prob=1.0)
    drawn = jitter.draw(rng(32), 8, 8)
    neutral = {
        name: drawn[name] if step == only else torch.full((32,), float(step < 3))
        for step, (name, _) in enumerate(ADJUST)
    }
    name, adjust = ADJUST[only]
    result = jitter.apply(images, hit=drawn["hit"], order=drawn["order"], **neutral)
    assert_each_sample(result, images, lambda row: adjust(images[row], float(drawn[name][row])), PIXEL)


def test_color_jitter_draws_factors_in_simclr_ranges_and_every_order() -> None:
    drawn = ColorJitter(strength=0.5).draw(rng(20_000), 32, 32)
    assert abs(float(drawn["hit"].float().mean()) - 0.8) < 0.015
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ]:
        values = drawn[name]
        assert low <= float(values.min()) < low + 0.001
        assert high - 0.001 < float(values.max()) <= high
    assert len(drawn["order"].unique(dim=0)) == 24
    assert float(ColorJitter(brightness=3.0).draw(rng(1000), 1, 1)["brightness"].min()) >= 0


def test_grayscale_equals_torchvision_and_keeps_three_channels() -> None:
    images, grey = noise(32), Grayscale(prob=0.5)
    hit = grey.draw(rng(32), 32, 32)["hit"]
    pick = lambda row: reference.rgb_to_grayscale(images[row], 3) if hit[row] else images[row]  # noqa: E731
    assert_each_sample(grey.apply(images, hit), images, pick, 0)


def test_solarize_equals_torchvision_bit_for_bit() -> None:
    images, solarize = noise(32), Solarize(threshold=0.3, prob=0.5)
    hit = solarize.draw(rng(32), 32, 32)["hit"]
    pick = lambda row: reference.solarize(images[row], 0.3) if hit[row] else images[row]  # noqa: E731
    assert_each_sample(solarize.apply(images, hit), images, pick, 0)


def test_colour_operations_refuse_images_that_are_neither_grey_nor_rgb() -> None:
    for operation in (ColorJitter(), Grayscale()):
        with pytest.raises(DataError, match="works on grey or RGB images, got 4 channels"):
            operation(noise(2, channels=4), rng(2))


@pytest.mark.parametrize(("height", "width", "share", "kernel"), [(32, 32, 0.1, 3), (64, 96, 0.3, 19), (9, 9, 1.0, 9)])
def test_gaussian_blur_equals_torchvision_with_the_same_sigma(
    height: int, width: int, share: float, kernel: int
) -> None:
    images, blur = noise(24, height, width), GaussianBlur(kernel=share)
    drawn = blur.draw(rng(24), height, width)

    def expected(row: int) -> Tensor:
        sigma = [float(drawn["sigma"][row])]
        return reference.gaussian_blur(images[row], [kernel, kernel], sigma) if drawn["hit"][row] else images[row]

    assert_each_sample(blur.apply(images, **drawn), images, expected, PIXEL)
    sigmas = blur.draw(rng(5000), 1, 1)["sigma"]
    assert 0.1 <= float(sigmas.min()) < 0.105
    assert 1.995 < float(sigmas.max()) <= 2.0


@pytest.mark.parametrize(("side", "pixels"), [(16, 1), (20, 3), (32, 3), (96, 9), (224, 23), (300, 31)])
def test_blur_kernel_is_a_tenth_of_the_side_made_odd_as_in_simclr(side: int, pixels: int) -> None:
    assert 2 * GaussianBlur().radius(side, side) + 1 == pixels == 2 * (side // 10 // 2) + 1


def test_cutout_equals_torchvision_erase_of_the_clipped_square() -> None:
    images, cutout = noise(64, 20, 30), Cutout(size=0.5, fill=0.25, prob=0.8)
    drawn = cutout.draw(rng(64), 20, 30)

    def expected(row: int) -> Tensor:
        y, x = int(drawn["row"][row]), int(drawn["column"][row])
        top, left, bottom, right = max(y - 5, 0), max(x - 5, 0), min(y + 5, 20), min(x + 5, 30)
        value = torch.full((3, 1, 1), 0.25)
        return (
            reference.erase(images[row], top, left, bottom - top, right - left, value)
            if drawn["hit"][row]
            else images[row]
        )

    assert_each_sample(cutout.apply(images, **drawn), images, expected, 0)
    assert (drawn["row"] < 5).any(), "no square sticks out, so clipping is not tested"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RandomResizedCrop(scale=(0.5, 0.1)),
            r"random_resized_crop.scale \[0.5, 0.1\] must go from low to high; write",
        ),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), r"random_resized_crop.ratio \[2, 1\] must go from low to high"),
        (lambda: GaussianBlur(sigma=(2.0, 0.1)), r"gaussian_blur.sigma \[2, 0.1\] must go from low to high"),
        (lambda: ColorJitter(hue=0.3, strength=2.0), "more than half a turn; use a strength of at most 1.66667"),
    ],
)
def test_options_that_contradict_each_other_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class TestTorchvisionAdapter:
    def test_equals_the_transform_under_the_samples_own_seed(self) -> None:
        images, adapter = (
            noise(6),
            TorchvisionTransform("RandomAffine", {"degrees": 40, "translate": [0.2, 0.2]}, prob=0.7),
        )
        drawn = adapter.draw(rng(6), 32, 32)

        def expected(row: int) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(drawn["seed"][row]))
                changed = transforms.RandomAffine(degrees=40, translate=(0.2, 0.2))(images[row])
            return changed if drawn["hit"][row] else images[row]

        assert_each_sample(adapter.apply(images, **drawn), images, expected, 0)
        assert drawn["hit"].any()

    def test_interpolation_is_given_by_name(self) -> None:
        adapter = TorchvisionTransform("Resize", {"size": 16, "interpolation": "bicubic"})
        assert adapter.transform.interpolation is InterpolationMode.BICUBIC
        assert adapter(noise(3), rng(3)).shape == (3, 3, 16, 16)

    def test_overshoot_of_bicubic_steps_is_clipped(self) -> None:
        checkers = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
        adapter = TorchvisionTransform("Resize", {"size": 21, "interpolation": "bicubic", "antialias": False})
        assert float(adapter.transform(checkers).max()) > 1
        assert float(adapter(checkers, rng(1)).max()) == 1

    def test_transforms_of_bytes_get_bytes(self) -> None:
        adapter = TorchvisionTransform("RandomInvert", {"p": 1.0}, dtype="uint8")
        images = torch.tensor([0.0, 0.1, 0.5, 1.0]).expand(2, 3, 1, 4)
        result = adapter(images, rng(2))
        assert result.dtype == torch.float32
        expected = 1 - images.mul(255).round() / 255
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("RandomPerspectiv", {}, "is called 'RandomPerspectiv' - did you mean 'RandomPerspective'"),
            ("MixUp", {}, "no image transform of torchvision.transforms.v2 is called 'MixUp'"),
            ("RandomPerspective", {"distortion": 0.4}, "has no option 'distortion' - did you mean 'distortion_scale'"),
            ("RandomPerspective", {"distortion_scale": 4.0}, "RandomPerspective refuses .*between 0 and 1"),
            ("RandomAffine", {}, "RandomAffine refuses .*degrees"),
            ("Resize", {"size": 8, "interpolation": "cubic"}, "Resize refuses .*'cubic' is not a valid"),
        ],
    )
    def test_wrong_names_and_options_are_config_errors(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TorchvisionTransform(name, options)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            (
                "Normalize",
                {"mean": [0.5] * 3, "std": [0.2] * 3},
                r"Normalize gave values from -2\.\d+ to .*stay in \[0, 1\]",
            ),
            ("Grayscale", {}, r"Grayscale made \(1, 32, 32\) of a \(3, 32, 32\) image"),
            ("RandomResize", {"min_size": 16, "max_size": 30}, r"gives images of several sizes \["),
            ("RandomCrop", {"size": 64}, r"RandomCrop failed on a \(3, 32, 32\) float32 image"),
        ],
    )
    def test_results_that_are_no_images_are_config_errors(
        self, name: str, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            TorchvisionTransform(name, options)(noise(8), rng(8))
