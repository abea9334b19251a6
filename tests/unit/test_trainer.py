"""The training loop on a tiny real store: what is logged, what is written, what stops it."""

import copy
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from toy_training import (
    BATCH,
    EPOCHS,
    SIZE,
    STEPS,
    TRAIN,
    VALIDATION,
    Contrast,
    Listener,
    after,
    crash,
    make_store,
    quiet,
    train,
)

from cl_core.config import ScheduleConfig
from cl_core.data.sampling import batch_rows
from cl_core.data.store import to_float
from cl_core.data.views import MaterializedViews, views_of, write_views
from cl_core.errors import CollapseError, DataError, Interrupted
from cl_core.evaluation.features import load_weights
from cl_core.training.checkpoint import Checkpoints
from cl_core.training.optim import Schedule
from cl_core.training.probe import OnlineHealth, OnlineKnn, corner_crop, online_evaluation
from cl_core.training.update import deterministic
from cl_core.types import Encoder, Panel, StepOutput


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("trainer") / "store")


def test_the_encoder_file_holds_the_representation_of_the_trained_method(store, tmp_path):
    method = Contrast()
    out = train(store, tmp_path, method=method, channels_last=True)
    saved = safetensors.torch.load_file(out / "encoder.safetensors")
    state = method.representation().state_dict()
    assert saved.keys() == state.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.is_contiguous()
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name


def test_the_card_tells_what_the_encoder_is_and_how_it_was_trained(store, tmp_path):
    out = train(store, tmp_path)
    card = json.loads((out / "encoder.json").read_text())
    final = json.loads((out / "metrics.json").read_text())
    assert card == {
        "experiment": "contrast",
        "training": {
            "steps": STEPS,
            "peak_lr": 0.1,
            "precision": "fp32",
            "channels_last": False,
            "compiled": False,
            "final": final,
            "remarks": [],
        },
        "year": None,
        "family": "",
        "yardstick": False,
        "units_per_image": 2.0,
        "units": 2.0 * STEPS * BATCH,
        "input": "rgb",
        "image": [3, SIZE, SIZE],
        "stages": {"early": [8, 8, 8], "late": [12, 4, 4]},
        "out_dim": 12,
        "trivial": {"loss": 2.0},
    }


def test_a_method_that_does_not_train_leaves_the_same_files_with_its_initial_weights(store, tmp_path):
    class Untrained(Contrast):
        trains = False

        def forward(self, views):
            raise AssertionError("a yardstick was trained")

    method, listener = Untrained(), Listener()
    before = copy.deepcopy(method.representation().state_dict())
    out = train(store, tmp_path, method=method, observers=quiet(trackers=[listener]))
    assert {path.name for path in out.iterdir()} == {path.name for path in train(store, tmp_path / "b").iterdir()}
    saved = safetensors.torch.load_file(out / "encoder.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    card = json.loads((out / "encoder.json").read_text())
    assert (card["training"]["steps"], card["units"], card["yardstick"]) == (0, 0.0, True)
    assert json.loads((out / "metrics.json").read_text()) == {}
    assert (out / "curves.csv").read_text() == "step,epoch,loss,lr\n"
    assert listener.calls == [("start", 0), ("end", "finished", 0)]


def test_curves_hold_every_logged_step_with_all_figures(store, tmp_path):
    out = train(store, tmp_path)
    header, *lines = (out / "curves.csv").read_text().splitlines()
    assert header == "step,epoch,loss,lr,accuracy,knn_top1,rankme,uniformity,feature_std,effective_rank,mean_cosine"
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [row["step"] for row in rows] == ["0", "2", "4", "5", "6", "8", "10"]  # every 2, and the end of each epoch
    assert [row["step"] for row in rows if row["knn_top1"]] == ["0", "5", "10"]
    assert [row["epoch"] for row in rows] == ["0", "0.4", "0.8", "1", "1.2", "1.6", "2"]
    schedule = Schedule.of(ScheduleConfig(epochs=EPOCHS), 0.1, TRAIN // BATCH)
    rates = [schedule.lr_at(int(row["step"]) - 1) for row in rows[1:]]
    assert [float(row["lr"]) for row in rows[1:]] == pytest.approx(rates)
    final = json.loads((out / "metrics.json").read_text())
    assert final["step"] == STEPS
    assert float(rows[-1]["loss"]) == pytest.approx(final["loss"], rel=1e-6)


def test_the_untrained_encoder_is_the_first_row_and_stands_beside_the_final_figures(store, tmp_path):
    listener, method, said = Listener(), Contrast(), []
    torch.manual_seed(0)
    untrained = knn_of(store)(Contrast())
    out = train(store, tmp_path, observers=quiet(said, trackers=[listener]))
    header, first, *_ = (out / "curves.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    figures = {name: f"{value:.8g}" for name, value in untrained.items()}
    assert {name: value for name, value in row.items() if value} == {"step": "0", "epoch": "0", **figures}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["untrained"] == untrained
    load_weights(method, out / "method.safetensors", "method")
    assert metrics["knn_top1"] == knn_of(store)(method)["knn_top1"]
    assert listener.calls[1] == ("log", 0)
    assert said[-1].split("  ")[3] == f"knn {metrics['knn_top1']:.3f} (untrained {untrained['knn_top1']:.3f})"


def test_half_way_the_representation_is_evaluated_whatever_the_interval(store, tmp_path):
    out = train(store, tmp_path, knn_every=100, epochs=4)
    header, *lines = (out / "curves.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [row["step"] for row in rows if row["knn_top1"]] == ["0", "10", "20"]


def test_timing_is_kept_apart_and_adds_up_over_sittings(store, tmp_path):
    with pytest.raises(Interrupted, match="stopped"):
        train(store, tmp_path, stop=after(4, lambda: True))
    saved = Checkpoints(tmp_path / "checkpoints").load_newest()["throughput"]
    assert saved["images"] == 4 * BATCH
    timing = json.loads((train(store, tmp_path) / "timing.json").read_text())
    assert timing.keys() == {"seconds", "images_per_second", "data_wait_share", "threads"}
    assert timing["threads"] == torch.get_num_threads()
    assert timing["seconds"] > saved["seconds"]
    assert timing["images_per_second"] * timing["seconds"] == pytest.approx(STEPS * BATCH, rel=0.05)


def test_the_online_knn_does_not_change_what_is_learned(store, tmp_path):
    with_knn = train(store, tmp_path / "with", "remembering", knn_every=1, log_every=1)
    without = train(store, tmp_path / "without", "remembering", knn_every=0, log_every=3)
    assert (with_knn / "encoder.safetensors").read_bytes() == (without / "encoder.safetensors").read_bytes()
    assert "knn_top1" not in (without / "curves.csv").read_text()
    assert (without / "curves.csv").read_text().splitlines()[1].startswith("3,")


def knn_of(store):
    return OnlineKnn(store.split("train"), store.split("validation"), torch.device("cpu"))


def health_of(store):
    return OnlineHealth(store.split("validation"), torch.device("cpu"))


@pytest.mark.parametrize("online", [knn_of, health_of])
def test_the_online_evaluation_leaves_modes_and_buffers_as_they_were(store, online):
    method = Contrast()
    method.encoder.body.eval()
    before = copy.deepcopy(method.state_dict())
    modes = [module.training for module in method.modules()]
    first, *_ = online(store)(method).values()
    assert 0 <= first <= 1
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_the_online_knn_is_right_about_features_that_show_the_class(store):
    class Colour(Encoder):
        out_dim = 3

        def stages(self, images):
            return {"noise": torch.rand_like(images), "colour": images}

    method = Contrast()
    method.encoder = Colour()
    figures = knn_of(store)(method)
    assert figures["knn_top1"] == 1.0
    assert 1 < figures["rankme"] <= 3


@pytest.mark.parametrize("lacking", ["training", "validation"])
def test_without_labels_health_takes_the_place_of_knn_and_that_is_said(store, tmp_path, lacking):
    unlabelled = make_store(tmp_path / "store", labelled=False)
    said = []
    splits = {
        "training": (unlabelled, store.split("validation")),
        "validation": (store, unlabelled.split("validation")),
    }
    chosen, validation = splits[lacking]
    out = train(chosen, tmp_path, validation=validation, observers=quiet(said))
    instead = "instead of kNN, self_match and rankme of 42 training images show how the features fare"
    assert f"no labelled {lacking} images: {instead}" in said
    header, first, *rest = (out / "curves.csv").read_text().splitlines()
    known = dict(zip(header.split(","), first.split(","), strict=True))
    assert list(known)[-7:-3] == ["self_match", "rankme", "alignment", "uniformity"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["untrained"].keys() == {"self_match", "rankme", "alignment", "uniformity"}  # too narrow for alpha
    assert known["self_match"] == f"{metrics['untrained']['self_match']:.8g}"
    assert len([line for line in rest if line.split(",")[-7]]) == EPOCHS


@pytest.mark.parametrize(("held_out", "judged"), [(99, "42 training"), (120, "120 validation")])
def test_health_is_judged_on_held_out_images_where_there_are_enough(tmp_path, held_out, judged):
    unlabelled = make_store(tmp_path / "store", labelled=False)
    validation = unlabelled.split("validation").select(np.arange(held_out) % VALIDATION)
    said = []
    online = online_evaluation(unlabelled.split("train"), validation, torch.device("cpu"), said.append)
    assert online.queries == int(judged.split()[0])
    assert f"self_match and rankme of {judged} images" in said[0]


def test_the_crops_of_health_are_three_quarters_of_the_side_from_opposite_corners():
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    first, second = corner_crop(images, 0), corner_crop(images, 1)
    assert first.shape == second.shape == images.shape
    assert (first.min(), first.max()) == (0, images[..., 5, 5])
    assert (second.min(), second.max()) == (images[..., 2, 2], 63)
    third, fourth = corner_crop(images, 2), corner_crop(images, 3)
    assert (third.min(), third.max()) == (images[..., 0, 2], images[..., 5, 7])
    assert (fourth.min(), fourth.max()) == (images[..., 2, 0], images[..., 7, 5])


def test_health_sees_that_features_of_colour_tell_images_apart_and_equal_ones_do_not(store):
    class Looking(Encoder):
        out_dim = 3

        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def stages(self, images):
            return {"noise": torch.rand_like(images), "colour": images * self.weight + 1 - self.weight}

    def figures(weight):
        method = Contrast()
        method.encoder = Looking(weight)
        return health_of(store)(method)

    equal = {"self_match": 1 / VALIDATION, "rankme": 1.0, "alignment": 0.0, "uniformity": 0.0}
    assert figures(0.0) == pytest.approx(equal, abs=1e-6)
    seen = figures(1.0)
    assert seen["self_match"] > 1 / VALIDATION
    assert 1.0 < seen["rankme"] <= 3


def test_labels_reach_only_the_methods_that_ask_for_them(store, tmp_path):
    class Looking(Contrast):
        def forward(self, views):
            self.seen = views.labels
            return super().forward(views)

    blind, seeing = Looking(), Looking()
    seeing.uses_labels = True
    for number, method in enumerate((blind, seeing)):
        train(store, tmp_path / str(number), method=method)
    assert blind.seen is None
    assert seeing.seen.shape == (BATCH,)
    assert set(seeing.seen.tolist()) <= {0, 1, 2}


def test_a_method_that_learns_from_labels_is_refused_where_no_image_has_one(tmp_path):
    unlabelled = make_store(tmp_path / "store", labelled=False)
    method = Contrast()
    method.uses_labels = True
    with pytest.raises(DataError, match="Contrast learns from class labels, and no training image has one"):
        train(unlabelled, tmp_path, method=method, validation=None)


def test_materialised_views_are_trained_on_instead_of_new_ones(store, tmp_path):
    class Maker(Contrast):
        def make_views(self, images, rng):
            return super().make_views(images * 0.8 + 0.1, rng).map(lambda view: view.clamp(0, 1))

    class Reader(Maker):
        def make_views(self, images, rng):
            raise AssertionError("made views although they lie on disk")

        def forward(self, views):
            self.seen = views.images
            return super().forward(views)

    split = store.split("train")
    write_views(Maker(), {}, split, tmp_path / "views", seed=5, plan={}, preview=1, materialize=EPOCHS)
    reader = Reader()
    train(store, tmp_path, method=reader, materialized=MaterializedViews.open(tmp_path / "views"))
    rows, epoch = batch_rows(TRAIN, BATCH, STEPS - 1, 5)
    expected = views_of(Maker(), to_float(split.images(rows)), 5, epoch, rows)
    for seen, view in zip(reader.seen, expected.images, strict=True):
        torch.testing.assert_close(seen, view, rtol=0, atol=0.5 / 255 + 1e-6)


def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(store, tmp_path):
    class Exploding(Contrast):
        def forward(self, views):
            output = super().forward(views)
            self.weights_before = self.head.weight.detach().clone()
            scale = float("nan") if self.steps == 4 else 1.0
            self.steps += 1
            return StepOutput(loss=output.loss * scale)

    method, listener = Exploding(), Listener()
    method.steps = 0
    with pytest.raises(CollapseError, match=r"loss is nan at step 5 \(learning rate 0\.\d+\); lower optimizer\.lr"):
        train(store, tmp_path, method=method, observers=quiet(trackers=[listener]))
    assert torch.equal(method.head.weight, method.weights_before)
    assert listener.calls[-1] == ("end", "failed", 4)


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(store, tmp_path):
    class Steep(Contrast):
        def forward(self, views):
            return StepOutput(loss=1000 * super().forward(views).loss)

        def after_update(self, progress):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    norms = []
    train(store, tmp_path, method=Steep(), clip=0.25, lr=1e-4)
    assert norms == pytest.approx([0.25] * STEPS, rel=1e-3)


def test_progress_of_after_update_rises_evenly_to_one(store, tmp_path):
    class Noting(Contrast):
        def after_update(self, progress):
            seen.append(progress)

    seen = []
    train(store, tmp_path, method=Noting())
    assert seen == pytest.approx([step / STEPS for step in range(1, STEPS + 1)])


def test_fewer_images_than_a_batch_is_an_error_that_says_what_to_set(store, tmp_path):
    with pytest.raises(DataError, match=r"42 images, fewer than train\.batch_size 64"):
        train(store, tmp_path, batch_size=64)


@pytest.mark.parametrize(
    ("stop", "error", "status", "last"),
    [
        (lambda: False, None, "finished", 10),
        (after(4, lambda: True), Interrupted, "interrupted", 4),
        (after(4, crash), KeyboardInterrupt, "interrupted", 4),
    ],
)
def test_observers_hear_of_the_start_and_once_of_the_end(store, tmp_path, stop, error, status, last):
    listener = Listener()
    if error is None:
        train(store, tmp_path, stop=stop, observers=quiet(trackers=[listener]))
    else:
        with pytest.raises(error, match="stopped"):
            train(store, tmp_path, stop=stop, observers=quiet(trackers=[listener]))
    assert listener.calls[0] == ("start", STEPS)
    assert [call for call in listener.calls if call[0] == "end"] == [listener.calls[-1]] == [("end", status, last)]


def test_training_in_bf16_keeps_weights_in_float32_and_learns_something_else(store, tmp_path):
    full = train(store, tmp_path / "full")
    mixed = train(store, tmp_path / "mixed", precision="bf16")
    weights = safetensors.torch.load_file(mixed / "encoder.safetensors")
    assert weights["encoder.stem.0.weight"].dtype == torch.float32
    assert (mixed / "encoder.safetensors").read_bytes() != (full / "encoder.safetensors").read_bytes()
    assert json.loads((mixed / "encoder.json").read_text())["training"]["precision"] == "bf16"


def test_the_methods_pictures_are_written_from_validation_images(store, tmp_path):
    class Drawing(Contrast):
        def panels(self, images, rng):
            assert not self.training
            pixels = (images[0].permute(1, 2, 0) * 255).byte().numpy()
            return [Panel(title="First", caption=f"of {len(images)}", image=pixels)]

    out = train(store, tmp_path, method=Drawing())
    listed = json.loads((out / "panels" / "panels.json").read_text())
    assert listed == [{"title": "First", "caption": "of 8", "file": "panel-0.png"}]
    assert (out / "panels" / "panel-0.png").read_bytes().startswith(b"\x89PNG")
    train(store, tmp_path)
    assert [path.name for path in (out / "panels").iterdir()] == ["panels.json"]  # an earlier method's do not stay


def test_deterministic_gives_torchs_settings_back():
    def settings():
        memory = torch.utils.deterministic.fill_uninitialized_memory
        return torch.are_deterministic_algorithms_enabled(), memory, torch.backends.cudnn.benchmark

    before = settings()
    with deterministic():
        assert settings() == (True, False, False)
    assert settings() == before
