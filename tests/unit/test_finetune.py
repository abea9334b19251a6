"""Fine-tuning on few labels: its subsets, its training, its yardsticks, and that the test split is read once."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from cl_core.config import FinetuneConfig, KnnConfig, LinearConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Split, Store, to_float
from cl_core.errors import CheckpointError, CollapseError
from cl_core.evaluation.classifier import Classifier
from cl_core.evaluation.features import load_weights
from cl_core.evaluation.finetune import finetune, steps_for
from cl_core.evaluation.subsets import different_subsets, nested_subsets
from cl_core.evaluation.yardsticks import Yardsticks, linear_baselines
from cl_core.types import Encoder, Example, FineTuneModel, Representation

SETTINGS = FinetuneConfig(
    fractions=[0.01, 0.05, 1.0], lr=[0.05, 2.0], batch_size=16, epochs=2, min_steps=8, max_steps=12
)
LINEAR = LinearConfig(l2=[1e-2, 1.0])


class Colours:
    """Noisy images, red, green or blue; every seventh has no label."""

    def __init__(self, labels=True, classes=3):
        self.labels, self.classes = labels, classes

    def fingerprint(self):
        return {"name": "colours"}

    def __iter__(self):
        rng = np.random.default_rng(0)
        for number in range(150):
            kind = number % 3
            image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            image[..., kind] += 100
            label = "rgb"[min(kind, self.classes - 1)] if self.labels and number % 7 else None
            split = "test" if number < 30 else "validation" if number < 60 else "train"
            yield Example(key=f"{number:03d}", image=image, label=label, split=split)


def make_store(path, source):
    rule = SplitRule(validation=0.0, test=0.0)
    ingest(source, path, size=8, splits=rule, source_spec={"name": "colours"}, workers=1, report=lambda line: None)
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("colours") / "dataset", Colours())


class TinyEncoder(Encoder):
    """One convolution with batch norm and dropout, so that training has state and chance."""

    out_dim = 6

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Dropout(0.1)

    def stages(self, images):
        early = self.conv(images)
        return {"early": early, "late": self.drop(self.norm(early).relu())}


def build(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = TinyEncoder()
    return FineTuneModel(Representation(encoder), 6)


def build_with_head(width=5, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(6, width), nn.ReLU())
    return FineTuneModel(build(seed).representation, width, head=head, name="encoder + head layer 1")


def flip(images, rng):
    return torch.where(rng.bernoulli(0.5)[:, None, None, None], images.flip(-1), images)


def run(store, tmp_path, **options):
    """The metrics."""
    return result_of(store, tmp_path, **options).metrics


def result_of(store, tmp_path, **options):
    arguments = {
        "augment": flip,
        "settings": SETTINGS,
        "linear": LINEAR,
        "seed": 0,
        "yardsticks": Yardsticks(tmp_path),
        "yardstick_key": {"dataset": store.digest},
        "report": lambda line: None,
    }
    split = options.pop("split", store.split)
    make, make_random = options.pop("build", build), options.pop("build_random", lambda: build(1))
    return finetune(make, make_random, split, store.classes, **(arguments | options))


def test_subsets_are_nested_balanced_and_leave_no_class_out():
    labels = np.array([0] * 60 + [1] * 60 + [2] * 60 + [-1] * 20)
    keys = [f"key-{number}" for number in range(200)]
    subsets = nested_subsets(keys, labels, [1.0, 0.001, 0.1, 0.5])
    assert list(subsets) == ["0.001", "0.1", "0.5", "1.0"]
    counts = {name: Counter(labels[rows].tolist()) for name, rows in subsets.items()}
    assert counts["0.001"] == {0: 1, 1: 1, 2: 1}
    assert counts["0.1"] == {0: 6, 1: 6, 2: 6}
    assert counts["0.5"] == {0: 30, 1: 30, 2: 30}
    assert counts["1.0"] == {0: 60, 1: 60, 2: 60}
    for smaller, larger in zip(list(subsets.values()), list(subsets.values())[1:], strict=False):
        assert set(smaller) <= set(larger)


def test_a_rare_class_gives_what_it_has_and_the_whole_is_everything_labelled():
    labels = np.array([0] * 90 + [1] * 10)
    subsets = nested_subsets([str(i) for i in range(100)], labels, [0.1, 0.4, 1.0])
    assert [Counter(labels[rows].tolist()) for rows in subsets.values()] == [
        {0: 5, 1: 5},
        {0: 30, 1: 10},
        {0: 90, 1: 10},
    ]


def test_subsets_depend_on_keys_and_not_on_order():
    keys, labels = [str(i) for i in range(50)], np.arange(50) % 2
    shuffled = np.random.default_rng(0).permutation(50)
    rows = nested_subsets(keys, labels, [0.2])["0.2"]
    again = nested_subsets([keys[i] for i in shuffled], labels[shuffled], [0.2])["0.2"]
    assert {keys[row] for row in rows} == {keys[shuffled[row]] for row in again}


def test_equal_subsets_are_trained_on_once():
    subsets = nested_subsets([str(i) for i in range(40)], np.arange(40) % 2, [0.01, 0.02, 0.5])
    assert list(different_subsets(subsets)) == ["0.01", "0.5"]


def test_steps_follow_epochs_within_bounds_and_double_at_one_percent():
    settings = FinetuneConfig(epochs=30, batch_size=100, min_steps=50, max_steps=2000)
    assert steps_for(1000, 0.1, settings) == 300
    assert steps_for(1000, 0.01, settings) == 600
    assert steps_for(20, 0.1, settings) == 50
    assert steps_for(50_000, 1.0, settings) == 2000


def test_the_classifier_starts_undecided():
    logits = Classifier(build(), 3)(torch.rand(4, 3, 8, 8))
    assert torch.equal(logits, torch.zeros(4, 3))


def test_the_curve_has_the_shape_that_the_report_reads_and_separable_colours_are_learnt(store, tmp_path):
    result = json.loads(json.dumps(run(store, tmp_path)))
    assert list(result) == ["protocol", "fractions"]
    assert result["protocol"] == "finetune/simclr-v1"
    assert list(result["fractions"]) == ["0.01", "0.05", "1.0"]
    assert [entry["n_labels"] for entry in result["fractions"].values()] == [3, 3, len(store_labels(store))]
    whole = result["fractions"]["1.0"]
    low, high = whole["top1_ci95"]
    assert low <= whole["top1"] <= high
    assert whole["top1"] == whole["balanced_top1"] == whole["random_init_probe"] == 1.0
    assert whole["supervised_same_labels"] > 0.5
    assert whole["details"]["fine_tuned"]["lr"] in SETTINGS.lr


def test_frozen_is_the_probe_of_the_pretrained_network_by_the_rule_of_the_random_one(store, tmp_path):
    fractions = run(store, tmp_path / "a", build=build, build_random=lambda: build(1))["fractions"]
    swapped = run(store, tmp_path / "b", build=lambda: build(1), build_random=build)["fractions"]
    for fraction, result in fractions.items():
        assert result["details"]["frozen"] == swapped[fraction]["details"]["random_init_probe"]
        assert result["frozen"] == swapped[fraction]["random_init_probe"] == result["details"]["frozen"]["top1"]


def store_labels(store):
    return [label for label in store.split("train").labels if label >= 0]


def test_a_merged_subset_names_the_one_it_equals(store, tmp_path):
    fractions = run(store, tmp_path)["fractions"]
    assert fractions["0.05"]["same_subset_as"] == "0.01"
    assert fractions["0.05"]["top1"] == fractions["0.01"]["top1"]
    assert "same_subset_as" not in fractions["0.01"]


def test_the_same_seed_gives_the_same_result_whatever_torch_was_seeded_with(store, tmp_path):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(run(store, tmp_path / str(seed)))
    assert results[0] == results[1]


def supervised_yardsticks(folder):
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [entry["key"]["model"]["name"] for entry in found if entry["key"]["yardstick"] == "supervised_same_labels"]


def test_a_model_with_a_part_of_the_head_is_held_against_training_that_model_from_scratch(store, tmp_path):
    settings = {"settings": SETTINGS.model_copy(update={"fractions": [0.01], "lr": [0.05]})}
    run(store, tmp_path, **settings)
    assert supervised_yardsticks(tmp_path) == ["encoder"]
    for _ in range(2):
        run(store, tmp_path, build=build_with_head, build_random=build_with_head, **settings)
    assert sorted(supervised_yardsticks(tmp_path)) == ["encoder", "encoder + head layer 1"]
    run(store, tmp_path, build=build_with_head, build_random=lambda: build_with_head(width=4), **settings)
    assert len(supervised_yardsticks(tmp_path)) == 3, "another width of the head is another network"
    assert len(list(tmp_path.glob("*.json"))) == 4, "the probe of the random encoder knows no head and is shared"


def test_the_classifiers_are_left_as_they_were_judged_with_a_card_that_says_what_they_are(store, tmp_path):
    settings = SETTINGS.model_copy(update={"lr": [0.5]})
    result = result_of(store, tmp_path, build=build_with_head, build_random=build_with_head, settings=settings)
    result.save_classifiers(tmp_path / "classifiers")
    card = json.loads((tmp_path / "classifiers" / "classifiers.json").read_text())
    assert card["protocol"] == "finetune/simclr-v1"
    assert card["fine_tuned"] == "encoder + head layer 1"
    assert card["classes"] == store.classes
    assert list(card["classifiers"]) == ["0.01", "0.05", "1.0"]
    test = store.split("test")
    rows = np.flatnonzero(test.labels >= 0)
    for fraction, entry in card["classifiers"].items():
        classifier = Classifier(build_with_head(seed=7), 3)
        load_weights(classifier, tmp_path / "classifiers" / entry["file"], "classifier")
        with torch.no_grad():
            predicted = classifier.eval()(to_float(test.images(rows))).argmax(dim=1).numpy()
        expected = result.metrics["fractions"][fraction]
        assert (predicted == test.labels[rows]).mean() == expected["top1"]
        assert entry["n_labels"] == expected["n_labels"]
    with pytest.raises(CheckpointError, match=r"unexpected: model\.head\.0\.bias"):
        load_weights(Classifier(build(), 3), tmp_path / "classifiers" / "1.0.safetensors", "classifier")


def test_a_run_without_classifiers_leaves_the_reason_and_none_of_an_earlier_run(store, tmp_path):
    folder = tmp_path / "classifiers"
    folder.mkdir()
    (folder / "0.1.safetensors").touch()
    nothing = store.split("test").select(np.zeros(0, dtype=np.int64))
    split = {"split": lambda name: nothing if name == "test" else store.split(name)}
    result_of(store, tmp_path, **split).save_classifiers(folder)
    assert [path.name for path in folder.iterdir()] == ["classifiers.json"]
    card = json.loads((folder / "classifiers.json").read_text())
    assert card["classifiers"] == {}
    assert card["skipped"].startswith("the test split has no labelled images")


class Counting(Split):
    """Counts how often each image is read."""

    def images(self, rows):
        self.reads.update(np.asarray(rows).tolist())
        return super().images(rows)


def test_each_competitor_reads_every_labelled_test_image_once_and_no_other(store, tmp_path):
    split = store.split("test")
    counting = Counting("test", split._shards, image_size=8, channels=3)
    counting.reads = Counter()
    watched = {"split": lambda name: counting if name == "test" else store.split(name)}
    run(store, tmp_path, **watched)  # fine-tuned, supervised, and two probes, which read unlabelled images too
    labelled = set(np.flatnonzero(split.labels >= 0).tolist())
    assert {counting.reads[row] for row in labelled} == {4}
    counting.reads.clear()
    run(store, tmp_path, **watched)  # yardsticks are known by now
    assert {counting.reads[row] for row in labelled} == {2}


def test_training_moves_batch_norm_and_leaves_the_callers_model_classes_alone(store, tmp_path):
    models = []

    def keep():
        models.append(build())
        return models[-1]

    run(store, tmp_path, build=keep)
    fresh = build().state_dict()
    frozen, *tuned = models
    assert len(tuned) == 4  # two different subsets, two learning rates
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in frozen.state_dict().items())
    for model in tuned:
        trained = model.state_dict()
        assert not torch.equal(
            trained["representation.encoder.norm.running_mean"], fresh["representation.encoder.norm.running_mean"]
        )
        assert not torch.equal(
            trained["representation.encoder.conv.weight"], fresh["representation.encoder.conv.weight"]
        )


def test_a_learning_rate_that_diverges_loses_and_a_grid_of_them_is_an_error(store, tmp_path):
    class Exploding(Representation):
        def pooled(self, images):
            return super().pooled(images) * float("inf")

    with pytest.raises(CollapseError, match=r"fine-tuned training on the fraction 0\.01 diverged at every"):
        run(store, tmp_path, build=lambda: FineTuneModel(Exploding(TinyEncoder()), 6))


def test_bf16_autocast_is_taken(store, tmp_path):
    settings = SETTINGS.model_copy(update={"fractions": [1.0], "lr": [0.5]})
    assert run(store, tmp_path, precision="bf16", settings=settings)["fractions"]["1.0"]["top1"] > 0.5


@pytest.mark.parametrize(
    ("source", "reason"),
    [(Colours(labels=False), "the dataset has no labels"), (Colours(classes=1), "the dataset has one class only")],
)
def test_without_classes_to_tell_apart_fine_tuning_is_skipped(tmp_path, source, reason):
    store = make_store(tmp_path / "dataset", source)
    assert run(store, tmp_path / "yardsticks") == {"skipped": reason}


@pytest.mark.parametrize("empty", ["validation", "test"])
def test_an_empty_split_is_a_reason_to_skip(store, tmp_path, empty):
    nothing = store.split(empty).select(np.zeros(0, dtype=np.int64))
    result = run(store, tmp_path, split=lambda name: nothing if name == empty else store.split(name))
    assert result["skipped"].startswith(f"the {empty} split has no labelled images")


def test_linear_baselines_are_shared_and_the_raw_pixels_by_every_encoder(store, tmp_path):
    built = []

    def representation():
        built.append(1)
        return build(1).representation

    def baselines(encoder):
        return linear_baselines(
            Yardsticks(tmp_path),
            data_key={"dataset": store.digest},
            encoder_key={"encoder": encoder},
            representation=representation,
            split=store.split,
            classes=store.classes,
            linear=LINEAR,
            knn=KnnConfig(k=10),
            report=lambda line: None,
        )

    first = baselines("tiny")
    assert first["raw_pixels"]["top1"] > 0.9
    assert {"top1", "top1_ci95", "best_stage", "knn_top1", "knn_best_stage_top1"} <= first["random_init"].keys()
    assert baselines("tiny") == first
    baselines("other")
    assert len(built) == 2
    assert len(list(tmp_path.glob("*.json"))) == 3
