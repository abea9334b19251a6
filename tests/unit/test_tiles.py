"""Where the jigsaw puzzle cuts its tiles: geometry, offsets, and the way back to the image."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from plugins.encoders import resnet8
from plugins.methods import Jigsaw
from plugins.methods.tiles import TileGeometry, cut_tiles, zoomed

UNGUARDED = {"standardize": False, "gray_prob": 0.0, "channel_shift": 0, "min_crop": 1.0}


def jigsaw(seed: int = 0, **options: object) -> Jigsaw:
    torch.manual_seed(seed)
    return Jigsaw(resnet8(width=4), **{"tile_dim": 8, "hidden_dim": 16, **options})


def random_images(n: int = 6, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def index_images(n: int, side: int) -> Tensor:
    """Pixel (y, x) has the value y * side + x in every channel; exact in float32."""
    return torch.arange(side * side, dtype=torch.float32).reshape(1, 1, side, side).repeat(n, 3, 1, 1)


def tile_positions(tiles: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Top-left (y, x) of tiles cut from index images: two of (N, T, C)."""
    first = tiles[..., 0, 0].long()
    return first // side, first % side


@pytest.mark.parametrize(
    ("side", "grid", "cell", "tile"),
    [(32, 3, 10, 8), (32, 2, 16, 12), (64, 3, 21, 16), (96, 3, 32, 24), (255, 3, 85, 64)],
)
def test_geometry_is_that_of_the_paper_scaled_down(side, grid, cell, tile):
    shape = TileGeometry.of(torch.zeros(1, 3, side, side), grid=grid, share=0.75)
    assert (shape.cell, shape.tile, shape.slack) == (cell, tile, cell - tile)
    assert shape.room_x == shape.room_y == side - grid * cell


def test_cutting_equals_slicing_in_a_loop():
    images = random_images(3, 16)
    corners = torch.randint(0, 11, (3, 4, 3, 2), generator=torch.Generator().manual_seed(0))
    tiles = cut_tiles(images.to(memory_format=torch.channels_last), corners, 5)
    for n, t, c in itertools.product(range(3), range(4), range(3)):
        y, x = corners[n, t, c].tolist()
        assert torch.equal(tiles[n, t, c], images[n, c, y : y + 5, x : x + 5])


@pytest.mark.parametrize("grid", [2, 3])
def test_slot_k_shows_cell_k_of_its_row_of_the_table(grid):
    side, n = 32, 64
    method = jigsaw(grid=grid, **UNGUARDED)
    views = method.make_views(index_images(n, side), rng(n))
    y, x = tile_positions(views.images[0], side)
    cell, room = side // grid, side % grid
    order = method.permutations[views.targets]
    low_y, low_x = (order // grid * cell)[:, :, None], (order % grid * cell)[:, :, None]
    high = cell - views.images[0].shape[-1] + room
    assert ((y >= low_y) & (y <= low_y + high)).all()
    assert ((x >= low_x) & (x <= low_x + high)).all()


@pytest.mark.parametrize("grid", [2, 3])
def test_inverse_permutation_gives_the_crop_back_bit_for_bit(grid):
    side = 12  # a multiple of both grids, so that the crop is the whole image
    method = jigsaw(grid=grid, tile_share=1.0, **UNGUARDED)
    images = random_images(5, side)
    views = method.make_views(images, rng(5))
    for tiles, label, image in zip(views.images[0], views.targets, images, strict=True):
        inverse = method.permutations[label].argsort()
        rows = tiles[inverse].unflatten(0, (grid, grid))
        assert torch.equal(torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2), image)


def test_identity_label_leaves_the_tiles_in_order():
    method = jigsaw(tile_share=1.0, **UNGUARDED)
    n, side = 400, 12
    views = method.make_views(index_images(n, side), rng(n))
    y, x = tile_positions(views.images[0][views.targets == 0], side)
    assert len(y) > 0
    assert (y[:, :, 0] == torch.tensor([0, 0, 0, 4, 4, 4, 8, 8, 8])).all()
    assert (x[:, :, 0] == torch.tensor([0, 4, 8] * 3)).all()


@pytest.mark.parametrize(("side", "slack"), [(30, 2), (63, 5)])
def test_all_offsets_occur_including_both_ends_and_tiles_stay_in_their_cells(side, slack):
    n, cell = 300, side // 3
    method = jigsaw(**UNGUARDED)
    views = method.make_views(index_images(n, side), rng(n))
    for position in tile_positions(views.images[0], side):
        assert (position % cell).unique().tolist() == list(range(slack + 1))


def test_offsets_are_uniform_and_independent_between_tiles():
    n, side = 2000, 30
    method = jigsaw(**UNGUARDED)
    y, _ = tile_positions(method.make_views(index_images(n, side), rng(n)).images[0], side)
    offsets = (y % 10)[:, :, 0]
    shares = F.one_hot(offsets, 3).float().mean(dim=(0, 1))
    assert (shares - 1 / 3).abs().max() < 0.02
    correlation = torch.corrcoef(offsets.T.float()) - torch.eye(9)
    assert correlation.abs().max() < 0.1


def test_gaps_between_neighbours_lie_in_zero_to_twice_the_slack():
    n, side = 500, 30
    method = jigsaw(**UNGUARDED)
    views = method.make_views(index_images(n, side), rng(n))
    y, _ = tile_positions(views.images[0], side)
    back = method.permutations[views.targets].argsort(dim=1)
    y = y[:, :, 0].gather(1, back).unflatten(1, (3, 3))
    gaps = y[:, 1:] - y[:, :-1] - 8
    assert gaps.unique().tolist() == [0, 1, 2, 3, 4]


def test_tiles_without_jitter_sit_in_the_middle():
    method = jigsaw(jitter=False, **UNGUARDED)
    y, x = tile_positions(method.make_views(index_images(20, 30), rng(20)).images[0], 30)
    assert (y % 10 == 1).all()
    assert (x % 10 == 1).all()


def test_crop_reaches_every_place_of_the_image():
    method = jigsaw(jitter=False, **UNGUARDED)
    y, _ = tile_positions(method.make_views(index_images(100, 32), rng(100)).images[0], 32)
    assert ((y - 1) % 10).unique().tolist() == [0, 1, 2]


def test_channels_of_a_tile_shift_apart_but_stay_in_the_cell():
    n, side = 500, 30
    method = jigsaw(**{**UNGUARDED, "channel_shift": 1})
    y, _ = tile_positions(method.make_views(index_images(n, side), rng(n)).images[0], side)
    offsets = y % 10
    assert offsets.unique().tolist() == [0, 1, 2]
    apart = (offsets[..., 0] - offsets[..., 1]).unique().tolist()
    assert apart == [-2, -1, 0, 1, 2]
    assert (F.one_hot(offsets, 3).float().mean(dim=(0, 1, 2)) - 1 / 3).abs().max() < 0.02
    assert (y // 10 == y[..., :1] // 10).all()


def test_images_too_small_for_the_grid_are_refused():
    with pytest.raises(ConfigError, match=r"cuts 4x4 px images into tiles of 1 px; a tile needs 2 px: raise data.size"):
        jigsaw().make_views(random_images(2, 4), rng(2))


# The part of the image that a puzzle is made of


def test_zooming_to_the_whole_image_changes_nothing():
    images = random_images(3)
    place = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(zoomed(images, torch.ones(3), place), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("place", "top"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_zooming_equals_the_resized_crop_of_torchvision(place, top):
    images = random_images(2)
    left = 8 - top
    places = torch.tensor([[place, 1 - place]]).expand(2, 2)
    expected = resized_crop(images, top, left, 24, 24, [32, 32], antialias=False)
    inside = (..., slice(2, -2), slice(2, -2))  # at its rim torchvision's crop does not see the pixels around it
    torch.testing.assert_close(zoomed(images, torch.full((2,), 0.75), places)[inside], expected[inside])


def test_the_part_has_at_least_the_asked_share_and_lies_anywhere_in_the_image():
    n, side = 500, 32
    position = (torch.arange(side) + 0.5).expand(n, 3, side, side)
    method = jigsaw(**{**UNGUARDED, "min_crop": 0.6}, jitter=False, tile_share=1.0, grid=2)
    tiles = method.make_views(position, rng(n)).images[0]
    low, high = tiles.amin(dim=(1, 2, 3, 4)), tiles.amax(dim=(1, 2, 3, 4))
    shares = (high - low) / (side - 1)
    assert 0.59 < shares.min() < 0.63
    assert 0.97 < shares.max() <= 1.001
    assert low.min() < 0.7
    assert high.max() > side - 0.7


def test_resampling_hides_the_block_grid_of_jpeg_files():
    n, side = 1000, 32
    position = (torch.arange(side) + 0.5).expand(n, 3, side, side)

    def known(min_crop: float) -> float:
        """How well a cell is known from where the 8 px grid lies in its tile: 1 for certain, 0 for not at all."""
        method = jigsaw(**{**UNGUARDED, "min_crop": min_crop})
        views = method.make_views(position, rng(n))
        cell = method.permutations[views.targets] % 3
        phase = torch.polar(torch.ones(n, 9), views.images[0][:, :, 0, 4, 4] * math.pi / 4)
        return max(phase[cell == column].mean().abs().item() for column in range(3))

    assert known(1.0) > 0.6
    assert known(0.6) < 0.3
