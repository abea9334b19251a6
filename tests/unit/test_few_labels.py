"""Few labels: every use of them and its yardsticks, label accounting, and that the test split is read once."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from cl_core.config import FinetuneConfig, KnnConfig, LinearConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Split, Store, to_float
from cl_core.errors import CollapseError
from cl_core.evaluation import few_labels as few_labels_module
from cl_core.evaluation import fine_tuning
from cl_core.evaluation.classifier import Classifier
from cl_core.evaluation.draws import Drawing
from cl_core.evaluation.features import extract, load_weights
from cl_core.evaluation.few_labels import few_labels
from cl_core.evaluation.frozen import FrozenProbes, Labels
from cl_core.evaluation.yardsticks import Yardsticks, linear_baselines
from cl_core.types import Encoder, Example, FineTuneModel, Representation

SMALL = {"per_class": [1, 4, "all"], "draws": 2, "batch_size": 16, "epochs": 2, "min_steps": 8, "max_steps": 12}
SETTINGS = FinetuneConfig(lr=[1e-3, 1e-2], supervised_lr=[1e-2, 1e-1], **SMALL)
PAPER = FinetuneConfig(protocol="simclr-v1", lr=[0.05, 2.0], **SMALL)
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
        "selection": "labels",
        "max_values": 50,
        "max_iter": 100,
        "seed": 0,
        "yardsticks": Yardsticks(tmp_path),
        "yardstick_key": {"dataset": store.digest},
        "report": lambda line: None,
    }
    split = options.pop("split", store.split)
    make, make_random = options.pop("build", build), options.pop("build_random", lambda: build(1))
    return few_labels(make, make_random, split, store.classes, **(arguments | options))


def test_the_classifier_starts_undecided():
    logits = Classifier(build(), 3)(torch.rand(4, 3, 8, 8))
    assert torch.equal(logits, torch.zeros(4, 3))


def competitors(metrics, budget="all"):
    return metrics["budgets"][budget]["competitors"]


def test_the_curve_says_what_labels_were_used_and_separable_colours_are_learnt(store, tmp_path):
    result = json.loads(json.dumps(run(store, tmp_path)))
    assert (result["protocol"], result["selection"]) == ("finetune/lpft-v2", "labels")
    assert list(result["budgets"]) == ["1", "4", "all"]
    labels = [(entry["labels_trained"], entry["labels_chosen"]) for entry in result["budgets"].values()]
    assert labels == [(3, 0), (12, 0), (len(store_labels(store)), 0)]
    assert [len(entry["competitors"]["frozen"]["draws"]) for entry in result["budgets"].values()] == [2, 1, 1]
    assert list(competitors(result)) == [
        "frozen",
        "fine_tuned",
        "best",
        "random_init",
        "supervised",
        "raw_pixels",
    ]
    assert competitors(result)["frozen"]["top1"] == competitors(result)["best"]["top1"] == 1.0
    for entry in result["budgets"].values():
        for figures in entry["competitors"].values():
            assert figures["top1"] == pytest.approx(np.mean([draw["top1"] for draw in figures["draws"]]))
            low, high = figures["top1_ci95"]
            assert 0 <= low <= figures["top1"] <= high <= 1


def store_labels(store):
    return [label for label in store.split("train").labels if label >= 0]


def test_frozen_is_the_probe_of_the_pretrained_network_by_the_rule_of_the_random_one(store, tmp_path):
    ours = run(store, tmp_path / "a", build=build, build_random=lambda: build(1))
    swapped = run(store, tmp_path / "b", build=lambda: build(1), build_random=build)
    for budget in ours["budgets"]:
        assert competitors(ours, budget)["frozen"] == competitors(swapped, budget)["random_init"]


def test_the_chosen_mix_is_never_worse_where_it_was_chosen_than_the_frozen_probe(store, tmp_path):
    found = []

    original = few_labels_module.choose

    def watching(recipe, data, parts, *, steps):
        choice = original(recipe, data, parts, steps=steps)
        if recipe.from_probe and parts:
            runs = fine_tuning._run(recipe, data, parts, lr=recipe.rates[0], steps=steps)
            found.append((choice.selection_loss, next(iter(runs)).selection_loss))
        return choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_labels_module, "choose", watching)
        run(store, tmp_path)
    assert found
    assert all(chosen <= frozen for chosen, frozen in found)


def test_at_the_start_the_network_gives_the_scores_of_the_frozen_probe(store):
    model, split = build(), store.split("train")
    train = extract(model.representation, split, max_values=50)
    rows = torch.from_numpy(Drawing(split.keys, split.labels).per_class(4))
    probe = FrozenProbes(train, 3).fit(Labels(rows=rows, folds=[]))
    classifier = Classifier.of_probe(build(), probe.classifier, probe.stage, 50).eval()
    with torch.no_grad():
        scores = classifier(split.floats(rows, torch.device("cpu")))
    torch.testing.assert_close(scores, probe.classifier.scores(train.probe[probe.stage][rows]), rtol=1e-3, atol=1e-3)


def test_validation_labels_are_counted_where_choices_are_made_on_them(store, tmp_path):
    chosen = int((store.split("validation").labels >= 0).sum())
    result = run(store, tmp_path, selection="validation")
    assert {entry["labels_chosen"] for entry in result["budgets"].values()} == {chosen}
    assert all(draw["selection_loss"] is not None for draw in competitors(result, "1")["fine_tuned"]["draws"])


def test_equal_budgets_are_trained_on_once_and_say_so(store, tmp_path):
    settings = SETTINGS.model_copy(update={"per_class": [1], "fractions": [0.01]})
    budgets = run(store, tmp_path, settings=settings)["budgets"]
    assert budgets["0.01"]["same_as"] == "1"
    assert budgets["0.01"]["competitors"] == budgets["1"]["competitors"]


def test_the_same_seed_gives_the_same_result_whatever_torch_was_seeded_with(store, tmp_path):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(run(store, tmp_path / str(seed)))
    assert results[0] == results[1]


def supervised_yardsticks(folder):
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [entry["key"]["model"]["name"] for entry in found if entry["key"]["yardstick"].startswith("supervised")]


def test_a_model_with_a_part_of_the_head_is_held_against_training_that_model_from_scratch(store, tmp_path):
    settings = {"settings": PAPER.model_copy(update={"per_class": [1], "draws": 1})}
    run(store, tmp_path, **settings)
    assert supervised_yardsticks(tmp_path) == ["encoder"]
    for _ in range(2):
        run(store, tmp_path, build=build_with_head, build_random=build_with_head, **settings)
    assert sorted(supervised_yardsticks(tmp_path)) == ["encoder", "encoder + head layer 1"]
    run(store, tmp_path, build=build_with_head, build_random=lambda: build_with_head(width=4), **settings)
    assert len(supervised_yardsticks(tmp_path)) == 3, "another width of the head is another network"
    assert len(list(tmp_path.glob("*.json"))) == 5, "probes know no head and are shared"


@pytest.mark.parametrize("protocol", ["lpft-v2", "simclr-v1"])
def test_the_classifiers_are_left_as_they_were_judged_with_a_card_that_says_what_they_are(store, tmp_path, protocol):
    settings = (SETTINGS if protocol == "lpft-v2" else PAPER).model_copy(update={"per_class": [1, "all"], "draws": 1})
    result = result_of(store, tmp_path / "y", build=build_with_head, build_random=build_with_head, settings=settings)
    result.save(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(result.metrics))
    card = json.loads((tmp_path / "classifiers" / "classifiers.json").read_text())
    assert card["protocol"] == f"finetune/{protocol}"
    assert card["fine_tuned"] == "encoder + head layer 1"
    assert card["classes"] == store.classes
    assert list(card["classifiers"]) == ["1", "all"]
    test = store.split("test")
    rows = np.flatnonzero(test.labels >= 0)
    for budget, entry in card["classifiers"].items():
        reads = {name: entry[name] for name in ("stage", "dim", "max_values")}
        classifier = Classifier(build_with_head(seed=7), 3, **reads)
        load_weights(classifier, tmp_path / "classifiers" / entry["file"], "classifier")
        with torch.no_grad():
            predicted = classifier.eval()(to_float(test.images(rows))).argmax(dim=1)
        kept = result.predictions[f"best/{budget}/0"]
        assert (predicted == kept).float().mean() > 0.98  # features rounded to float16 may move one on the edge
        assert (kept == torch.tensor(test.labels[rows])).float().mean() == pytest.approx(
            competitors(result.metrics, budget)["best"]["top1"]
        )
        assert entry["labels"] == result.metrics["budgets"][budget]["labels_trained"]


def test_a_run_without_classifiers_leaves_the_reason_and_none_of_an_earlier_run(store, tmp_path):
    folder = tmp_path / "classifiers"
    folder.mkdir()
    (folder / "0.1.safetensors").touch()
    nothing = store.split("test").select(np.zeros(0, dtype=np.int64))
    split = {"split": lambda name: nothing if name == "test" else store.split(name)}
    result_of(store, tmp_path, **split).save(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["classifiers.json"]
    card = json.loads((folder / "classifiers.json").read_text())
    assert card["classifiers"] == {}
    assert card["skipped"].startswith("the test split has no labelled images")


class Counting(Split):
    """Counts how often each image is read."""

    def images(self, rows):
        self.reads.update(np.asarray(rows).tolist())
        return super().images(rows)


def test_each_competitor_reads_every_labelled_test_image_once(store, tmp_path):
    split = store.split("test")
    counting = Counting("test", split._shards, image_size=8, channels=3)
    counting.reads = Counter()
    watched = {"split": lambda name: counting if name == "test" else store.split(name)}
    run(store, tmp_path, **watched)  # frozen and fine-tuned, supervised, and two probes
    labelled = set(np.flatnonzero(split.labels >= 0).tolist())
    assert {counting.reads[row] for row in labelled} == {5}
    counting.reads.clear()
    run(store, tmp_path, **watched)  # yardsticks are known by now
    assert {counting.reads[row] for row in labelled} == {2}


def test_a_learning_rate_that_diverges_loses_and_a_grid_of_them_is_an_error(store, tmp_path):
    class Exploding(Representation):
        def pooled(self, images):
            return super().pooled(images) * float("inf")

    settings = PAPER.model_copy(update={"per_class": [4]})
    with pytest.raises(CollapseError, match=r"fine-tuned training on 12 labels diverged at every learning rate"):
        run(store, tmp_path, build=lambda: FineTuneModel(Exploding(TinyEncoder()), 6), settings=settings)


@pytest.mark.parametrize(
    ("source", "reason"),
    [(Colours(labels=False), "the dataset has no labels"), (Colours(classes=1), "the dataset has one class only")],
)
def test_without_classes_to_tell_apart_fine_tuning_is_skipped(tmp_path, source, reason):
    store = make_store(tmp_path / "dataset", source)
    assert run(store, tmp_path / "yardsticks") == {"skipped": reason}


@pytest.mark.parametrize("empty", ["validation", "test"])
def test_an_empty_split_that_is_needed_is_a_reason_to_skip(store, tmp_path, empty):
    nothing = store.split(empty).select(np.zeros(0, dtype=np.int64))
    split = {"split": lambda name: nothing if name == empty else store.split(name)}
    result = run(store, tmp_path, selection="validation", **split)
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
