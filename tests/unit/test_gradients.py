"""Micro-batches: the same weights as from the whole batch, with every kind of state, in less memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn
from toy_training import BATCH, SIZE, Contrast, Remembering, after, make_store, result, train

from cl_core.check import check_project
from cl_core.config import TrainConfig
from cl_core.data.sampling import SampleRng
from cl_core.errors import CollapseError, ConfigError, Interrupted
from cl_core.training.gradients import backward
from cl_core.types import Encoder, JointEmbedding, StepOutput, Views
from plugins.losses import DCL, BarlowTwins, Bilinear, InfoNCE, NTXent, SupCon
from plugins.methods import BYOL, NNCLR, MoCoV3, Rotation, SimCLR, SimSiam
from plugins.methods import BarlowTwins as BarlowTwinsMethod
from plugins.methods import SupCon as SupConMethod

IMAGES, PART = 12, 4
FABRIC = Fabric(accelerator="cpu", devices=1)


class Plain(Encoder):
    """No layer of it looks at the batch."""

    out_dim = 10

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.Tanh())
        self.body = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.Tanh())

    def stages(self, images):
        early = self.stem(images)
        return {"early": early, "late": self.body(early)}


def noisy(images, rng):
    return images + rng.normal(std=0.3, shape=images.shape[1:])


METHODS = {
    "simclr": lambda: SimCLR(Plain(), noisy, NTXent(0.3)),
    "simclr with dcl": lambda: SimCLR(Plain(), noisy, DCL(0.3)),
    "simclr with a learned score": lambda: SimCLR(Plain(), noisy, InfoNCE(Bilinear(128))),
    "supcon": lambda: SupConMethod(Plain(), noisy, SupCon(0.3)),
    "barlow_twins": lambda: BarlowTwinsMethod(Plain(), noisy, noisy, BarlowTwins(), expander_dim=16),
    "moco_v3": lambda: MoCoV3(Plain(), noisy, noisy),
    "nnclr": lambda: NNCLR(Plain(), noisy, queue_size=20),
    "byol": lambda: BYOL(Plain(), noisy, noisy),
    "simsiam": lambda: SimSiam(Plain(), noisy),
    "rotation": lambda: Rotation(Plain(), noisy),
}


def without_batch_norm(method):
    """The same method with group norm in its heads."""
    for parent in list(method.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm1d):
                setattr(parent, name, nn.GroupNorm(2, layer.num_features, affine=layer.affine))
    return method


def views_of(method, step):
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    views = method.make_views(images, SampleRng(3, step, torch.arange(IMAGES)))
    labels = torch.arange(IMAGES) % 3 if method.uses_labels else None
    return Views(images=views.images, labels=labels)


def trained(method, micro_batch, steps=3):
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    outputs = []
    for step in range(steps):
        optimizer.zero_grad()
        outputs.append(
            backward(method, method, views_of(method, step), FABRIC, lambda loss: None, micro_batch=micro_batch)
        )
        optimizer.step()
        method.after_update((step + 1) / steps)
    return method.state_dict(), outputs


@pytest.mark.parametrize("name", METHODS)
def test_without_batch_norm_weights_and_figures_are_those_of_the_whole_batch(name):
    torch.manual_seed(0)
    method = without_batch_norm(METHODS[name]())
    (state, outputs), (in_parts, found) = (trained(copy.deepcopy(method), size) for size in (None, PART))
    start, whole, parts = (
        torch.cat([tensor.flatten().double() for tensor in s.values()]) for s in (method.state_dict(), state, in_parts)
    )
    assert (parts - whole).norm() < 1e-5 * (whole - start).norm()
    for one, other in zip(outputs, found, strict=True):
        expected, values = ({"loss": output.loss.detach(), **output.metrics} for output in (one, other))
        assert values.keys() == expected.keys()
        for figure, value in expected.items():
            atol = 0.1 if "accuracy" in figure else 1e-5  # a near tie may fall either way
            torch.testing.assert_close(values[figure].detach(), value, rtol=1e-4, atol=atol)
        if one.embedding is not None:
            torch.testing.assert_close(other.embedding, one.embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_no_image_passes_together_with_more_than_a_micro_batch_of_others(name):
    method, sizes = METHODS[name](), []
    views_per_pass = {"rotation": 4}.get(name, 2 if name.startswith("sim") or name == "supcon" else 1)
    method.encoder.register_forward_hook(lambda _, arguments, __: sizes.append(len(arguments[0])))
    trained(method, PART, steps=1)
    assert max(sizes) <= PART * views_per_pass


class Dropped(JointEmbedding):
    """Random numbers and batch norm on the way to the embedding."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.seen = []

    def make_views(self, images, rng):
        return Views(images=(noisy(images, rng.child(0)), noisy(images, rng.child(1))))

    def embed(self, views):
        found = tuple(self.encoder(view) for view in views.images)
        self.seen.append([z.detach().clone() for z in found])
        return found

    def compare(self, embeddings, views):
        loss = F.mse_loss(*embeddings) + sum(z.var(dim=0).sub(1).square().mean() for z in embeddings)
        return StepOutput(loss=loss)


def test_both_passes_draw_the_same_and_statistics_move_once():
    torch.manual_seed(0)
    method = Dropped()
    once = copy.deepcopy(method)
    trained(method, PART, steps=1)
    parts = IMAGES // PART
    assert len(method.seen) == 2 * parts
    for first, second in zip(method.seen[:parts], method.seen[parts:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(method.seen[0][0] == 0, method.seen[1][0] == 0)
    whole = views_of(once, 0)
    for start in range(0, IMAGES, PART):
        once.embed(whole.map(lambda tensor, start=start: tensor[start : start + PART]))
    norm, expected = method.encoder[2], once.encoder[2]
    assert norm.num_batches_tracked == expected.num_batches_tracked == 2 * parts
    torch.testing.assert_close(norm.running_mean, expected.running_mean)


def test_a_loss_that_is_not_finite_is_told_before_any_weight_is_touched():
    def refuse(loss):
        raise CollapseError("not finite")

    method = METHODS["simclr"]()
    with pytest.raises(CollapseError, match="not finite"):
        backward(method, method, views_of(method, 0), FABRIC, refuse, micro_batch=PART)
    assert all(weight.grad is None for weight in method.parameters())


# In the trainer


class Joint(Contrast, JointEmbedding):
    """The toy method of the trainer's tests with dropout, taken in parts."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def embed(self, views):
        return tuple(self.head(self.dropout(self.encoder(view))) for view in views.images)

    def compare(self, embeddings, views):
        loss = InfoNCE(lambda a, b: a @ b.T)(*embeddings)
        return StepOutput(loss=loss, metrics={"noise": torch.rand(())}, embedding=embeddings[0].detach())

    def forward(self, views):
        return JointEmbedding.forward(self, views)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("gradients") / "store")


def joint():
    torch.manual_seed(0)
    return Joint()


def test_a_stopped_run_continues_to_the_same_bytes(store, tmp_path):
    options = {"micro_batch": BATCH // 4}
    expected = result(train(store, tmp_path / "whole", method=joint(), **options))
    assert b"feature_std" in expected["curves.csv"]
    for steps in (1, 4, 7):
        with pytest.raises(Interrupted):
            train(store, tmp_path / str(steps), method=joint(), stop=after(steps, lambda: True), **options)
        assert result(train(store, tmp_path / str(steps), method=joint(), **options)) == expected


def test_a_micro_batch_of_the_whole_batch_is_no_micro_batch(store, tmp_path):
    plain = result(train(store, tmp_path / "plain", method=joint()))
    assert result(train(store, tmp_path / "one", method=joint(), micro_batch=BATCH)) == plain


def test_a_method_that_needs_its_batch_whole_is_refused_by_name(store, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.micro_batch 2 .* method Remembering needs it whole; delete train"):
        train(store, tmp_path, method=Remembering(), micro_batch=2)


def test_the_check_names_the_methods_that_take_their_batch_in_parts(project):
    parts = "method: {name: swav}\nencoder: {name: resnet8}\n"
    folder = project({"experiments/tiny.yaml": f"{parts}train: {{batch_size: 8, micro_batch: 4}}\n"})
    with pytest.raises(ConfigError, match=r"tiny.yaml:3: train.micro_batch: swav needs its batch whole.*byol.*simclr"):
        check_project(folder)


def test_micro_batches_fill_the_batch():
    with pytest.raises(ValueError, match="micro_batch 3 does not divide batch_size 8; use a divisor of it"):
        TrainConfig(batch_size=8, micro_batch=3)
