"""The linear probe against scikit-learn, its choices, what it skips, and its yardsticks."""

import json
import multiprocessing
import time

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from cl_core.config import KnnConfig, LinearConfig
from cl_core.evaluation import yardsticks as yardsticks_module
from cl_core.evaluation.features import Features
from cl_core.evaluation.linear import fit_probe, linear_eval
from cl_core.evaluation.yardsticks import Yardsticks

CLASSES = [str(digit) for digit in range(10)]
SMALL = LinearConfig(l2=[1e-3, 1e-1])
QUIET = {"report": lambda line: None}


def digits_split(start, stop):
    data = load_digits()
    pixels = torch.tensor(data.data[start:stop], dtype=torch.float32)
    return pixels, torch.tensor(data.target[start:stop])


def features(pixels, labels):
    """A weak first stage (the upper half), all pixels, and a last stage that is noise."""
    noise = torch.randn(len(pixels), 12, generator=torch.Generator().manual_seed(len(pixels)))
    stages = {"half": pixels[:, :32], "all": pixels, "noise": noise}
    return Features(probe=stages, average=stages, labels=labels, keys=[str(i) for i in range(len(pixels))])


@pytest.fixture(scope="module")
def splits():
    return {
        "train": features(*digits_split(0, 600)),
        "validation": features(*digits_split(600, 900)),
        "test": features(*digits_split(900, 1797)),
    }


def evaluate(splits, **options):
    options = {"classes": CLASSES, "linear": SMALL, "knn": KnnConfig(k=20), **QUIET, **options}
    return linear_eval(lambda name: splits[name], **options)


@pytest.mark.parametrize("l2", [1.0, 1e-1, 1e-2, 1e-3])
def test_the_probe_is_as_accurate_as_scikit_learn_with_the_same_objective(l2):
    (x, y), (x_test, y_test) = digits_split(0, 700), digits_split(700, 1797)
    probe = fit_probe(x, y, x_test, y_test, num_classes=10, config=LinearConfig(l2=[l2], max_iter=1000))
    scaler = StandardScaler().fit(x.double().numpy())
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(x.double().numpy()), y.numpy())
    expected = reference.score(scaler.transform(x_test.double().numpy()), y_test.numpy())
    assert probe.validation_top1 == pytest.approx(expected, abs=1e-3)


def test_a_constant_feature_says_nothing_even_where_it_differs_in_the_test_split():
    x, y = digits_split(0, 300)
    x = torch.cat([x, torch.full((300, 1), 0.1)], dim=1)
    shifted = x.clone()
    shifted[:, -1] = 1e6
    probe = fit_probe(x, y, x, y, num_classes=10, config=SMALL)
    assert torch.equal(probe.classifier.scores(shifted), probe.classifier.scores(x))


def test_penalty_and_stage_are_the_best_on_validation(splits):
    result = evaluate(splits).metrics
    assert result["best_stage"] == max(result["stages"], key=lambda s: result["stages"][s]["validation_top1"]) == "all"
    train, validation = splits["train"], splits["validation"]
    accuracies = {
        l2: fit_probe(
            train.probe["all"],
            train.labels,
            validation.probe["all"],
            validation.labels,
            num_classes=10,
            config=LinearConfig(l2=[l2]),
        ).validation_top1
        for l2 in SMALL.l2
    }
    chosen = result["stages"]["all"]
    assert chosen["validation_top1"] == pytest.approx(max(accuracies.values()), abs=4e-3)


def test_the_result_has_the_shape_that_the_report_reads(splits):
    result = evaluate(splits, baselines=lambda: {"raw_pixels": {"top1": 0.5}})
    metrics = json.loads(json.dumps(result.metrics))
    assert list(metrics)[:5] == ["protocol", "best_stage", "last_stage", "test", "stages"]
    assert metrics["classes"].keys() == {"imbalance", "constant_top1"}
    assert (metrics["protocol"], metrics["last_stage"]) == ("linear/lbfgs-v1", "noise")
    assert metrics["test"]["n"] == 897
    assert metrics["test"]["top1"] == metrics["stages"]["all"]["test_top1"] > 0.85
    low, high = metrics["test"]["top1_ci95"]
    assert low < metrics["test"]["top1"] < high <= metrics["test"]["top5"]
    assert metrics["stages"]["half"].keys() == {"dim", "l2", "validation_top1", "test_top1", "test_balanced_top1"}
    assert metrics["test"]["balanced_top1"] == metrics["stages"]["all"]["test_balanced_top1"]
    low, high = metrics["knn"]["top1_ci95"]
    assert low < metrics["knn"]["top1"] < high
    assert (metrics["knn"]["stage"], metrics["knn_best_stage"]["stage"]) == ("noise", "all")
    assert metrics["knn"]["top1"] < 0.3 < metrics["knn_best_stage"]["top1"]
    assert metrics["baselines"] == {"raw_pixels": {"top1": 0.5}}


def test_a_k_above_the_bank_is_reduced_in_number_and_id(splits):
    knn = evaluate(splits, knn=KnnConfig(k=5000)).metrics["knn"]
    assert (knn["protocol"], knn["k"]) == ("knn/instdisc-v1(k=600)", 600)


def test_test_features_are_asked_for_once_and_last(splits):
    asked = []

    def read(name):
        asked.append(name)
        return splits[name]

    linear_eval(read, classes=CLASSES, linear=SMALL, knn=KnnConfig(k=20), **QUIET)
    assert asked == ["train", "validation", "test"]


def test_predictions_name_their_rows_and_give_the_accuracy(splits, tmp_path):
    unlabelled = splits["test"].labels.clone()
    unlabelled[::3] = -1
    test = Features(
        probe=splits["test"].probe, average=splits["test"].average, labels=unlabelled, keys=splits["test"].keys
    )
    result = evaluate(splits | {"test": test})
    result.save_predictions(tmp_path / "predictions.safetensors")
    saved = load_file(tmp_path / "predictions.safetensors")
    assert torch.equal(saved["row"], (unlabelled >= 0).nonzero()[:, 0])
    assert torch.equal(saved["label"], unlabelled[saved["row"]])
    accuracy = (saved["label"] == saved["predicted"]).double().mean()
    assert result.metrics["test"]["top1"] == pytest.approx(float(accuracy))
    neighbours = (saved["label"] == saved["knn_predicted"]).double().mean()
    assert result.metrics["knn"]["top1"] == pytest.approx(float(neighbours))


def test_balanced_accuracy_of_unbalanced_classes_is_scikit_learns(splits):
    kept = torch.cat([(splits["test"].labels == label).nonzero()[: 5 + 8 * label, 0] for label in range(10)])
    result = evaluate({**splits, "test": splits["test"].select(kept)})
    labels, predicted = (result.predictions[name].numpy() for name in ("label", "predicted"))
    test = result.metrics["test"]
    assert test["balanced_top1"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert test["balanced_top1"] != test["top1"]
    assert test["n"] == len(kept)


def test_what_a_constant_answer_gets_is_the_share_of_the_largest_class_of_train(splits):
    labels = (torch.arange(897) % 10).clamp(max=3)
    unbalanced = {name: relabelled(part, labels[: len(part)]) for name, part in splits.items()}
    assert evaluate(unbalanced).metrics["classes"] == {
        "imbalance": pytest.approx(7, rel=0.01),
        "constant_top1": pytest.approx(0.7, abs=0.01),
    }


def test_the_same_features_give_the_same_result(splits):
    assert evaluate(splits).metrics == evaluate(splits).metrics


def test_separable_classes_reach_100_percent():
    labels = torch.arange(40) % 2
    separable = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 20 * labels[:, None]
    split = Features(probe={"s": separable}, average={"s": separable}, labels=labels, keys=[str(i) for i in range(40)])
    metrics = evaluate(dict.fromkeys(("train", "validation", "test"), split), classes=["a", "b"]).metrics
    accuracies = {"top1": 1.0, "top1_ci95": [1.0, 1.0], "balanced_top1": 1.0, "top5": 1.0}
    assert metrics["test"] == {**accuracies, "n": 40}
    assert metrics["classes"] == {"imbalance": 1.0, "constant_top1": 0.5}


def relabelled(part, labels):
    return Features(probe=part.probe, average=part.average, labels=labels, keys=part.keys)


@pytest.mark.parametrize(
    ("name", "label", "reason"),
    [
        ("train", -1, "the dataset has no labels"),
        ("train", 3, "the dataset has one class only"),
        ("validation", -1, "the validation split has no labelled images"),
        ("test", -1, "the test split has no labelled images"),
    ],
)
def test_what_cannot_be_evaluated_is_skipped_with_its_reason(splits, name, label, reason):
    part = relabelled(splits[name], torch.full_like(splits[name].labels, label))

    def never():
        raise RuntimeError("yardsticks of a skipped evaluation were computed")

    result = evaluate(splits | {name: part}, baselines=never)
    assert list(result.metrics) == ["skipped"]
    assert result.metrics["skipped"].startswith(reason)
    assert result.predictions == {}


def test_a_class_without_training_images_is_reported_and_counts_as_errors(splits):
    labels = splits["train"].labels
    result = evaluate(splits | {"train": splits["train"].select((labels != 4).nonzero()[:, 0])}).metrics
    fours = int((splits["test"].labels == 4).sum())
    assert result["classes_without_training_images"] == {"4": fours}
    assert result["test"]["top1"] <= 1 - fours / 897


def test_a_yardstick_is_computed_once_per_key_whatever_the_order_of_its_entries(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"top1": 0.5}

    shelf = Yardsticks(tmp_path / "yardsticks")
    results = [shelf.get(key, compute) for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3})]
    assert results == [{"top1": 0.5}] * 3
    assert len(calls) == 2
    assert not list(shelf.directory.glob("*.lock"))


def test_a_damaged_yardstick_is_computed_again(tmp_path):
    shelf = Yardsticks(tmp_path)
    shelf.get({"a": 1}, lambda: {"top1": 0.5})
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    assert shelf.get({"a": 1}, lambda: {"top1": 0.6}) == {"top1": 0.6}


def test_a_yardstick_that_fails_leaves_nothing_and_no_held_lock(tmp_path):
    shelf = Yardsticks(tmp_path)

    def fail():
        raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        shelf.get({"a": 1}, fail)
    assert not list(tmp_path.glob("*.json"))
    assert shelf.get({"a": 1}, lambda: {"top1": 1.0}) == {"top1": 1.0}


def test_yardsticks_work_where_the_system_has_no_fcntl(tmp_path, monkeypatch):
    monkeypatch.setattr(yardsticks_module, "fcntl", None)
    assert Yardsticks(tmp_path).get({"a": 1}, lambda: {"top1": 1.0}) == {"top1": 1.0}


def _ask_for_a_yardstick(directory, log, name):
    def compute():
        deadline = time.monotonic() + 60
        while len(list(log.parent.glob("*.arrived"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the other process is at the lock, too
        with log.open("a") as file:
            file.write("computed\n")
        return {"top1": 0.25}

    (log.parent / f"{name}.arrived").touch()
    assert Yardsticks(directory).get({"a": 1}, compute) == {"top1": 0.25}


def test_two_processes_compute_a_yardstick_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "yardsticks", tmp_path / "log")
    workers = [context.Process(target=_ask_for_a_yardstick, args=(*arguments, name)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text() == "computed\n"
