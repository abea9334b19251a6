"""Detectors of shortcuts in cut, turned and halved images: each fires on a rigged case and is quiet on a clean one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.assembly import PixelEncoder
from cl_core.data.sampling import SampleRng
from cl_core.types import Encoder, Sample, StepOutput
from plugins.methods import ContextPrediction, Counting, Jigsaw, Rotation
from plugins.methods.context_detectors import gap_cliff, patch_place, single_patch
from plugins.methods.context_prediction import STEPS
from plugins.methods.counting import counts, resampling
from plugins.methods.jigsaw_detectors import border_costs, jigsaw_guards, jigsaw_statistics, tile_place
from plugins.methods.rotation import rotation_bars

UNGUARDED = {
    "tile_share": 1.0, "jitter": False, "standardize": False, "gray_prob": 0.0, "channel_shift": 0, "min_crop": 1.0
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def sample(images: Tensor, seed: int = 0) -> Sample:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Sample(images=images, labels=labels, rng=SampleRng(seed, 0, torch.arange(len(images))))


def noise(n: int = 60, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def ramps(n: int = 60, side: int = 32, seed: int = 0) -> Tensor:
    """Colours that say where a pixel lies: red to the right, green downwards; a little noise."""
    place = torch.linspace(0.1, 0.9, side)
    red, green = place.expand(side, side), place[:, None].expand(side, side)
    return (torch.stack([red, green, 0.5 + 0 * red]) + 0.02 * noise(n, side, seed)).clamp(0, 1)


def smooth(n: int = 60, side: int = 32, seed: int = 0) -> Tensor:
    """Noise that neighbouring pixels share and pixels four apart do not."""
    return F.avg_pool2d(noise(n, side + 2, seed), 3, stride=1)


def jigsaw(**options: object) -> Jigsaw:
    torch.manual_seed(0)
    return Jigsaw(PixelEncoder(), **{"tile_dim": 4, "hidden_dim": 8, **options}).eval()


class BorderSolver(Jigsaw):
    """Solves puzzles by facing borders alone."""

    def logits(self, tiles: Tensor) -> Tensor:
        return -border_costs(tiles, self.permutations)


def border_costs_by_the_book(tiles: Tensor, table: Tensor) -> Tensor:
    """Lay the tiles out, walk over all seams."""
    side = round(table.shape[1] ** 0.5)
    costs = torch.zeros(len(tiles), len(table))
    for (n, puzzle), (p, row) in itertools.product(enumerate(tiles), enumerate(table)):
        cell = {int(c): puzzle[slot] for slot, c in enumerate(row)}
        for y, x in itertools.product(range(side), repeat=2):
            if x + 1 < side:
                costs[n, p] += (cell[y * side + x][..., -1] - cell[y * side + x + 1][..., 0]).abs().sum()
            if y + 1 < side:
                costs[n, p] += (cell[y * side + x][:, -1] - cell[(y + 1) * side + x][:, 0]).abs().sum()
    return costs


@pytest.mark.parametrize("grid", [2, 3])
def test_border_costs_are_those_of_the_seams_of_each_layout(grid):
    table = jigsaw(grid=grid).permutations[:6]
    tiles = torch.rand(3, grid**2, 3, 4, 4)
    torch.testing.assert_close(border_costs(tiles, table), border_costs_by_the_book(tiles, table))


def test_colours_that_tell_the_place_solve_unguarded_puzzles_by_statistics_alone():
    found = jigsaw_statistics(jigsaw(**UNGUARDED), sample(ramps()), sample(ramps(seed=1), 1))
    assert found.state == "warning"
    assert found.figures["statistics"] == 1.0


def test_closed_gaps_are_found_by_facing_borders():
    found = jigsaw_statistics(jigsaw(**UNGUARDED), sample(smooth()), sample(smooth(seed=1), 1))
    assert found.state == "warning"
    assert found.figures["borders"] > 0.9
    assert found.figures["statistics"] < 0.2


def test_guards_leave_nothing_to_statistics():
    found = jigsaw_statistics(jigsaw(), sample(noise()), sample(noise(seed=1), 1))
    assert found.state == "fine"
    assert found.against["chance"] == pytest.approx(1 / 72)


def test_a_network_that_matches_borders_fails_under_the_guards():
    torch.manual_seed(0)
    method = BorderSolver(PixelEncoder(), **UNGUARDED).eval()
    found = jigsaw_guards(method, sample(smooth()))
    assert found.state == "warning"
    assert found.figures["as trained"] == found.figures["guards off"] > 0.9
    assert found.figures["guards on"] < 0.5


def test_taking_the_gap_away_shows_what_a_guarded_network_could_do_with_it():
    torch.manual_seed(0)
    method = BorderSolver(PixelEncoder(), min_crop=1.0, standardize=False).eval()
    found = jigsaw_guards(method, sample(smooth()))
    assert found.figures["as trained"] < 0.5
    assert found.figures["gap closed"] > 0.9
    assert method.tile_share == 0.75, "the method itself must stay as it was"


def test_tiles_that_betray_their_place_are_noticed():
    leaky = tile_place(jigsaw(standardize=False, gray_prob=0.0), sample(ramps()), sample(ramps(seed=1), 1))
    assert leaky.state == "warning"
    assert leaky.figures["accuracy"] > 0.9
    clean = tile_place(jigsaw(standardize=False), sample(noise(120)), sample(noise(120, seed=1), 1))
    assert clean.state == "fine"
    assert clean.figures["accuracy"] == pytest.approx(1 / 9, abs=0.05)


class LineFollower(ContextPrediction):
    """Answers with the side along which facing borders differ least; single figures as set."""

    single = 1 / 8

    def forward(self, views: object) -> StepOutput:
        first, second = views.images[0].unbind(dim=1)
        costs = torch.stack([_seam(first, second, *step) for step in STEPS], dim=1)
        accuracy = (costs.argmin(dim=1) == views.targets).float().mean()
        metrics = {"accuracy": accuracy, "single_patch_accuracy": torch.tensor(self.single)}
        return StepOutput(loss=accuracy, metrics=metrics)


def _seam(first: Tensor, second: Tensor, down: int, right: int) -> Tensor:
    """Mean difference along the border across which the second patch would lie; of the corner where diagonal."""
    ends = {1: (slice(-1, None), slice(0, 1)), -1: (slice(0, 1), slice(-1, None)), 0: (slice(None), slice(None))}
    (y0, y1), (x0, x1) = ends[down], ends[right]
    return (first[..., y0, x0] - second[..., y1, x1]).abs().flatten(1).mean(dim=1)


class PlaceReader(LineFollower):
    """Answers from the colours of ramps, whatever the gap."""

    def forward(self, views: object) -> StepOutput:
        place = views.images[0].mean(dim=(3, 4))[:, :, :2]  # (N, 2, (x, y))
        step = (place[:, 1] - place[:, 0]).flip(1)
        sides = torch.tensor([[y, x] for y, x in STEPS]).float()
        accuracy = (torch.cdist(step * 3, sides).argmin(dim=1) == views.targets).float().mean()
        return StepOutput(
            loss=accuracy, metrics={"accuracy": accuracy, "single_patch_accuracy": torch.tensor(self.single)}
        )


def pairs(kind: type[ContextPrediction]) -> ContextPrediction:
    return kind(PixelEncoder(), mode="pair", patch=8, colour="none", standardize=False, min_crop=1.0).eval()


def test_an_accuracy_that_dies_with_the_gap_is_line_following():
    found = gap_cliff(pairs(LineFollower), sample(smooth(200)))
    assert found.state == "warning"
    assert found.figures["gap 0 px"] > 2 * found.figures["gap 4 px"]


def test_an_accuracy_that_survives_the_gap_is_not():
    found = gap_cliff(pairs(PlaceReader), sample(ramps(200)))
    assert found.state == "fine"
    assert list(found.figures) == ["gap 0 px", "gap 2 px", "gap 4 px"]
    assert set(found.figures.values()) == {1.0}


def test_gaps_that_do_not_fit_are_left_out():
    found = gap_cliff(ContextPrediction(PixelEncoder(), patch=9, gap=2, jitter=0).eval(), sample(noise(8)))
    assert list(found.figures) == ["gap 0 px", "gap 2 px"]


def test_a_single_patch_that_knows_the_answer_is_noticed():
    method = pairs(PlaceReader)
    method.single = 0.6
    assert single_patch(method, sample(ramps())).state == "warning"
    method.single = 1 / 8
    honest = single_patch(method, sample(ramps()))
    assert (honest.state, honest.against) == ("fine", {"chance": pytest.approx(1 / 8), "most": 1.0})


def test_patches_that_betray_their_place_are_noticed():
    method = ContextPrediction(PixelEncoder(), colour="none", standardize=False, min_crop=1.0).eval()
    assert patch_place(method, sample(ramps()), sample(ramps(seed=1), 1)).state == "warning"
    assert patch_place(method, sample(noise(120)), sample(noise(120, seed=1), 1)).state == "fine"


class Sharpness(Encoder):
    """How much neighbouring pixels differ."""

    out_dim = 1

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        return {"only": (images[..., 1:] - images[..., :-1]).abs()}

    def forward(self, images: Tensor) -> Tensor:
        return (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))[:, None]


def as_it_is(images: Tensor, rng: SampleRng) -> Tensor:
    return images


@pytest.mark.parametrize(("encoder", "state"), [(Sharpness(), "warning"), (PixelEncoder(), "fine")])
def test_a_resampler_s_trace_is_noticed_where_the_features_show_it(encoder, state):
    method = Counting(encoder, as_it_is, resampler="area", standardize=False, gray_prob=0.0).eval()
    assert resampling(method, sample(noise()), sample(noise(seed=1), 1)).state == state


class Blobs(Counting):
    """Counts 1 where anything bright is seen."""

    def count(self, images: Tensor) -> Tensor:
        return (images.amax(dim=(1, 2, 3)) > 0.5).float()[:, None]


class Everything(Counting):
    def count(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 2)


class Nothing(Counting):
    def count(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)


def test_counts_that_add_up_have_no_error_and_others_the_exact_one():
    images = torch.zeros(5, 3, 16, 16)
    images[:, :, 2:6, 9:13] = 1  # inside one quadrant, and still bright at half the size
    exact, constant, dead = (
        counts(kind(PixelEncoder(), as_it_is, standardize=False).eval(), sample(images))
        for kind in (Blobs, Everything, Nothing)
    )
    assert (exact.state, exact.figures["relative error"]) == ("fine", 0.0)
    assert (constant.state, constant.figures["relative error"]) == ("warning", 9.0)  # (1 - 4)^2 / 1
    assert (dead.state, dead.figures) == ("warning", {"relative error": 1.0, "active": 0.0, "dead counts": 1.0})


class Upright(Rotation):
    """Knows every turn."""

    def forward(self, views: object) -> StepOutput:
        return StepOutput(loss=torch.zeros(()), metrics={"accuracy": torch.tensor(1.0)})


def barred(images: Tensor, rng: SampleRng) -> Tensor:
    """A black bar on top, as a careless crop leaves it."""
    return F.pad(images[..., 2:, :], (0, 0, 2, 0))


@pytest.mark.parametrize(("augment", "state", "borders"), [(barred, "warning", 1.0), (as_it_is, "fine", 0.25)])
def test_bars_at_the_border_give_the_turn_away(augment, state, borders):
    found = rotation_bars(Upright(PixelEncoder(), augment).eval(), sample(noise()), sample(noise(seed=1), 1))
    assert found.state == state
    assert found.figures["single-colour borders"] == pytest.approx(borders, abs=0.12)


def test_an_untrained_rotation_network_is_reported_as_solving_nothing():
    torch.manual_seed(0)
    method = Rotation(PixelEncoder(), as_it_is).eval()
    nn.init.zeros_(method.classifier.weight)
    found = rotation_bars(method, sample(noise()), sample(noise(seed=1), 1))
    assert (found.state, found.text) == ("warning", "the network itself answers no better than by chance")
