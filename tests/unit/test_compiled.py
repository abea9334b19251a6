"""The compiled augmentations give what their torch versions give, for any layout, batch and number of threads."""

import pytest
import torch

from cl_core.data.sampling import SampleRng
from cl_core.data.views import Chain
from plugins.augmentations import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    compiled,
)

OPERATIONS = {
    "crop": RandomResizedCrop(),
    "crop cubic": RandomResizedCrop(interpolation="bicubic"),
    "crop enlarged": RandomResizedCrop(size=50, interpolation="bicubic"),
    "crop reduced": RandomResizedCrop(size=9, scale=(0.5, 1.0)),
    "crop reduced cubic": RandomResizedCrop(size=9, scale=(0.5, 1.0), interpolation="bicubic"),
    "flip": HorizontalFlip(),
    "jitter": ColorJitter(),
    "jitter without hue": ColorJitter(hue=0.0, prob=1.0),
    "gray": Grayscale(0.5),
    "blur": GaussianBlur(),
    "wide blur": GaussianBlur(kernel=0.4, sigma=(0.5, 5.0), prob=1.0),
}


def pictures(count=12, channels=3, height=32, width=40):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def rng(count=12):
    return SampleRng(1, 2, torch.arange(count))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", OPERATIONS)
def test_as_the_torch_version(name, layout, channels):
    operation, images = OPERATIONS[name], pictures(channels=channels).contiguous(memory_format=layout)
    drawn = operation.draw(rng(), *images.shape[-2:])
    expected = operation.apply(images, **drawn)
    assert torch.allclose(operation(images, rng()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_leaves_the_images_as_they_are(name):
    operation, images = OPERATIONS[name], pictures()
    assert not torch.equal(operation(images, rng()), images)


@pytest.mark.parametrize("name", OPERATIONS)
def test_same_bits_for_any_batch_and_any_number_of_threads(name):
    operation, images = OPERATIONS[name], pictures(48)
    whole = operation(images, rng(48))
    parts = [operation(images[rows], rng(48).rows(rows)) for rows in torch.arange(48).split(17)]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        on_threads = operation(images, rng(48))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(on_threads, whole)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch(name):
    assert len(OPERATIONS[name](pictures(0), rng(0))) == 0


def test_double_precision_and_gradients_take_the_torch_version():
    assert not compiled.takes(pictures().double())
    assert not compiled.takes(pictures().requires_grad_())
    images = pictures().requires_grad_()
    ColorJitter(prob=1.0)(images, rng()).sum().backward()
    assert images.grad is not None


def test_a_chain_overwrites_only_what_is_its_own():
    operations = [HorizontalFlip(), ColorJitter(), Grayscale(), Solarize(), GaussianBlur()]
    images = pictures()
    before = images.clone()
    views = Chain([(type(operation).__name__, operation) for operation in operations])(images, rng())
    assert torch.equal(images, before)
    expected = images
    for number, operation in enumerate(operations):
        expected = operation(expected, rng().child(number))
    assert torch.equal(views, expected)


def test_a_chain_leaves_its_input_alone_where_an_operation_returns_it():
    images = pictures()
    before = images.clone()
    same = lambda images, rng: images  # noqa: E731
    view = lambda images, rng: images[:, :, 1:]  # noqa: E731
    Chain([("same", same), ("view", view), ("flip", HorizontalFlip(1.0)), ("jitter", ColorJitter())])(images, rng())
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_chain_may_hand_on_images_in_any_layout(name):
    def interleaved(images, rng):
        return (images * 0.5).contiguous(memory_format=torch.channels_last)

    made = Chain([("interleaved", interleaved), (name, OPERATIONS[name])])(pictures(), rng())
    assert torch.equal(made, OPERATIONS[name](pictures() * 0.5, rng().child(1)))
