"""Views of encoded stores: the batch that decodes late, crops from the stored files, draws, and who gets what."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resized_crop
from toy_photos import SIZE, make_store, photo

from cl_core.data import jpeg
from cl_core.data.lazy import LazyImages
from cl_core.data.sampling import SampleRng
from cl_core.data.store import Split, to_float
from cl_core.data.views import Chain, MaterializedViews, views_of, write_views
from cl_core.types import Views
from plugins.augmentations import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop

CPU = torch.device("cpu")
SIZES = [(60, 80), (200, 240), (64, 64), (40, 200), (33, 47), (300, 180)]
COUNT = 24
ROWS = torch.arange(COUNT)


class TwoViews(nn.Module):
    """As simclr's views."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        return Views(images=(self.chain(images, rng.child(0)), self.chain(images, rng.child(1))))


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [photo(i, *SIZES[i % len(SIZES)]) for i in range(COUNT)]


@pytest.fixture(scope="module")
def split(files, tmp_path_factory) -> Split:
    return make_store(tmp_path_factory.mktemp("encoded") / "store", files, max_shorter_side=400).split("train")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> tuple[Split, Split]:
    """The same images, square already, in either layout."""
    images = [photo(i, SIZE, SIZE) for i in range(COUNT)]
    folder: Path = tmp_path_factory.mktemp("squares")
    stores = [make_store(folder / str(side), images, max_shorter_side=side) for side in (SIZE, None)]
    return stores[0].split("train"), stores[1].split("train")


@pytest.fixture
def batch(split) -> LazyImages:
    return split.floats(ROWS, CPU)


def rng(rows: Tensor = ROWS, epoch: int = 0) -> SampleRng:
    return SampleRng(3, epoch, rows)


def chain(size: int | None = None) -> Chain:
    steps = [RandomResizedCrop(size=size), HorizontalFlip(), ColorJitter(), Grayscale(), GaussianBlur(kernel=0.2)]
    return Chain([(type(step).__name__, step) for step in steps])


class TestLazyImages:
    def test_shape_type_and_device_are_known_without_decoding(self, batch):
        assert batch.shape == (COUNT, 3, SIZE, SIZE)
        assert (batch.dtype, batch.device, batch.ndim, len(batch)) == (torch.float32, CPU, 4, COUNT)
        assert batch.size(1) == batch.shape[-3] == 3
        assert isinstance(batch, Tensor)
        assert batch._squares is None

    def test_it_is_the_squares_to_whoever_looks_at_it(self, split, batch):
        plain = to_float(split.images(ROWS))
        assert torch.equal(batch, plain)
        for made, expected in [
            (batch * 2, plain * 2),
            (1 - batch, 1 - plain),
            (batch[3:5, :, 1], plain[3:5, :, 1]),
            (batch.flip(-1), plain.flip(-1)),
            (torch.cat([batch, plain]), torch.cat([plain, plain])),
            (torch.where(batch > 0.5, batch, 0), torch.where(plain > 0.5, plain, 0)),
            (nn.functional.avg_pool2d(batch, 2), nn.functional.avg_pool2d(plain, 2)),
            (batch.clone(), plain),
        ]:
            assert type(made) is Tensor
            assert torch.equal(made, expected)
        assert np.array_equal(batch.numpy(), plain.numpy())

    def test_forgetting_lets_go_of_what_was_decoded(self, batch):
        expected = batch + 0
        RandomResizedCrop(size=8)(batch, rng())
        batch.forget()
        assert batch._squares is None
        assert not batch._files._decoded
        assert torch.equal(batch, expected)


class TestDraws:
    def test_boxes_of_equal_sizes_are_those_of_the_decoded_path(self):
        crop = RandomResizedCrop()
        same = crop.draw(rng(), torch.full((COUNT,), 60), torch.full((COUNT,), 80))
        for name, values in crop.draw(rng(), 60, 80).items():
            assert torch.equal(same[name], values)

    @pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (2.5, 3.0)])
    def test_every_image_has_the_boxes_it_would_have_alone(self, batch, ratio):
        crop = RandomResizedCrop(ratio=ratio)
        together = crop.draw(rng(), batch.heights, batch.widths)
        for i in range(COUNT):
            alone = crop.draw(rng(ROWS[i : i + 1]), *SIZES[i % len(SIZES)])
            assert {name: int(values[i]) for name, values in together.items()} == {
                name: int(value) for name, value in alone.items()
            }

    def test_what_follows_the_crop_draws_as_on_decoded_images(self, squares):
        lazy, plain = (split.floats(ROWS, CPU) for split in squares)
        assert isinstance(lazy, LazyImages)
        assert not isinstance(plain, LazyImages)
        ours, expected = chain()(lazy, rng()), chain()(plain, rng())
        # 8-bit crops are off by up to half a level; jitter of a factor 1.8 and hue stretch that.
        assert float((ours - expected).abs().mean()) < 1 / 255
        assert float((ours - expected).abs().amax(dim=(1, 2, 3)).median()) < 6 / 255


class TestCrops:
    # Crops of at least twice the view's side come from an image decoded at half its size or less; libjpeg averages
    # there, and the box's edges are rounded to whole pixels of the smaller image.
    @pytest.mark.parametrize(("size", "bound"), [(100, 0.5), (16, 4.0)])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_they_are_close_to_torchvisions_of_the_whole_image(self, files, batch, size, bound, interpolation):
        crop = RandomResizedCrop(size=size, interpolation=interpolation)
        boxes = crop.draw(rng(), batch.heights, batch.widths)
        made = crop(batch, rng())
        assert made.shape == (COUNT, 3, size, size)
        assert made.is_contiguous()
        assert made.min() >= 0
        assert made.max() <= 1
        errors = []
        for i, file in enumerate(files):
            image = pil_to_tensor(Image.open(io.BytesIO(file))).float()
            box = [int(boxes[name][i]) for name in ("top", "left", "height", "width")]
            mode = InterpolationMode(interpolation)
            expected = resized_crop(image, *box, [size, size], interpolation=mode, antialias=True).clamp(0, 255)
            errors.append(float((made[i] * 255 - expected).abs().mean()))
        assert np.mean(errors) < bound

    def test_small_views_are_decoded_at_a_fraction(self, batch):
        RandomResizedCrop(size=16, scale=(0.9, 1.0))(batch, rng())
        assert {fraction for _, fraction in batch._files._decoded} >= {2, 4}
        heights = {fraction: pixels.shape[0] for (n, fraction), pixels in batch._files._decoded.items() if n == 5}
        assert heights == {8: 38}

    def test_an_image_is_decoded_once_for_all_views_of_a_size(self, batch, monkeypatch):
        decodes = []
        whole = jpeg.JpegFiles._pixels
        monkeypatch.setattr(jpeg.JpegFiles, "_pixels", lambda *args: decodes.append(args[1]) or whole(*args))
        for view in range(3):
            RandomResizedCrop(size=200)(batch, rng().child(view))
        assert sorted(decodes) == list(range(COUNT))

    @pytest.mark.parametrize("size", [64, 16])
    def test_pixels_depend_on_neither_batch_nor_threads_nor_what_is_kept(self, split, monkeypatch, size):
        expected = chain(size)(split.floats(ROWS, CPU), rng())
        for rows in ROWS.split(5):
            assert torch.equal(chain(size)(split.floats(rows, CPU), rng(rows)), expected[rows])
        monkeypatch.setattr(jpeg, "KEPT_BYTES", 0)
        batch = split.floats(ROWS, CPU)
        assert torch.equal(chain(size)(batch, rng()), expected)
        assert not batch._files._decoded
        monkeypatch.setenv(jpeg.THREADS, "3")
        assert torch.equal(chain(size)(split.floats(ROWS, CPU), rng()), expected)

    def test_without_a_size_views_have_that_of_the_squares(self, batch):
        assert RandomResizedCrop()(batch, rng()).shape == (COUNT, 3, SIZE, SIZE)


class TestWhoGetsWhat:
    def test_an_augmentation_that_knows_nothing_of_it_gets_the_squares(self, split, batch):
        def invert(images: Tensor, rng: SampleRng) -> Tensor:
            return torch.where(rng.bernoulli(0.5)[:, None, None, None], 1 - images, images)

        unaware = Chain([("invert", invert), *chain().operations])
        assert torch.equal(unaware(batch, rng()), unaware(to_float(split.images(ROWS)), rng()))

    @pytest.mark.parametrize("touch", [lambda images, rng: images, lambda images, rng: images[:]])
    def test_what_one_view_overwrites_is_not_what_the_next_is_made_of(self, split, touch):
        steps = Chain([("touch", touch), ("flip", HorizontalFlip(prob=1.0)), ("jitter", ColorJitter(prob=1.0))])
        lazy, plain = split.floats(ROWS, CPU), to_float(split.images(ROWS))
        for view in range(2):
            assert torch.equal(steps(lazy, rng().child(view)), steps(plain.clone(), rng().child(view)))
        assert torch.equal(lazy, plain)

    def test_views_are_ordinary_tensors_and_nothing_stays_decoded(self, batch):
        views = views_of(TwoViews(Chain([])), batch, 0, 0, ROWS)
        assert [type(view) for view in views.images] == [Tensor, Tensor]
        views_of(TwoViews(chain()), batch, 0, 0, ROWS)
        assert not batch._files._decoded


def test_the_views_stage_writes_and_materialises(split, tmp_path):
    write_views(
        TwoViews(chain(size=24)),
        {"augment": chain(size=24)},
        split,
        tmp_path,
        seed=3,
        plan={},
        preview=4,
        materialize=2,
    )
    assert (tmp_path / "preview.png").is_file()
    read = MaterializedViews.open(tmp_path).views(1, ROWS)
    made = views_of(TwoViews(chain(size=24)), split.floats(ROWS, CPU), 3, 1, ROWS)
    for ours, expected in zip(read.images, made.images, strict=True):
        assert float((ours - expected).abs().max()) <= 0.5 / 255 + 1e-6
