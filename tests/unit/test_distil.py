"""Distillation: its loss in closed form, a teacher that stays as it is, and what the shares of the loss mean."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from cl_core.config import DistilConfig
from cl_core.data.sampling import mix
from cl_core.data.store import Split
from cl_core.errors import CollapseError, DataError
from cl_core.evaluation.classifier import Batches, Classifier, sgd
from cl_core.evaluation.distil import _LABELLED_STREAM, _STREAM, distil, distillation_loss
from cl_core.evaluation.draws import Drawing
from cl_core.evaluation.features import load_weights
from tests.unit.test_few_labels import Colours, build, flip, make_store

SETTINGS = DistilConfig(budget=0.1, epochs=2, batch_size=16, lr=0.05)
FIGURES = {"top1": 0.75, "top1_ci95": [0.6, 0.9]}
DRAWN = {**FIGURES, "draws": [FIGURES]}
FINETUNED = {"budgets": {"0.1": {"labels_trained": 9, "competitors": {"best": DRAWN, "supervised": DRAWN}}}}


def random_logits(n=5, classes=4, seed=0, scale=2.0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_by_the_book(student, teacher, temperature):
    """- sum_i sum_y P_T(y|x_i) log P_S(y|x_i) over i, with loops; the mean over images."""
    total = 0.0
    for own, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        z_own, z_theirs = (sum(math.exp(v / temperature) for v in row) for row in (own, theirs))
        for a, b in zip(own, theirs, strict=True):
            total -= math.exp(b / temperature) / z_theirs * (a / temperature - math.log(z_own))
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_the_loss_equals_the_sum_of_the_paper(temperature):
    student, teacher = random_logits(seed=1), random_logits(seed=2)
    expected = loss_by_the_book(student, teacher, temperature)
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_an_undecided_student_of_an_undecided_teacher_loses_log_k():
    assert distillation_loss(torch.zeros(3, 7), torch.full((3, 7), 2.5)).item() == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_loss_is_least_where_the_student_equals_the_teacher_and_is_then_the_teacher_s_entropy(temperature):
    teacher = random_logits()
    student = (teacher + 1.7).requires_grad_()  # a shift of all logits changes no answer
    loss = distillation_loss(student, teacher, temperature)
    answers = (teacher / temperature).softmax(dim=1)
    assert loss.item() == pytest.approx(-(answers * answers.log()).sum(dim=1).mean().item(), rel=1e-9)
    loss.backward()
    assert student.grad.abs().max() < 1e-12
    assert distillation_loss(random_logits(seed=3), teacher, temperature) > loss


def test_a_higher_temperature_softens_and_a_low_one_leaves_only_the_teacher_s_first_choice():
    teacher = random_logits(n=1)
    entropies = [distillation_loss(teacher, teacher, temperature).item() for temperature in (0.01, 0.5, 1, 3, 1e4)]
    assert entropies == sorted(entropies)
    assert entropies[0] == pytest.approx(0, abs=1e-6)
    assert entropies[-1] == pytest.approx(math.log(4), rel=1e-5)
    student = random_logits(n=1, seed=1)
    hard = cross_entropy(student / 0.01, teacher.argmax(dim=1))
    assert distillation_loss(student, teacher, 0.01).item() == pytest.approx(hard.item(), rel=1e-6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("colours") / "dataset", Colours())


def classifier(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Classifier(build(seed), 3)
        made.head.weight.data.normal_()
    return made


def pretrained():
    return classifier(0)


def untrained():
    return Classifier(build(1), 3)


def run(store, *, teacher=pretrained, student=untrained, split=None, **changes):
    settings = SETTINGS.model_copy(update=changes)
    options = {"augment": flip, "settings": settings, "seed": 0, "report": lambda line: None}
    return distil(teacher, student, split or store.split, FINETUNED, **options)


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_teacher_is_the_same_afterwards_bit_for_bit_and_so_are_its_modes(store):
    teacher = classifier(0).train()
    before = copy.deepcopy(teacher.state_dict())
    run(store, teacher=lambda: teacher)
    assert equal(before, teacher.state_dict())
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_that_updates_its_batch_norm_is_an_error(store):
    class Restless(Classifier):
        def forward(self, images):
            self.model.representation.encoder.norm.train()
            return super().forward(images)

    with pytest.raises(
        DataError, match=r"the frozen Restless changed while the student learned from it: .*norm\.running_mean"
    ):
        run(store, teacher=lambda: Restless(build(0), 3))


def test_the_student_learns_the_answers_of_its_teacher_from_images_without_labels(store):
    teacher, test = classifier(0), store.split("test")
    student = run(store, teacher=lambda: teacher, epochs=30, lr=0.2).student
    images = test.images(np.arange(len(test))).float() / 255
    with torch.no_grad():
        answers = [model.eval()(images).argmax(dim=1) for model in (teacher, student, untrained())]
    assert (answers[1] == answers[0]).float().mean() > 0.9 > (answers[2] == answers[0]).float().mean()


def test_without_a_labelled_share_no_label_of_a_training_image_matters(store):
    class Relabelled(Split):
        @property
        def labels(self):
            return (super().labels + 1) % 3

    train_split = store.split("train")
    other = Relabelled("train", train_split._shards, image_size=8, channels=3)
    split = {"train": other, "validation": store.split("validation"), "test": store.split("test")}
    assert equal(weights(run(store).student), weights(run(store, split=split.__getitem__).student))


def test_a_labelled_share_of_1_is_cross_entropy_on_the_teacher_s_labels_alone(store):
    images, seed = store.split("train"), mix(0, _LABELLED_STREAM)
    rows = Drawing(images.keys, images.labels).share(0.1)
    batches = Batches(
        split=images, rows=rows, size=min(16, len(rows)), augment=flip, seed=seed, device=torch.device("cpu")
    )
    by_hand = untrained()

    def loss_at(step):
        views, labels = batches.at(step)
        return cross_entropy(by_hand(views), labels)

    steps = 2 * (len(images) // 16)
    training = sgd(by_hand, peak_lr=0.05, steps=steps, seed=mix(0, _STREAM), device=torch.device("cpu"))
    for step in range(steps):
        training.step(step, loss_at)
    for teacher in (0, 5):
        student = run(store, teacher=partial(classifier, teacher), labelled_share=1.0).student
        assert equal(weights(by_hand), weights(student))


def test_a_labelled_share_between_mixes_both_losses(store):
    students = [weights(run(store, labelled_share=share).student) for share in (0.0, 0.5, 1.0)]
    assert not equal(students[0], students[1])
    assert not equal(students[1], students[2])


def test_the_same_seed_gives_the_same_bytes_whatever_torch_was_seeded_with(store, tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        run(store, labelled_share=0.3).save_student(tmp_path / f"{seed}.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    load_weights(untrained(), tmp_path / "1.safetensors", "student")


def test_the_student_reads_every_labelled_test_image_once_and_stands_beside_its_teacher(store):
    test = store.split("test")
    counting = Counting("test", test._shards, image_size=8, channels=3)
    counting.reads = []
    result = run(store, split=lambda name: counting if name == "test" else store.split(name))
    assert sorted(counting.reads) == np.flatnonzero(test.labels >= 0).tolist()
    metrics = result.metrics
    assert metrics["protocol"] == "distil/simclr-v2"
    assert (metrics["budget"], metrics["n_labels"], metrics["n_images"]) == ("0.1", 9, len(store.split("train")))
    assert metrics["teacher"] == metrics["supervised_same_labels"] == FIGURES
    low, high = metrics["student"]["top1_ci95"]
    assert low <= metrics["student"]["top1"] <= high
    assert metrics["details"]["steps"] == 2 * (metrics["n_images"] // 16)


class Counting(Split):
    """Notes which images are read."""

    def images(self, rows):
        self.reads += np.asarray(rows).tolist()
        return super().images(rows)


def test_where_fine_tuning_was_skipped_there_is_nobody_to_learn_from(store, tmp_path):
    def nobody():
        raise AssertionError

    skipped = {"skipped": "the dataset has no labels"}
    result = distil(nobody, nobody, store.split, skipped, augment=flip, settings=SETTINGS, seed=0)
    assert result.metrics == skipped
    result.save_student(tmp_path / "student.safetensors")
    assert (tmp_path / "student.safetensors").is_file()


def test_a_learning_rate_that_diverges_is_named(store):
    with pytest.raises(CollapseError, match=r"diverged at a peak learning rate of 1e\+20; lower distil.lr"):
        run(store, lr=1e20)
