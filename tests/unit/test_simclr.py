"""SimCLR: its views, head, figures and what resume needs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ConfigError
from plugins.encoders import resnet8
from plugins.losses import DCL, NTXent
from plugins.methods import SimCLR
from plugins.methods.simclr import contrastive_metrics


def noisy(images: Tensor, rng: SampleRng) -> Tensor:
    return images + rng.normal(std=0.1, shape=images.shape[1:])


def simclr(**options: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(resnet8(width=4), noisy, NTXent(0.5), **{"out_dim": 8, **options})


def random_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def rng(n: int = 6, epoch: int = 0) -> SampleRng:
    return SampleRng(7, epoch, torch.arange(n))


def test_the_two_views_come_from_the_same_chain_and_differ():
    images = random_images()
    views = simclr().make_views(images, rng()).images
    assert torch.equal(views[0], noisy(images, rng().child(0)))
    assert torch.equal(views[1], noisy(images, rng().child(1)))
    assert not torch.equal(views[0], views[1])


def test_views_of_a_sample_do_not_depend_on_its_batch():
    method, images = simclr(), random_images()
    whole = method.make_views(images, rng()).images
    alone = method.make_views(images[4:5], SampleRng(7, 0, torch.tensor([4]))).images
    for view, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(single[0], view[4], atol=1e-6, rtol=0)


def test_loss_is_that_of_the_projections_of_one_joint_pass():
    method, images = simclr(), random_images()
    views = method.make_views(images, rng())
    z = method.head(method.encoder(torch.cat(views.images)))
    assert method(views).loss.item() == pytest.approx(NTXent(0.5)(z[:6], z[6:]).item(), abs=1e-6)


def test_encoder_runs_once_per_step_on_both_views():
    method, batches = simclr(), []
    method.encoder.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    method(method.make_views(random_images(), rng()))
    assert batches == [12]


def test_gradient_reaches_every_parameter_and_only_the_loss_carries_one():
    method = simclr()
    output = method(method.make_views(random_images(), rng()))
    assert not output.embedding.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


def test_embedding_is_the_projection_of_the_first_view():
    method = simclr().eval()
    views = method.make_views(random_images(), rng())
    torch.testing.assert_close(method(views).embedding, method.head(method.encoder(views.images[0])).detach())


@pytest.mark.parametrize(("layers", "norms"), [(2, 2), (3, 3)])
def test_head_has_the_layers_asked_for_with_batch_norm_after_each(layers, norms):
    head = simclr(head_layers=layers).head
    assert sum(isinstance(module, nn.Linear) for module in head) == layers
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head) == norms


def test_head_without_norm_ends_in_a_linear_layer_with_bias():
    last = simclr(head_norm=False).head[-1]
    assert isinstance(last, nn.Linear)
    assert last.bias is not None


def test_hidden_width_follows_the_encoder_unless_given():
    assert simclr().head[0].out_features == 16
    assert simclr(hidden_dim=24, head_layers=3).head[3].out_features == 24


def test_representation_is_the_encoder_and_not_the_projection():
    method = simclr().eval()
    images = random_images()
    representation = method.representation()
    assert representation.encoder is method.encoder
    assert representation.input_name == "rgb"
    torch.testing.assert_close(representation.pooled(images), method.encoder(images))


def test_fine_tuning_continues_from_the_encoder_alone_unless_told_otherwise():
    method, images = simclr(head_layers=3).eval(), random_images()
    model = method.fine_tune_model()
    assert (model.name, model.head, model.out_dim) == ("encoder", None, 16)
    assert torch.equal(model(images), method.encoder(images))


@pytest.mark.parametrize("hidden_dim", [None, 24])
def test_fine_tuning_through_head_layer_1_gives_its_linear_norm_and_relu_of_the_encoder_s_output(hidden_dim):
    method, images = simclr(head_layers=3, fine_tune_layer=1, hidden_dim=hidden_dim), random_images()
    method(method.make_views(images, rng()))  # moves the statistics of the norms
    model = method.eval().fine_tune_model()
    linear, norm = method.head[0], method.head[1]
    by_hand = method.encoder(images) @ linear.weight.T
    by_hand = (by_hand - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(model(images), by_hand.clamp(min=0), atol=1e-5, rtol=1e-4)
    assert model.out_dim == model(images).shape[1] == (hidden_dim or 16)
    assert model.name == "encoder + head layer 1"


def test_fine_tuning_shares_the_weights_of_encoder_and_head_layers_and_of_nothing_else():
    method = simclr(head_layers=3, fine_tune_layer=2)
    model = method.fine_tune_model()
    shared = [*method.encoder.parameters(), *method.head[:6].parameters()]
    assert {id(parameter) for parameter in model.parameters()} == {id(parameter) for parameter in shared}
    assert model.name == "encoder + head layers 1 to 2"


@pytest.mark.parametrize("layers", [2, 3])
def test_fine_tuning_from_the_projection_is_refused(layers):
    said = rf"method.fine_tune_layer {layers} must be smaller than method.head_layers {layers}.*at most {layers - 1}"
    with pytest.raises(ConfigError, match=said):
        simclr(head_layers=layers, fine_tune_layer=layers)


def test_constant_encoder_shows_the_trivial_figures():
    method = simclr(head_norm=False)
    for parameter in method.head[-1].parameters():
        nn.init.constant_(parameter, 0.0 if parameter.ndim > 1 else 1.0)
    output = method(method.make_views(random_images(), rng()))
    assert output.metrics["positive_similarity"].item() == pytest.approx(
        method.trivial()["positive_similarity"], abs=1e-6
    )
    assert output.loss.item() == pytest.approx(math.log(11), abs=1e-6)
    assert output.metrics["information_bound"].item() == pytest.approx(method.trivial()["information_bound"], abs=1e-6)
    assert set(method.trivial()) <= {"loss", *output.metrics}


def test_the_bound_is_logged_where_the_loss_says_among_how_many_candidates_it_chooses():
    method = simclr()
    output = method(method.make_views(random_images(), rng()))
    assert output.metrics["information_bound"].item() == pytest.approx(math.log(11) - output.loss.item(), abs=1e-6)
    method.loss = DCL()
    assert "information_bound" not in {*method(method.make_views(random_images(), rng())).metrics, *method.trivial()}


def test_contrastive_figures_equal_a_loop_over_anchors():
    generator = torch.Generator().manual_seed(1)
    z_a = torch.randn(5, 3, generator=generator)
    z_b = z_a + torch.randn(5, 3, generator=generator)
    z, hits = torch.cat([z_a, z_b]), 0
    for i in range(10):
        others = {j: F.cosine_similarity(z[i], z[j], dim=0).item() for j in range(10) if j != i}
        hits += max(others, key=others.get) == (i + 5) % 10
    figures = contrastive_metrics(z_a, z_b)
    assert 0 < hits < 10
    assert figures["contrastive_accuracy"].item() == pytest.approx(hits / 10)
    assert figures["positive_similarity"].item() == pytest.approx(F.cosine_similarity(z_a, z_b).mean().item(), abs=1e-6)


def test_separated_pairs_are_found_without_error():
    figures = contrastive_metrics(torch.eye(4), 3 * torch.eye(4))
    assert figures["contrastive_accuracy"].item() == 1
    assert figures["positive_similarity"].item() == pytest.approx(1)


def test_bf16_autocast_gives_a_finite_float32_loss():
    method = simclr()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(method.make_views(random_images(), rng()))
    output.loss.backward()
    assert output.loss.dtype == output.embedding.dtype == torch.float32
    assert torch.isfinite(output.loss)
    assert torch.isfinite(method.encoder.conv1.weight.grad).all()


def test_state_dict_reproduces_the_next_step_bit_for_bit():
    def step(method: SimCLR, optimizer: torch.optim.Optimizer, epoch: int) -> Tensor:
        output = method(method.make_views(random_images(), rng(epoch=epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_update((epoch + 1) / 4)
        return output.loss.detach()

    first = simclr()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        step(first, optimizer, epoch)
    torch.manual_seed(99)
    second = SimCLR(resnet8(width=4), noisy, NTXent(0.5), out_dim=8)
    resumed = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(first, optimizer, 2), step(second, resumed, 2))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_training_brings_siblings_together():
    method = simclr()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(15):
        output = method(method.make_views(random_images(16), rng(16, epoch)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] - 0.3
