"""Health of a trained method and of the same before training, on every stage and the embedding, without a label."""

import copy

import pytest
import torch
from toy_training import VALIDATION, Contrast, TinyEncoder, make_store

from cl_core.errors import DataError
from cl_core.evaluation.health import health, method_health
from cl_core.measures.health import health_figures
from cl_core.training.probe import OnlineHealth, corner_crop


class Projected(Contrast):
    def project(self, images):
        return self.head(self.encoder(images))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), labelled=False)


def test_every_stage_and_the_embedding_of_both_encoders_are_measured_without_a_label(store):
    torch.manual_seed(0)
    trained, untrained = Projected(), Projected()
    found = health(trained, untrained, store.split("train"), store.split("validation"))
    assert {key: found[key] for key in ("protocol", "split", "images", "views")} == {
        "protocol": "health/corners-v1",
        "split": "train",  # 12 held-out images are too few
        "images": 42,
        "views": 4,
    }
    assert found["trained"] == method_health(trained, store.split("train"))
    assert found["untrained"] == method_health(untrained, store.split("train"))
    assert found["trained"] != found["untrained"]
    assert list(found["trained"]["stages"]) == ["early", "late"]
    dims = [found["trained"]["stages"][stage]["dim"] for stage in ("early", "late")]
    assert (*dims, found["trained"]["embedding"]["dim"]) == (8, 12, 6)


def test_figures_are_those_of_whole_images_and_of_their_four_corners(store):
    torch.manual_seed(0)
    method = Projected().eval()
    split = store.split("validation")
    images = split.images(torch.arange(VALIDATION)) / 255
    with torch.no_grad():
        z = [method.project(x) for x in (images, *(corner_crop(images, corner) for corner in range(4)))]
    expected = health_figures(z[0], torch.stack(z[1:]))
    found = method_health(method, split)["embedding"]
    assert found == pytest.approx({"dim": 6} | expected, rel=1e-4)


def test_the_last_point_of_the_curve_is_the_health_of_the_last_stage(store):
    torch.manual_seed(0)
    method, split = Contrast(), store.split("validation")
    online = OnlineHealth(split, torch.device("cpu"))(method)
    last = method_health(method, split)["stages"]["late"]
    assert {name: last[name] for name in online} == pytest.approx(online, rel=1e-5)


def test_a_method_without_embedding_has_health_of_its_stages_and_stays_as_it_was(store):
    method = Contrast()
    before = copy.deepcopy(method.state_dict())
    assert method_health(method, store.split("validation"))["embedding"] is None
    assert method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_method_that_changes_while_it_is_looked_at_is_an_error(store):
    class Restless(TinyEncoder):
        def stages(self, images):
            with torch.no_grad():
                self.stem[0].bias += 1
            return super().stages(images)

    method = Contrast()
    method.encoder = Restless()
    with pytest.raises(DataError, match=r"changed while its health was measured: encoder\.stem\.0\.bias"):
        method_health(method, store.split("validation"))
