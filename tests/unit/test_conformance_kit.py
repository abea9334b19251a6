"""Each check of the kit passes a good part and fails a broken one with the reason."""

import numpy as np
import pytest
import torch
from torch import nn

from cl_core.testing import (
    check_augmentation,
    check_encoder,
    check_loss,
    check_method,
    check_recipe,
    check_source,
    check_tracker,
)
from cl_core.types import Diagnosis, Encoder, Example, Finding, Method, StepOutput, Views


def invert(images, rng):
    return torch.where(rng.bernoulli(0.5)[:, None, None, None], 1 - images, images)


def test_a_good_augmentation_passes():
    check_augmentation(invert)


BROKEN_AUGMENTATIONS = {
    "modified its input": lambda images, rng: images.mul_(0.5),
    "not a function of rng": lambda images, rng: (images * torch.rand(())).clamp(0, 1),
    "returned torch.float64": lambda images, rng: images.double(),
    "keep .N, C, H, W.": lambda images, rng: images.flatten(1),
    "not finite": lambda images, rng: images / 0 - images / 0,
    "left .0, 1.": lambda images, rng: images * 2,
    "per sample": lambda images, rng: (images - images.mean()).clamp(0, 1),
}


@pytest.mark.parametrize("reason", BROKEN_AUGMENTATIONS)
def test_a_broken_augmentation_fails_with_the_reason(reason):
    with pytest.raises(AssertionError, match=reason):
        check_augmentation(BROKEN_AUGMENTATIONS[reason])


class GoodEncoder(Encoder):
    out_dim = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)

    def stages(self, images):
        return {"stage1": self.norm(self.conv(images)).relu()}


class WrongWidth(GoodEncoder):
    out_dim = 9


class NoGradient(GoodEncoder):
    def stages(self, images):
        return {"stage1": super().stages(images)["stage1"].detach().requires_grad_()}


class SeesTheBatch(GoodEncoder):
    def stages(self, images):
        return {"stage1": self.conv(images - images.mean())}


class CountsInEval(GoodEncoder):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def stages(self, images):
        self.seen += len(images)
        return super().stages(images)


class NoStages(GoodEncoder):
    def stages(self, images):
        return super().stages(images) if self.training or torch.is_grad_enabled() or len(images) != 4 else {}

    def forward(self, images):
        return GoodEncoder.stages(self, images)["stage1"].mean(dim=(2, 3))


def test_a_good_encoder_passes():
    check_encoder(GoodEncoder())


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (WrongWidth, "out_dim promises"),
        (NoGradient, "no gradient arrives"),
        (SeesTheBatch, "depend on its batch"),
        (CountsInEval, "changes its state in eval mode: seen"),
        (NoStages, "non-empty dict"),
        (lambda: nn.Linear(3, 3), "needs an int `out_dim`"),
    ],
)
def test_a_broken_encoder_fails_with_the_reason(encoder, reason):
    with pytest.raises(AssertionError, match=reason):
        check_encoder(encoder())


def test_a_good_loss_passes():
    check_loss(lambda a, b: (a - b).square().mean())


BROKEN_LOSSES = {
    "finite scalar": lambda a, b: (a - b).square().mean(dim=1),
    "no finite gradient for the second view": lambda a, b: (a - b.detach()).square().mean() + 0 * a.sum(),
    "order of the batch": lambda a, b: (a[0] - b[0]).square().mean() + 0 * (a.sum() + b.sum()),
    "all embeddings are equal": lambda a, b: 1 / (a - b).square().mean(),
}


@pytest.mark.parametrize("reason", BROKEN_LOSSES)
def test_a_broken_loss_fails_with_the_reason(reason):
    with pytest.raises(AssertionError, match=reason):
        check_loss(BROKEN_LOSSES[reason])


class GoodMethod(Method):
    """Predict a noisy copy; keeps a running mean as state."""

    def __init__(self):
        super().__init__()
        self.encoder = GoodEncoder()
        self.head = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(4))

    def make_views(self, images, rng):
        return Views(images=(invert(images, rng.child(0)), images))

    def forward(self, views):
        a, b = (self.head(self.encoder(view)) for view in views.images)
        return StepOutput(loss=(a - b - self.mean).square().mean(), metrics={"size": a.detach().norm()})

    @torch.no_grad()
    def after_update(self, progress):
        self.mean.lerp_(self.head.bias, 0.5)


class ViewsFromTorch(GoodMethod):
    def make_views(self, images, rng):
        return Views(images=(images + torch.rand_like(images), images))


class ViewsOfTheBatch(GoodMethod):
    def make_views(self, images, rng):
        return Views(images=(images - images.mean(dim=0), images))


class MetricsWithGradient(GoodMethod):
    def forward(self, views):
        output = super().forward(views)
        return StepOutput(loss=output.loss, metrics={"loss": output.loss})


class Detached(GoodMethod):
    def forward(self, views):
        features = self.encoder(views.images[0]).detach()
        return StepOutput(loss=self.head(features).square().mean())


class ForgetsAGroup(GoodMethod):
    def parameter_groups(self):
        return super().parameter_groups()[:1]


class HiddenState(GoodMethod):
    def __init__(self):
        super().__init__()
        self.hidden = 0.0

    def forward(self, views):
        output = super().forward(views)
        return StepOutput(loss=output.loss * (1 + self.hidden))

    def after_update(self, progress):
        self.hidden += progress


class AsksItself(GoodMethod):
    def diagnoses(self):
        return {"size": Diagnosis(question="Is it small?", find=self.find)}

    def find(self, fit, held_out):
        return Finding(state="fine", text="it is", figures={"size": float(self.encoder(fit.images).norm())})


class AnswersAtRandom(AsksItself):
    def find(self, fit, held_out):
        self.calls = getattr(self, "calls", 0) + 1
        return Finding(state="fine", text="it is", figures={"calls": self.calls})


class AnswersNothing(AsksItself):
    def find(self, fit, held_out):
        return Finding(state="fine", text="it is", figures={})


class AnswersInfinity(AsksItself):
    def find(self, fit, held_out):
        return Finding(state="fine", text="it is", figures={"size": float("inf")})


class LearnsFromQuestions(AsksItself):
    def find(self, fit, held_out):
        self.mean += 1
        return super().find(fit, held_out)


class InfiniteTrivial(GoodMethod):
    def trivial(self):
        return {"loss": float("nan")}


def test_a_good_method_passes():
    check_method(GoodMethod())
    check_method(AsksItself())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (ViewsFromTorch, "views are not a function of rng"),
        (ViewsOfTheBatch, "a sample's views depend on its batch"),
        (MetricsWithGradient, "metrics carry a gradient"),
        (Detached, "no gradient reaches the encoder"),
        (ForgetsAGroup, "must list every trainable parameter"),
        (HiddenState, "register all state as buffers"),
        (InfiniteTrivial, "not finite"),
        (AnswersAtRandom, "answers otherwise the second time"),
        (AnswersNothing, "needs a sentence and figures"),
        (AnswersInfinity, "gives no number for size"),
        (LearnsFromQuestions, "changed while diagnosis 'size' looked at it: mean"),
    ],
)
def test_a_broken_method_fails_with_the_reason(method, reason):
    with pytest.raises(AssertionError, match=reason):
        check_method(method())


class GoodSource:
    keys = ("a", "b")

    def fingerprint(self):
        return {"count": len(self.keys)}

    def __iter__(self):
        for key in self.keys:
            yield Example(key=key, image=np.zeros((4, 4), np.uint8), label="x")


class Empty(GoodSource):
    keys = ()


class Twice(GoodSource):
    keys = ("a", "a")


class Shuffled(GoodSource):
    def __iter__(self):
        type(self).keys = tuple(reversed(type(self).keys))
        return super().__iter__()


class Floats(GoodSource):
    def __iter__(self):
        yield Example(key="a", image=np.zeros((4, 4), np.float32))


class Restless(GoodSource):
    calls = 0

    def fingerprint(self):
        self.calls += 1
        return {"calls": self.calls}


def test_a_good_source_passes():
    check_source(GoodSource())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Empty, "yields no example"),
        (Twice, "yields a key twice"),
        (Shuffled, "another order the second time"),
        (Floats, "uint8 or uint16"),
        (Restless, "changes from call to call"),
    ],
)
def test_a_broken_source_fails_with_the_reason(source, reason):
    with pytest.raises(AssertionError, match=reason):
        check_source(source())


def test_recipes_are_checked():
    check_recipe({"augment": [{"name": "horizontal_flip"}]})
    with pytest.raises(AssertionError, match="gives no chain"):
        check_recipe({})
    with pytest.raises(AssertionError, match="'view' is no augment argument"):
        check_recipe({"view": [{"name": "horizontal_flip"}]})
    with pytest.raises(AssertionError, match="needs a list"):
        check_recipe({"augment": [{"prob": 0.5}]})


class GoodTracker:
    def start(self, run):
        self.path = run.directory / "log.txt"

    def log(self, step, metrics):
        self.path.write_text(f"{step} {metrics}")

    def end(self, summary):
        pass


class Silent(GoodTracker):
    def log(self, step, metrics):
        pass


def test_trackers_are_checked(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "silent").mkdir()
    check_tracker(GoodTracker(), tmp_path / "good")
    with pytest.raises(AssertionError, match="wrote nothing"):
        check_tracker(Silent(), tmp_path / "silent")
