"""Diagnoses as the engine runs them: repeatable, without a trace on the method, honest about what is missing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import CollapseError, ConfigError, DataError
from cl_core.evaluation.diagnose import answers, diagnose
from cl_core.measures.logistic import fit_classifier, linear_accuracy
from cl_core.types import Diagnosis, Finding, Method, Sample, StepOutput, Views
from plugins.encoders import resnet8
from plugins.losses import NTXent
from plugins.methods import SimCLR, Supervised


class Asked(Method):
    """A method with one question of our choice."""

    def __init__(self, find, **options: bool) -> None:
        super().__init__()
        self.encoder = nn.BatchNorm2d(3)
        self.diagnosis = Diagnosis(question="Well?", find=lambda fit, held_out: find(self, fit, held_out), **options)

    def make_views(self, images: Tensor, rng: SampleRng) -> Views:
        return Views(images=(images,))

    def forward(self, views: Views) -> StepOutput:
        return StepOutput(loss=self.encoder(views.images[0]).mean())

    def diagnoses(self) -> dict[str, Diagnosis]:
        return {"well": self.diagnosis}


def finding(**figures: float) -> Finding:
    return Finding(state="fine", text="well", figures=figures)


def sample(labels: list[int], seed: int = 0) -> Sample:
    images = torch.rand(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Sample(images=images, labels=torch.tensor(labels), rng=SampleRng(seed, 0, torch.arange(len(labels))))


SOME = [0, 1, 0, 1, -1, 1]


def test_a_question_is_asked_in_evaluation_mode_without_gradients_and_every_mode_comes_back():
    seen = {}

    def look(method: Asked, fit: Sample, held_out: Sample) -> Finding:
        seen.update(training=method.encoder.training, gradient=method.encoder(fit.images).requires_grad)
        return finding(count=len(held_out))

    method = Asked(look)
    before = copy.deepcopy(method.state_dict())
    assert answers(method, sample(SOME), sample(SOME))[0]["figures"] == {"count": 6}
    assert seen == {"training": False, "gradient": False}
    assert method.training
    assert method.encoder.training
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_a_diagnosis_that_touches_the_method_is_refused():
    def spoil(method: Asked, fit: Sample, held_out: Sample) -> Finding:
        method.encoder.running_mean += 1
        return finding(x=1)

    with pytest.raises(DataError, match=r"Asked changed while diagnosis 'well' looked at it: encoder\.running_mean"):
        answers(Asked(spoil), sample(SOME), sample(SOME))


def test_questions_about_labels_get_labelled_images_only_or_say_what_is_missing():
    method = Asked(lambda method, fit, held_out: finding(fit=len(fit), held_out=len(held_out)), needs_labels=True)
    assert answers(method, sample(SOME), sample(SOME))[0]["figures"] == {"fit": 5, "held_out": 5}
    (skipped,) = answers(method, sample([-1, -1]), sample(SOME))
    assert (skipped["state"], skipped["text"]) == ("skipped", "the dataset has no labels")


def test_a_figure_that_is_no_number_is_an_error_and_not_a_verdict():
    method = Asked(lambda method, fit, held_out: finding(spread=float("nan")))
    with pytest.raises(CollapseError, match="'well' gives no number for spread: the weights have diverged"):
        answers(method, sample(SOME), sample(SOME))


def test_draws_inside_a_network_are_the_same_every_time_and_leave_torch_s_generator_alone():
    method = Asked(lambda method, fit, held_out: finding(draw=float(torch.rand(()))))
    torch.manual_seed(3)
    first, again = (answers(method, sample(SOME), sample(SOME)) for _ in range(2))
    assert first == again
    following = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(following, torch.rand(()))


def test_rows_of_a_sample_keep_their_labels_and_draws():
    whole = sample(SOME)
    parts = list(whole.parts(4))
    assert [len(part) for part in parts] == [4, 2]
    drawn = torch.cat([part.rng.child(1).uniform() for part in parts])
    assert torch.equal(drawn, whole.rng.child(1).uniform())
    assert torch.cat([part.labels for part in parts]).tolist() == SOME


class Held:
    """Stands in for a split: so many random images."""

    name = "validation"

    def __init__(self, count: int) -> None:
        self.count = count
        self.labels = np.arange(count) % 2

    def __len__(self) -> int:
        return self.count

    def by_hash(self, count: int) -> Held:
        return self

    def images(self, rows: np.ndarray) -> Tensor:
        return torch.randint(0, 256, (len(rows), 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_the_same_method_and_images_give_the_same_findings():
    torch.manual_seed(0)
    method = SimCLR(resnet8(width=4), lambda images, rng: images * rng.uniform()[:, None, None, None], NTXent(0.5))
    first, again = (diagnose(method, Held(24), Held(16), seed=0) for _ in range(2))
    assert first == again
    assert first["images"] == {"fit": 24, "held_out": 16}
    assert [found["name"] for found in first["findings"]] == ["collapse", "projection", "colours"]


def test_a_method_without_questions_and_a_split_without_images_are_explained():
    supervised = Supervised(resnet8(width=4), lambda images, rng: images)
    with pytest.raises(
        ConfigError, match=r"Supervised offers no diagnosis; leave it out of `diagnose` in params\.yaml"
    ):
        diagnose(supervised, Held(4), Held(4), seed=0)
    with pytest.raises(ConfigError, match=r"validation split has no images .* raise data\.splits\.validation"):
        diagnose(Asked(lambda *_: finding(x=1)), Held(4), Held(0), seed=0)


def test_the_linear_classifier_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(120, 5, generator=generator), torch.arange(120) % 3
    features[:, :3] += torch.nn.functional.one_hot(labels, 3)
    standard = ((features - features.mean(dim=0)) / features.std(dim=0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (1e-2 * 120), tol=1e-8, max_iter=1000).fit(standard, labels.numpy())
    expected = torch.tensor(reference.predict_proba(standard)).float()
    found = fit_classifier(features, labels, 3, l2=1e-2).scores(features).softmax(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_linear_accuracy_is_one_for_what_a_line_parts_and_chance_for_what_it_cannot():
    x = torch.linspace(-1, 1, 40)[:, None]
    assert linear_accuracy(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long()) == 1.0
    inside = (x[:, 0].abs() < 0.5).long()
    assert linear_accuracy(x, inside, x, inside) == pytest.approx(0.5, abs=0.1)
