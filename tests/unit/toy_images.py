"""Small colour images with something to learn, or with a way around it: what the ablations train on."""

import numpy as np

from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.types import Example


class Images:
    """`count` images, the i-th drawn by `draw(generator) -> (S, S, 3)`, all of them for training."""

    def __init__(self, draw, count):
        self.draw, self.count = draw, count

    def fingerprint(self):
        return {}

    def __iter__(self):
        for i in range(self.count):
            pixels = self.draw(np.random.default_rng(i)).clip(0, 255).astype(np.uint8)
            yield Example(key=str(i), image=pixels, split="train")


def make_store(folder, draw, count=64, size=16):
    """A store of such images; `draw` gets a generator and the side."""
    source = Images(lambda generator: draw(generator, size), count)
    ingest(source, folder, size=size, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(folder)


def shape(generator, size):
    """A square, a disc or a cross, of any colour on any other, anywhere."""
    y, x = np.mgrid[:size, :size]
    radius = generator.uniform(0.2, 0.32) * size
    dy, dx = (abs(axis - generator.uniform(radius, size - radius)) for axis in (y, x))
    square = (dy < 0.8 * radius) & (dx < 0.8 * radius)
    disc = dy**2 + dx**2 < radius**2
    cross = (np.minimum(dy, dx) < 0.3 * radius) & (np.maximum(dy, dx) < radius)
    chosen = (square, disc, cross)[generator.integers(3)]
    ground, ink = generator.uniform(0, 90, 3), generator.uniform(130, 255, 3)
    return np.where(chosen[..., None], ink, ground) + generator.normal(0, 6, (size, size, 3))


def lit_noise(generator, size):
    """Noise that gets brighter to the right and below: a tile's brightness tells its place, and nothing else does."""
    y, x = np.mgrid[:size, :size] / size
    grey = 60 + 70 * x + 60 * y + generator.normal(0, 25, (size, size))
    return np.repeat(grey[..., None], 3, axis=2)


def tinted_pattern(generator, size):
    """Random squares of 4 pixels under a tint of the image's own, which shows in every crop."""
    squares = 0.4 + 0.6 * generator.integers(0, 2, (size // 4, size // 4)).repeat(4, axis=0).repeat(4, axis=1)
    return squares[..., None] * generator.uniform(0.2, 1, 3) * 255 + generator.normal(0, 5, (size, size, 3))


def rare_colour(generator, size):
    """A nearly grey ground with a small disc of one of three vivid colours."""
    y, x = np.mgrid[:size, :size]
    ground = generator.uniform(90, 170) + generator.normal(0, 4, (size, size, 1))
    ground = ground + np.array([6, 0, -8]) * generator.uniform(0.3, 1.5)
    centre = generator.uniform(3, size - 3, 2)
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < generator.uniform(2, 4) ** 2
    vivid = np.array([[90, -50, -60], [-60, 60, -60], [-60, -60, 120]])[generator.integers(3)]
    return np.where(disc[..., None], ground + vivid, ground)
