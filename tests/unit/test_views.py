"""The chain, the files of the views stage, and views read back from disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cl_core.data.files import sha256_file
from cl_core.data.preview import draw_preview
from cl_core.data.sampling import SampleRng
from cl_core.data.shards import PixelWriter, read_shard
from cl_core.data.store import Split, to_float
from cl_core.data.views import Chain, MaterializedViews, views_of, write_views
from cl_core.errors import DataError
from cl_core.types import Method, StepOutput, Views
from plugins.augmentations import ColorJitter, Grayscale, HorizontalFlip, RandomResizedCrop

SIDE, COUNT = 16, 300
PLAN = {"method": {"name": "two", "options": {}}, "chains": {"augment": [{"name": "crop", "options": {}}]}}


class TwoViews(Method):
    """Two views from one chain, as contrastive methods make them."""

    def __init__(self, augment: Chain) -> None:
        super().__init__()
        self.encoder, self.augment = nn.Identity(), augment

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        return Views(images=tuple(self.augment(images, rng.child(view)) for view in range(2)))

    def forward(self, views: Views) -> StepOutput:
        return StepOutput(loss=views.images[0].mean())


class Quarters(Method):
    """Four standardised tiles in drawn order, with a target and an extra: everything that Views can carry."""

    def __init__(self, augment: Chain) -> None:
        super().__init__()
        self.encoder, self.augment = nn.Identity(), augment

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        half = SIDE // 2
        tiles = self.augment(images, rng.child(0)).unfold(2, half, half).unfold(3, half, half)
        tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (N, 4, C, h, w)
        order = rng.child(1).permutation(4)
        tiles = tiles[torch.arange(len(images))[:, None], order]
        std, mean = torch.std_mean(tiles, dim=(2, 3, 4), keepdim=True)
        return Views(images=((tiles - mean) / (std + 1e-3),), targets=order[:, 0], extras={"order": order})

    def forward(self, views: Views) -> StepOutput:
        return StepOutput(loss=views.images[0].mean())


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Smooth pictures; rows 0 to 29 are of one colour each."""
    folder = tmp_path_factory.mktemp("store")
    coarse = SampleRng(1, 1, torch.arange(COUNT)).uniform(shape=(3, 4, 4))
    coarse[:30] = coarse[:30, :, :1, :1]
    pixels = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear").mul(255).round().to(torch.uint8)
    writer = PixelWriter(folder, "train", SIDE)
    for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        writer.add(f"{row:04d}.png", row % 3, image)
    return Split("train", [read_shard(folder / shard["file"]) for shard in writer.close()], image_size=SIDE, channels=3)


@pytest.fixture
def chain() -> Chain:
    crop = RandomResizedCrop(scale=(0.3, 1.0), interpolation="bicubic")
    return Chain(
        [("random_resized_crop", crop), ("horizontal_flip", HorizontalFlip()), ("color_jitter", ColorJitter())]
    )


def write(method: Method, chain: Chain, split: Split, out: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"seed": 5, "plan": PLAN, "preview": 4, "materialize": 0, **changes}
    write_views(method, {"augment": chain}, split, out, **options)
    return out


def on_the_fly(method: Method, split: Split, epoch: int, rows: Tensor) -> Views:
    return views_of(method, to_float(split.images(rows)), 5, epoch, rows)


class TestChain:
    def test_operation_k_draws_from_child_k(self, chain: Chain, split: Split) -> None:
        images, rng = to_float(split.images(torch.arange(8))), SampleRng(0, 0, torch.arange(8))
        expected = images
        for number, (_, operation) in enumerate(chain.operations):
            expected = operation(expected, rng.child(number))
        assert torch.equal(chain(images, rng), expected)
        assert chain.names == ["random_resized_crop", "horizontal_flip", "color_jitter"]

    def test_options_of_one_operation_leave_the_draws_of_the_next_ones(self, split: Split) -> None:
        """Jitter of strength 0 changes no pixel, whether it draws for all samples or for none."""
        images, rng = to_float(split.images(torch.arange(30, 94))), SampleRng(0, 0, torch.arange(64))
        flip = HorizontalFlip()
        results = [
            Chain([("color_jitter", ColorJitter(prob=prob, strength=0.0)), ("horizontal_flip", flip)])(images, rng)
            for prob in (0.0, 1.0)
        ]
        torch.testing.assert_close(*results, atol=1e-6, rtol=0)
        assert not torch.equal(results[0], images)

    def test_empty_chain_gives_the_images(self, split: Split) -> None:
        images = to_float(split.images(torch.arange(3)))
        assert torch.equal(Chain([])(images, SampleRng(0, 0, torch.arange(3))), images)

    @pytest.mark.parametrize("batch", [1, 7, 256])
    def test_views_of_a_sample_are_within_1e_6_for_every_batch_size(
        self, chain: Chain, split: Split, batch: int
    ) -> None:
        method, rows = TwoViews(chain), torch.arange(256)
        together = on_the_fly(method, split, 3, rows)
        for part in rows[: min(256, 6 * batch)].split(batch):
            for view, whole in zip(on_the_fly(method, split, 3, part).images, together.images, strict=True):
                torch.testing.assert_close(view, whole[part], atol=1e-6, rtol=0)

    def test_views_differ_between_views_epochs_and_seeds(self, chain: Chain, split: Split) -> None:
        method, rows = TwoViews(chain), torch.arange(40, 60)
        images = to_float(split.images(rows))
        made = [views_of(method, images, seed, epoch, rows).images for seed, epoch in ((0, 0), (0, 1), (1, 0))]
        tensors = [view for views in made for view in views]
        for k, first in enumerate(tensors):
            assert all(float((first - second).abs().mean()) > 0.02 for second in tensors[:k])

    def test_views_carry_no_gradient(self, split: Split) -> None:
        scale = nn.Parameter(torch.ones(()))
        method = TwoViews(Chain([("scale", lambda images, rng: images * scale)]))
        assert not on_the_fly(method, split, 0, torch.arange(2)).images[0].requires_grad


class TestFiles:
    def test_everything_but_timing_is_the_same_bytes_every_time(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        first, again = (write(Quarters(chain), chain, split, tmp_path / name, materialize=1) for name in "ab")
        names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
        assert names == [
            "materialized/epoch-000/extra-order.npy",
            "materialized/epoch-000/targets.npy",
            "materialized/epoch-000/view-0.npy",
            "plan.json",
            "preview.png",
            "statistics.json",
            "timing.json",
        ]
        for name in set(names) - {"timing.json"}:
            assert (first / name).read_bytes() == (again / name).read_bytes(), name

    def test_plan_says_what_the_stage_knows_and_what_the_views_are(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        plan = json.loads((write(TwoViews(chain), chain, split, tmp_path) / "plan.json").read_text())
        view = {"shape": [3, SIDE, SIDE], "dtype": "float32"}
        end = {"views": [view, view], "targets": False, "materialized": None}
        assert plan == {"format": "views/1", "seed": 5, **PLAN, **end}
        tiles = json.loads((write(Quarters(chain), chain, split, tmp_path) / "plan.json").read_text())
        assert tiles["views"] == [{"shape": [4, 3, SIDE // 2, SIDE // 2], "dtype": "float32"}]
        assert tiles["targets"] is True

    def test_statistics_are_those_of_the_raw_images_and_of_epoch_0(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        statistics = json.loads((write(TwoViews(chain), chain, split, tmp_path) / "statistics.json").read_text())
        rows = torch.arange(COUNT)
        seen = [to_float(split.images(rows)), *on_the_fly(TwoViews(chain), split, 0, rows).images]
        assert statistics["images"] == COUNT
        for figures, images in zip([statistics["raw"], *statistics["views"]], seen, strict=True):
            assert figures["mean"] == pytest.approx(images.mean(dim=(0, 2, 3)).tolist(), abs=2e-5)
            assert figures["std"] == pytest.approx(images.std(dim=(0, 2, 3)).tolist(), abs=2e-4)
            assert figures["range"] == pytest.approx([images.min().item(), images.max().item()], abs=2e-5)
        assert statistics["raw"]["near_constant"] == 0.1

    def test_grey_tiles_count_as_near_constant_images(self, split: Split, tmp_path: Path) -> None:
        chain = Chain([("blacken", lambda images, rng: images * 0), ("grayscale", Grayscale())])
        statistics = json.loads((write(Quarters(chain), chain, split, tmp_path) / "statistics.json").read_text())
        assert statistics["views"][0]["near_constant"] == 1.0

    def test_views_that_are_not_finite_are_a_data_error(self, split: Split, tmp_path: Path) -> None:
        chain = Chain([("divide", lambda images, rng: images / 0)])
        with pytest.raises(DataError, match="view 1 has values that are not finite; look for the operation"):
            write(TwoViews(chain), chain, split, tmp_path)

    def test_timing_lists_every_operation_of_every_chain(self, chain: Chain, split: Split, tmp_path: Path) -> None:
        write_views(
            TwoViews(chain),
            {"augment_a": chain, "augment_b": Chain([])},
            split,
            tmp_path,
            seed=0,
            plan=PLAN,
            preview=1,
            materialize=0,
        )
        chains = json.loads((tmp_path / "timing.json").read_text())["chains"]
        assert [cost["name"] for cost in chains["augment_a"]] == chain.names
        assert all(cost["ms_per_1000_images"] > 0 for cost in chains["augment_a"])
        assert chains["augment_b"] == []

    def test_empty_split_is_a_data_error(self, chain: Chain, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="split 'train' has no images to make views of"):
            write(TwoViews(chain), chain, Split("train", [], image_size=SIDE, channels=3), tmp_path)

    def test_second_run_without_materialisation_removes_the_first_ones_views(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        write(TwoViews(chain), chain, split, tmp_path, materialize=1)
        assert (tmp_path / "materialized").is_dir()
        write(TwoViews(chain), chain, split, tmp_path)
        assert not (tmp_path / "materialized").exists()


class TestPreview:
    def test_has_a_row_per_image_and_a_column_for_the_original_and_each_view(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        with Image.open(write(TwoViews(chain), chain, split, tmp_path, preview=5) / "preview.png") as image:
            assert image.format == "PNG"
            assert image.size == (3 * 136 + 8, 5 * 136 + 28)

    def test_shows_original_pixels_enlarged_eightfold(self) -> None:
        originals = SampleRng(0, 0, torch.arange(2)).uniform(shape=(3, SIDE, SIDE))
        sheet = np.asarray(Image.open(io.BytesIO(draw_preview(originals, Views(images=(1 - originals,))))))
        for column, images in enumerate((originals, 1 - originals)):
            for row in range(2):
                top, left = 28 + row * 136, 8 + column * 136
                cell = sheet[top : top + 128 : 8, left : left + 128 : 8]
                assert np.array_equal(cell, images[row].mul(255).round().byte().permute(1, 2, 0).numpy())

    def test_standardised_tiles_are_stretched_and_laid_out_in_reading_order(self) -> None:
        levels = torch.tensor([-3.0, -1.0, 1.0, 3.0])
        tiles = levels[None, :, None, None, None].expand(1, 4, 3, 6, 6)
        page = draw_preview(torch.zeros(1, 3, SIDE, SIDE), Views(images=(tiles,)))
        cell = np.asarray(Image.open(io.BytesIO(page)))[28 : 28 + 128, 144 : 144 + 128, 0]
        quarters = [cell[32, 32], cell[32, 96], cell[96, 32], cell[96, 96]]
        assert quarters == [0, 85, 170, 255]

    @pytest.mark.parametrize(("channels", "side"), [(1, 16), (2, 16), (3, 300)])
    def test_takes_any_number_of_channels_and_images_larger_than_a_cell(self, channels: int, side: int) -> None:
        view = torch.full((2, channels, side, side), 0.5)
        page = Image.open(io.BytesIO(draw_preview(torch.zeros(2, 3, SIDE, SIDE), Views(images=(view,)))))
        assert page.getpixel((144 + 64, 28 + 64)) == (128, 128, 128)


class TestMaterializedViews:
    def test_views_in_the_unit_interval_come_back_within_half_a_grey_level(
        self, chain: Chain, split: Split, tmp_path: Path
    ) -> None:
        method = TwoViews(chain)
        stored = MaterializedViews.open(write(method, chain, split, tmp_path, materialize=2))
        assert stored is not None
        rows = torch.tensor([299, 7, 256, 7])
        for epoch in (0, 1, 2, 5):
            expected, found = on_the_fly(method, split, epoch % 2, rows), stored.views(epoch, rows)
            assert found.targets is None
            for view, made in zip(found.images, expected.images, strict=True):
                assert view.dtype == torch.float32
                torch.testing.assert_close(view, made, atol=0.5 / 255 + 1e-6, rtol=0)
        assert not torch.equal(stored.views(0, rows).images[0], stored.views(1, rows).images[0])

    def test_standardised_tiles_targets_and_extras_come_back(self, chain: Chain, split: Split, tmp_path: Path) -> None:
        method = Quarters(chain)
        stored = MaterializedViews.open(write(method, chain, split, tmp_path, materialize=1))
        assert stored is not None
        rows = torch.arange(100, 300, 3)
        expected, found = on_the_fly(method, split, 0, rows), stored.views(0, rows)
        torch.testing.assert_close(found.images[0], expected.images[0], atol=1e-3, rtol=1e-3)  # float16
        assert torch.equal(found.targets, expected.targets)
        assert torch.equal(found.extras["order"], expected.extras["order"])
        assert found.extras["order"].dtype == torch.int64

    def test_plan_lists_every_file_with_its_hash(self, chain: Chain, split: Split, tmp_path: Path) -> None:
        write(TwoViews(chain), chain, split, tmp_path, materialize=2)
        plan = json.loads((tmp_path / "plan.json").read_text())["materialized"]
        assert (plan["epochs"], plan["rows"]) == (2, COUNT)
        assert list(plan["files"]) == [f"epoch-00{epoch}/view-{view}.npy" for epoch in (0, 1) for view in (0, 1)]
        for name, facts in plan["files"].items():
            assert facts["shape"] == [COUNT, 3, SIDE, SIDE]
            assert facts["dtype"] == "uint8"
            assert facts["sha256"] == sha256_file(tmp_path / "materialized" / name)

    def test_plan_without_views_opens_as_none(self, chain: Chain, split: Split, tmp_path: Path) -> None:
        assert MaterializedViews.open(write(TwoViews(chain), chain, split, tmp_path)) is None

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.unlink(), "named in plan.json but missing; run the views stage again"),
            (lambda path: path.write_bytes(b"not numpy"), "cannot be read .*run the views stage again"),
            (lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot be read .*run the views stage again"),
            (
                lambda path: np.save(path, np.zeros((3, 3), np.uint8)),
                r"holds uint8 \[3, 3\], plan.json says uint8 \[300,",
            ),
        ],
    )
    def test_missing_or_damaged_file_is_a_data_error(
        self, chain: Chain, split: Split, tmp_path: Path, damage: Callable[[Path], Any], message: str
    ) -> None:
        write(TwoViews(chain), chain, split, tmp_path, materialize=1)
        damage(tmp_path / "materialized" / "epoch-000" / "view-1.npy")
        with pytest.raises(DataError, match=message):
            MaterializedViews.open(tmp_path)

    def test_folder_without_a_plan_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no plan.json; run the views stage again"):
            MaterializedViews.open(tmp_path)

    def test_view_that_leaves_its_range_after_the_first_batch_is_refused(self, split: Split, tmp_path: Path) -> None:
        def late(images: Tensor, rng: SampleRng) -> Tensor:
            return images + 1 if len(images) < 256 else images

        chain = Chain([("late", late)])
        with pytest.raises(
            DataError, match=r"view-0 .*uint8.* can only be stored from 0 to 1; set views.materialize to 0"
        ):
            write(TwoViews(chain), chain, split, tmp_path, materialize=1)
        assert not (tmp_path / "plan.json").exists()
        assert not list(tmp_path.rglob("*.npy*"))
