"""DINO against Caron et al.: which pairs are compared, what the teacher says, when the last layer moves."""

import math

import pytest
import torch
import torch.nn.functional as F

from cl_core.data.sampling import SampleRng
from cl_core.testing import sample_images
from plugins.encoders import resnet8
from plugins.methods.dino import DINO, Head, distillation_loss

K = 32


def noisy(images, rng):
    return (images + 0.1 * rng.normal(shape=images.shape[1:])).clamp(0, 1)


def small(images, rng):
    return noisy(images, rng)[..., ::2, ::2]


def method(**options):
    torch.manual_seed(0)
    return DINO(resnet8(width=4), noisy, noisy, small, prototypes=K, hidden_dim=16, bottleneck_dim=8, **options)


def views(model, count=16, epoch=0):
    return model.make_views(sample_images(count), SampleRng(0, epoch, torch.arange(count)))


def test_large_crops_come_first_and_small_ones_differ_from_each_other():
    made = views(method(local_crops=3)).images
    assert [tuple(view.shape[2:]) for view in made] == [(32, 32), (32, 32), (16, 16), (16, 16), (16, 16)]
    assert not torch.equal(made[2], made[3])
    assert len(views(method(local_crops=0)).images) == 2


def test_the_loss_is_the_loop_over_different_crops_with_a_large_one_as_teacher():
    torch.manual_seed(0)
    logits = [torch.randn(4, K) for _ in range(5)]
    targets = [F.softmax(torch.randn(4, K), dim=1) for _ in range(2)]
    terms = []
    for t, p in enumerate(targets):
        for s, scores in enumerate(logits):
            if s == t:
                continue
            for row in range(4):
                total = sum(math.exp(float(x)) for x in scores[row])
                terms.append(-sum(float(p[row, k]) * (float(scores[row, k]) - math.log(total)) for k in range(K)))
    assert len(terms) == 4 * (2 * 5 - 2)
    assert float(distillation_loss(targets, logits)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_teacher_and_a_student_without_opinion_cost_log_k():
    uniform = [torch.full((3, K), 1 / K)] * 2
    loss = distillation_loss(uniform, [torch.zeros(3, K)] * 4)
    assert float(loss) == pytest.approx(math.log(K))
    assert method().trivial()["loss"] == pytest.approx(math.log(K))


def test_a_teacher_that_always_says_the_same_is_matched_for_nothing():
    certain = F.one_hot(torch.zeros(3, dtype=torch.int64), K).float()
    assert float(distillation_loss([certain] * 2, [certain * 100] * 4)) == pytest.approx(0, abs=1e-6)


def test_the_centre_moves_by_a_tenth_of_the_batch_mean_after_the_update():
    model = method(centre_momentum=0.9).train()
    made = views(model)
    with torch.no_grad():
        outputs = torch.cat([model.teacher(view) for view in made.images[:2]])
    before = model.centre.clone()
    model(made)
    assert torch.equal(model.centre, before)
    model.after_update(0.5)
    torch.testing.assert_close(model.centre, 0.9 * before + 0.1 * outputs.mean(dim=0))
    assert "centre" in model.state_dict()


def test_the_teacher_gets_no_gradient_and_is_the_moving_average():
    model = method(base_momentum=0.0).train()
    model(views(model)).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    for parameter in model.encoder.parameters():
        parameter.data.add_(1.0)
    model.after_update(1e-12)
    assert torch.allclose(model.teacher[0].conv1.weight, model.encoder.conv1.weight)


def test_the_last_layer_is_frozen_for_the_stated_share():
    model = method(frozen=0.5).train()
    for progress, learns in ((0.4, False), (0.6, True)):
        model.after_update(progress)
        model.zero_grad()
        model(views(model)).loss.backward()
        grad = model.head.prototypes.weight.grad
        assert (grad is not None and bool(grad.abs().sum() > 0)) == learns
        assert model.head.layers[0].weight.grad.abs().sum() > 0


def test_the_teacher_s_temperature_rises_in_a_line():
    model = method(teacher_temperature=(0.04, 0.08), warmup=0.5)
    temperatures = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.progress.fill_(progress)
        temperatures.append(model._sharpness())
    assert temperatures == pytest.approx([0.04, 0.06, 0.08, 0.08])


def test_the_head_gives_cosines_whatever_the_length_of_its_prototypes():
    torch.manual_seed(0)
    head = Head(6, 16, 8, K)
    features = torch.randn(5, 6)
    before = head(features).detach()
    assert float(before.abs().max()) <= 1
    head.prototypes.weight.data.mul_(3)
    torch.testing.assert_close(head(features).detach(), before)


def test_a_student_learns_what_a_fixed_teacher_says_about_other_crops():
    model = method(local_crops=2, base_momentum=1.0, teacher_temperature=(0.04, 0.04)).train()
    model.head.prototypes.weight.data.normal_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    divergences = []
    for step in range(40):
        output = model(views(model, 32, epoch=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_update((step + 1) / 40)
        divergences.append(float(output.metrics["divergence"]))
    assert sum(divergences[-5:]) < 0.6 * sum(divergences[5:10])
    assert 0.1 < float(output.metrics["teacher_entropy"]) < math.log(K)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_a_teacher_of_one_opinion_tells_nothing_be_it_sharp_or_flat(temperature):
    model = method(teacher_temperature=(temperature, temperature))
    last = model.teacher[1].layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    metrics = model(views(model)).metrics
    assert float(metrics["assignment_information"]) == pytest.approx(
        model.trivial()["assignment_information"], abs=1e-5
    )
    assert float(metrics["teacher_entropy"]) == pytest.approx(0 if temperature < 1 else math.log(K), abs=0.01)
    assert float(method()(views(model)).metrics["assignment_information"]) > 0.01
