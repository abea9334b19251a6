"""What `contrast init` tells of images by looking at a few: their kind, their size, their balance."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cl_core.data.splits import SplitRule
from cl_core.errors import DataError
from cl_core.types import Example
from pipelines.project.look import PICTURES, SAMPLE, look


class Listed:
    """A source of arrays written to files, with labels and splits where given."""

    def __init__(self, folder, pictures, labels=None, splits=None):
        self.examples = []
        for number, picture in enumerate(pictures):
            path = folder / f"{number:04}.png"
            (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
            label, split = labels[number] if labels else None, splits[number] if splits else None
            self.examples.append(Example(key=path.name, image=path, label=label, split=split))

    def fingerprint(self):
        return {}

    def __iter__(self):
        return iter(self.examples)


def seen(folder, pictures, **options):
    return look(Listed(folder, pictures, **options), folder)


def scene(number, shape=(60, 80)):
    """A bright sky above ground, both in colours of their own: it has an up."""
    rng = np.random.default_rng(number)
    pixels = np.empty((*shape, 3))
    pixels[:] = rng.uniform(0, 255, 3)
    pixels[: shape[0] // 2] = pixels[: shape[0] // 2] / 3 + 160
    return (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


def letter(number, paper="white", ink="black"):
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (90, 90), paper)
    ImageDraw.Draw(image).line([tuple(map(int, rng.integers(10, 80, 2))) for _ in range(5)], fill=ink, width=4)
    return image


def cell(number):
    """A stained disc near the middle, the same colour in all, no up."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:70, :70] - 35 + rng.integers(-4, 5, 2)[:, None, None]
    inside = (np.hypot(y, x) < rng.uniform(15, 25))[..., None]
    pixels = np.where(inside, (150, 90, 170), (235, 220, 230)) + rng.normal(0, 10, (70, 70, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def thing_on_white(number):
    """A shaded thing before a white wall, as in a shop's catalogue: two-valued it is not."""
    pixels = np.full((80, 80, 3), 255, dtype=np.uint8)
    pixels[25:55, 25:55] = np.linspace(0, 200, 30)[:, None, None] + np.array([30, 10, 0])
    return np.roll(pixels, number % 5, axis=0)


def test_photographs_line_drawings_and_crops_of_a_microscope_are_told_apart(tmp_path):
    makers = {"photographs": scene, "drawings": letter, "microscope": cell}
    for kind, maker in makers.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert seen(folder, [maker(number) for number in range(60)]).kind == kind


def test_things_before_white_walls_are_no_drawings(tmp_path):
    assert seen(tmp_path, [thing_on_white(number) for number in range(30)]).kind == "photographs"


def test_few_pictures_are_never_called_a_microscope_s(tmp_path):
    assert seen(tmp_path, [cell(number) for number in range(20)]).kind == "photographs"


def test_grey_is_what_hardly_one_picture_contradicts(tmp_path):
    grey = [Image.fromarray(scene(number)).convert("L") for number in range(40)]
    assert seen(tmp_path, grey).is_grey
    assert seen(tmp_path, [*grey[:39], scene(0)]).is_grey
    assert not seen(tmp_path, [*grey[:30], *map(scene, range(10))]).is_grey


@pytest.mark.parametrize(("paper", "ink", "found"), [("white", "black", "bright"), ("black", "white", "dark")])
def test_the_background_is_told(tmp_path, paper, ink, found):
    images = seen(tmp_path, [letter(number, paper, ink) for number in range(12)])
    assert (images.background, images.kind, images.is_grey) == (found, "drawings", True)
    assert images.look == "grey line drawings"


def test_tiny_and_elongated_images_are_told_by_the_median(tmp_path):
    assert seen(tmp_path, [scene(number, (20, 24)) for number in range(9)]).is_tiny
    images = seen(tmp_path, [scene(number, (40, 120)) for number in range(6)] + [scene(number) for number in range(5)])
    assert images.is_elongated
    assert not images.is_tiny
    assert "3.0 times as long as wide" in images.told()[0]


def test_images_are_counted_by_split_and_class(tmp_path):
    labels, splits = [*"aaaaaaab", "b", "a"], ["train", "test"] * 5
    images = seen(tmp_path, [scene(0)] * 10, labels=labels, splits=splits)
    assert (images.count, images.train, images.test, images.validation) == (10, 4, 5, 1)
    assert images.has_splits
    assert images.classes == 2
    assert images.largest == ("a", 0.8)
    assert images.is_unbalanced
    assert "'a' is 80% of the images, the accuracy of always answering it" in images.told()[-1]


def test_few_images_have_counted_splits_none_of_them_empty(tmp_path):
    images = seen(tmp_path, [scene(0)] * 20)
    assert images.rule == SplitRule(validation=2, test=4)
    assert (images.train, images.validation, images.test) == (14, 2, 4)


def test_no_more_than_a_sample_is_opened(tmp_path, monkeypatch):
    opened = []
    read = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *rest, **options: opened.append(file) or read(file, *rest, **options)
    )
    source = Listed(tmp_path, [scene(0, (10, 12))])
    source.examples = [Example(key=str(number), image=source.examples[0].image) for number in range(3000)]
    assert look(source, tmp_path).count == 3000
    assert len(opened) <= SAMPLE + PICTURES


def test_files_without_an_image_in_them_are_refused(tmp_path):
    source = Listed(tmp_path, [])
    (tmp_path / "a.png").write_bytes(b"nonsense")
    source.examples = [Example(key="a.png", image=Path(tmp_path / "a.png"))]
    with pytest.raises(DataError, match="none of the images looked at can be read"):
        look(source, tmp_path)
