"""Take away what makes a method work, and it fails as its paper says; the built-in monitors notice.

Each training is a few dozen steps of a tiny network. Settings were tried with three seeds, margins are wide.
"""

import pytest
import torch
from torch import nn
from toy_images import lit_noise, make_store, rare_colour, shape, tinted_pattern
from toy_training import Listener, quiet, train

from cl_core.data.views import Chain
from cl_core.errors import CollapseError
from cl_core.registry import load_registry
from plugins.encoders import resnet8
from plugins.losses import NTXent
from plugins.methods import BYOL, DINO, Colorization, Counting, Jigsaw, SimCLR, SimSiam, SwAV

REGISTRY = load_registry()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A function that gives the store of a kind of image."""
    stores = {}

    def of(draw, count=64, size=16):
        key = draw, count, size
        if key not in stores:
            stores[key] = make_store(tmp_path_factory.mktemp("images") / "store", *key)
        return stores[key]

    return of


@pytest.fixture
def trained(tmp_path, images):
    """A function that trains a method under the installed monitors and gives the figures of the last step."""

    def run(method, draw, *, epochs, lr, watched=True, size=16, count=64, **options):
        listener = Listener()
        observers = quiet(hooks=REGISTRY.manager.hook if watched else None, trackers=[listener])
        fixed = {"batch_size": 32, "log_every": 1, "save_every": 10_000, "knn_every": 0, "validation": None}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        store = images(draw, count, size)
        train(store, folder, method=method, epochs=epochs, lr=lr, observers=observers, **{**fixed, **options})
        return listener.metrics

    return run


def chain(*specs):
    built = [(name, REGISTRY.build("augmentation", name, options)) for name, options in specs]
    return Chain(built)


def noise(deviation):
    return lambda images, rng: images + rng.normal(std=deviation, shape=images.shape[1:])


def encoder(**options):
    return resnet8(width=4, **options)


# Without what prevents collapse


def byol(**options):
    torch.manual_seed(0)
    widths = {"hidden_dim": 32, "out_dim": 16, "predictor_hidden": 32}
    return BYOL(encoder(), noise(1.0), noise(1.0), **{**widths, "base_momentum": 0.9, **options})


def test_byol_collapses_without_its_predictor_and_the_monitor_stops_it(trained):
    method = byol()
    method.predictor = nn.Identity()
    with pytest.raises(CollapseError, match=r"feature_std is 0\.0\d+.*below 0\.1.*lower optimizer\.lr"):
        trained(method, shape, size=8, epochs=60, lr=0.2)


def test_byol_keeps_embeddings_apart_without_negatives(trained):
    figures = trained(byol(), shape, size=8, epochs=30, lr=0.2)
    assert figures["feature_std"] > 0.5
    assert figures["effective_rank"] > 5


def test_byol_that_predicts_itself_reports_its_figures(trained):
    method = byol(base_momentum=0.0)
    figures = trained(method, shape, size=8, epochs=5, lr=0.2, watched=False)
    assert {"loss", "direction_loss", "feature_std", "effective_rank", "mean_cosine"} <= figures.keys()
    assert all(0 <= figures[name] <= 8 for name in ("loss", "direction_loss", "feature_std"))


def simsiam(**options):
    torch.manual_seed(0)
    return SimSiam(encoder(), noise(3.0), hidden_dim=12, out_dim=16, predictor_hidden=6, **options)


@pytest.mark.parametrize("missing", ["stop_gradient", "predictor"])
def test_simsiam_collapses_without_stop_gradient_or_predictor_and_the_monitor_stops_it(trained, missing):
    with pytest.raises(CollapseError, match=r"effective_rank is 1\.\d+.*below 2"):
        trained(simsiam(**{missing: False}), shape, size=8, epochs=60, lr=0.5)


def test_simsiam_with_both_keeps_embeddings_apart(trained):
    figures = trained(simsiam(), shape, size=8, epochs=60, lr=0.5)
    assert figures["effective_rank"] > 4
    assert figures["loss"] > -0.6


def counting(margin):
    torch.manual_seed(0)
    return Counting(encoder(), chain(), counts=16, hidden_dim=32, gray_prob=0.0, margin=margin)


def test_counting_counts_nothing_without_its_second_term_and_the_monitor_stops_it(trained):
    with pytest.raises(CollapseError, match="representation has collapsed"):
        trained(counting(margin=1e-9), shape, epochs=60, lr=3e-3, optimizer="adamw")


def test_counting_keeps_counting_with_its_second_term(trained):
    figures = trained(counting(margin=10.0), shape, epochs=45, lr=3e-3, optimizer="adamw")
    assert figures["active_share"] > 0.15
    assert figures["mean_count"] > 0.2
    assert figures["relative_error"] < 0.3
    assert figures["loss"] < 6  # of a margin of 10


def dino(deviation, **options):
    torch.manual_seed(0)
    widths = {"prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16, "local_crops": 0}
    return DINO(encoder(), *[noise(deviation)] * 3, **widths, **options)


@pytest.mark.parametrize(
    ("missing", "entropy"), [({"centre_momentum": 1.0}, 0.0), ({"teacher_temperature": (1.0, 1.0)}, 4.16)]
)
def test_dino_says_the_same_of_all_images_without_centring_or_sharpening_and_is_stopped(trained, missing, entropy):
    method = dino(0.3, base_momentum=0.9, **missing)
    with pytest.raises(CollapseError, match=r"assignment_information is .*sharpen the targets"):
        trained(method, shape, size=8, epochs=30, lr=0.05)
    figures = trained(method, shape, size=8, epochs=1, lr=1e-6, watched=False)
    assert figures["teacher_entropy"] == pytest.approx(entropy, abs=0.1)  # one prototype, or log 64
    assert figures["effective_rank"] > 5  # which shows nothing of it


def test_dino_tells_images_apart_with_both(trained):
    method = dino(0.1, base_momentum=0.97, teacher_temperature=(0.02, 0.02))
    figures = trained(method, shape, size=8, epochs=30, lr=3e-3, optimizer="adamw")
    assert figures["assignment_information"] > 0.4


def test_swav_shares_its_images_out_among_the_prototypes(trained):
    torch.manual_seed(0)
    method = SwAV(encoder(), *[noise(0.3)] * 2, prototypes=32, hidden_dim=32, out_dim=16, epsilon=0.02)
    figures = trained(method, shape, size=8, epochs=30, lr=0.1)
    assert figures["assignment_information"] > 0.5
    assert figures["prototype_perplexity"] > 4


# Without what keeps a task from being solved another way


def jigsaw(**options):
    torch.manual_seed(0)
    return Jigsaw(encoder(), grid=2, tile_dim=16, hidden_dim=32, dropout=0.0, **options)


def test_jigsaw_is_solved_by_brightness_where_tiles_are_not_standardised(trained):
    unguarded, guarded = (
        trained(jigsaw(standardize=standardize), lit_noise, count=128, epochs=16, lr=0.2, watched=False, batch_size=64)
        for standardize in (False, True)
    )
    assert guarded["accuracy"] < 0.15  # chance is 1 in 24
    assert unguarded["accuracy"] > guarded["accuracy"] + 0.2


def simclr(augment):
    torch.manual_seed(0)
    return SimCLR(encoder(), augment, NTXent(0.2), out_dim=16)


def test_simclr_is_solved_by_colour_where_views_keep_it(trained):
    crop = ("random_resized_crop", {"scale": [0.1, 0.5]})
    jitter = ("color_jitter", {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "prob": 1.0})
    plain, jittered = (
        trained(simclr(chain(*specs)), tinted_pattern, epochs=30, lr=0.3, watched=False)
        for specs in ([crop], [crop, jitter])
    )
    assert plain["loss"] < jittered["loss"] - 1
    assert plain["contrastive_accuracy"] > 0.3
    assert jittered["contrastive_accuracy"] < 0.15
    assert plain["information_bound"] > 1.5
    assert jittered["information_bound"] < 0.3


def test_colorization_dares_more_colour_where_rare_colours_weigh_more(trained):
    def method(rebalance):
        torch.manual_seed(0)
        return Colorization(encoder, chain(), rebalance=rebalance, head_dim=16)

    weighted, plain = (
        trained(method(rebalance), rare_colour, epochs=30, lr=3e-3, optimizer="adamw") for rebalance in (0.5, 1.0)
    )
    assert weighted["chroma_ratio"] > 1.5 * plain["chroma_ratio"]
    assert weighted["recall"] > plain["recall"]
