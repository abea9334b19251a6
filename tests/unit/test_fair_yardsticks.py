"""No yardstick is undertrained: each is held against the plain loop that a practitioner would write, on the digits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from torchvision.transforms.v2 import RandomResizedCrop

from cl_core.assembly import build_chain, build_encoder
from cl_core.config import FinetuneConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.evaluation.draws import Drawing
from cl_core.evaluation.few_labels import few_labels
from cl_core.evaluation.yardsticks import Yardsticks
from cl_core.registry import load_registry
from cl_core.types import FineTuneModel, Representation

SLACK = 0.015
PER_CLASS = (4, 12)
SETTINGS = FinetuneConfig(per_class=list(PER_CLASS), draws=2, lr=[1e-3], supervised_lr=[3e-3])


@pytest.fixture(scope="module")
def registry():
    return load_registry([])


@pytest.fixture(scope="module")
def store(registry, tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "dataset"
    source = registry.build("source", "digits", {})
    rule = SplitRule(validation=0.1, test=0.2)
    ingest(source, path, size=16, splits=rule, source_spec={"name": "digits"}, workers=1, report=lambda line: None)
    return Store.open(path)


def untrained(registry):
    encoder = build_encoder(registry, {"name": "resnet8", "options": {"width": 16}}, seed=0, image_size=16)
    return FineTuneModel(Representation(encoder), encoder.out_dim)


@pytest.fixture(scope="module")
def ours(registry, store, tmp_path_factory):
    crop = {"name": "random_resized_crop", "options": {"scale": (0.4, 1.0)}}
    result = few_labels(
        lambda: untrained(registry),
        lambda: untrained(registry),
        store.split,
        store.classes,
        augment=build_chain(registry, [crop]),
        settings=SETTINGS,
        selection="labels",
        max_values=2048,
        max_iter=200,
        seed=0,
        yardsticks=Yardsticks(tmp_path_factory.mktemp("yardsticks")),
        yardstick_key={},
        report=lambda line: None,
    )
    return result.metrics["budgets"]


def draws(store, count, number):
    split = store.split("train")
    drawing = Drawing(split.keys, split.labels)
    return [torch.from_numpy(drawing.per_class(count, draw)) for draw in range(number)]


def pixels(store, split):
    images = store.split(split)
    return images.floats(torch.arange(len(images)), torch.device("cpu")), torch.from_numpy(images.labels)


def plain_supervised(registry, store, rows):
    """AdamW at 3e-3, cosine, 200 steps, a linear layer on the pooled features."""
    (images, labels), (test, answers) = pixels(store, "train"), pixels(store, "test")
    torch.manual_seed(0)
    model, head = untrained(registry).train(), torch.nn.Linear(64, 10)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    crop = RandomResizedCrop(16, scale=(0.4, 1.0))
    for _ in range(200):
        batch = rows[torch.randperm(len(rows))[:64]]
        loss = cross_entropy(head(model(torch.stack([crop(image) for image in images[batch]]))), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((head(model.eval()(test)).argmax(dim=1) == answers).float().mean())


def plain_probe(registry, store, rows):
    """scikit-learn's logistic regression at C = 0.1 on the standardised last map."""
    (images, labels), (test, answers) = pixels(store, "train"), pixels(store, "test")
    model = untrained(registry).eval()

    def features(batch):
        with torch.no_grad():
            last = list(model.representation(batch).values())[-1]
            return adaptive_avg_pool2d(last, 4).flatten(1).numpy()

    scaler = StandardScaler().fit(features(images))
    classifier = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(features(images[rows])), labels[rows])
    return float(np.mean(classifier.predict(scaler.transform(features(test))) == answers.numpy()))


@pytest.mark.parametrize("count", PER_CLASS)
@pytest.mark.parametrize(("name", "plain"), [("supervised", plain_supervised), ("random_init", plain_probe)])
def test_a_yardstick_is_not_below_the_plain_loop(registry, store, ours, count, name, plain):
    measured = ours[str(count)]["competitors"][name]["top1"]
    rows = draws(store, count, len(ours[str(count)]["competitors"][name]["draws"]))
    expected = np.mean([plain(registry, store, draw) for draw in rows])
    assert measured >= expected - SLACK
