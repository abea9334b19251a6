"""Learning rates and optimisers against their formulas."""

import math

import pytest
import torch
from torch import nn

from cl_core.config import LrRule, OptimizerConfig, ScheduleConfig
from cl_core.errors import ConfigError
from cl_core.training.optim import Schedule, build_optimizer, set_lr
from cl_core.types import ParamGroup


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def test_schedule_warms_up_in_a_line_and_falls_as_half_a_cosine():
    schedule = Schedule(peak_lr=2.0, warmup_steps=4, total_steps=24, final_share=0.1)
    assert [schedule.lr_at(step) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert schedule.lr_at(14) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert schedule.lr_at(9) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert schedule.lr_at(24) == pytest.approx(0.2)
    rates = [schedule.lr_at(step) for step in range(4, 25)]
    assert rates == sorted(rates, reverse=True)


def test_schedule_without_warm_up_starts_at_the_peak():
    assert Schedule(peak_lr=0.3, warmup_steps=0, total_steps=10).lr_at(0) == 0.3


def test_schedule_that_is_all_warm_up_rises_to_its_last_step():
    rates = [Schedule(peak_lr=1.0, warmup_steps=3, total_steps=3).lr_at(step) for step in range(3)]
    assert rates == pytest.approx([0.25, 0.5, 0.75])


def test_schedule_of_a_configuration_counts_in_steps():
    schedule = Schedule.of(ScheduleConfig(epochs=10, warmup_epochs=0.5, final_lr=0.01), 0.3, steps_per_epoch=7)
    assert schedule == Schedule(peak_lr=0.3, warmup_steps=4, total_steps=70, final_share=0.01)


def test_schedule_with_restarts_falls_from_the_peak_in_every_phase():
    schedule = Schedule(peak_lr=1.0, warmup_steps=2, total_steps=20, restarts=(0.5, 0.8))
    rates = [schedule.lr_at(step) for step in range(20)]
    assert [step for step, rate in enumerate(rates) if rate == 1.0] == [2, 10, 16]
    assert rates[13] == pytest.approx(0.5)  # halfway through the second phase
    assert rates[10:16] == sorted(rates[10:16], reverse=True)


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.6), ("sqrt", 0.3 * 2**0.5)])
def test_learning_rate_rule_sets_the_rate_of_every_group(rule, expected):
    config = OptimizerConfig(lr=LrRule(base=0.3, per=256, rule=rule))
    optimizer = build_optimizer([ParamGroup(params=parameters((3, 2)))], config, batch_size=512)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_multiplier_scales_the_rate_of_its_group_alone():
    slow, fast = parameters((2, 2), (2, 2))
    groups = [ParamGroup(params=[slow]), ParamGroup(params=[fast], lr_mult=10.0)]
    optimizer = build_optimizer(groups, OptimizerConfig(lr=0.5), batch_size=8)
    set_lr(optimizer, Schedule(peak_lr=0.5, warmup_steps=0, total_steps=10), 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 2.5])


def test_constant_rate_warms_up_with_the_others_and_stays_at_the_peak():
    decayed, constant = parameters((2, 2), (2, 2))
    groups = [ParamGroup(params=[decayed]), ParamGroup(params=[constant], constant_lr=True, lr_mult=2.0)]
    optimizer = build_optimizer(groups, OptimizerConfig(lr=0.6), batch_size=8)
    schedule = Schedule(peak_lr=0.6, warmup_steps=2, total_steps=10)
    rates = []
    for step in (0, 1, 6, 9):
        set_lr(optimizer, schedule, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[:2] == [pytest.approx([0.2, 0.4]), pytest.approx([0.4, 0.8])]
    assert rates[2] == pytest.approx([0.3, 1.2])
    assert rates[3][0] < 0.1
    assert rates[3][1] == pytest.approx(1.2)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weight_decay_leaves_groups_without_decay_alone(name):
    kept, decayed = parameters((3, 3), (3, 3))
    before = kept.detach().clone()
    groups = [ParamGroup(params=[decayed]), ParamGroup(params=[kept], decay=False)]
    optimizer = build_optimizer(groups, OptimizerConfig(name=name, lr=0.1, weight_decay=0.5), batch_size=8)
    norm = decayed.norm().item()
    for parameter in (kept, decayed):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(kept, before)
    assert decayed.norm().item() < norm


def test_sgd_and_adamw_take_their_options():
    sgd = build_optimizer(
        [ParamGroup(params=parameters((2, 2)))], OptimizerConfig(lr=0.1, momentum=0.8, nesterov=True), batch_size=8
    )
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adamw = build_optimizer(
        [ParamGroup(params=parameters((2, 2)))], OptimizerConfig(name="adamw", lr=0.1, betas=(0.8, 0.99)), batch_size=8
    )
    assert adamw.defaults["betas"] == (0.8, 0.99)


def test_nesterov_without_momentum_is_a_config_error():
    config = OptimizerConfig(momentum=0.0, nesterov=True)
    with pytest.raises(ConfigError, match=r"needs optimizer\.momentum above 0"):
        build_optimizer([ParamGroup(params=parameters((2, 2)))], config, batch_size=8)


def test_nothing_to_train_is_a_config_error():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer([ParamGroup(params=[])], OptimizerConfig(), batch_size=8)


def lars_by_hand(weights, gradients_of, steps, *, lr, momentum, eta, decay, adapt):
    """g' = g + decay w; r = eta |w| / |g'|, 1 where a norm is 0; v = m v + r g'; w = w - lr v. One tensor, lists."""
    weights, velocity = [float(w) for w in weights.flatten()], [0.0] * weights.numel()
    for step in range(steps):
        gradient = [float(g) + decay * w for g, w in zip(gradients_of(step).flatten(), weights, strict=True)]
        norm_w, norm_g = math.sqrt(sum(w * w for w in weights)), math.sqrt(sum(g * g for g in gradient))
        ratio = eta * norm_w / norm_g if adapt and norm_w > 0 and norm_g > 0 else 1.0
        velocity = [momentum * v + ratio * g for v, g in zip(velocity, gradient, strict=True)]
        weights = [w - lr[step] * v for w, v in zip(weights, velocity, strict=True)]
    return torch.tensor(weights)


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("adapt", [True, False])
def test_lars_equals_the_formula_by_hand(decay, adapt):
    (weight,) = parameters((4, 3))
    start = weight.detach().clone()
    config = OptimizerConfig(name="lars", lr=0.8, weight_decay=0.3, momentum=0.9, trust_coefficient=0.02)
    optimizer = build_optimizer([ParamGroup(params=[weight], decay=decay, adapt=adapt)], config, batch_size=8)
    schedule = Schedule(peak_lr=0.8, warmup_steps=0, total_steps=3)
    rates = [schedule.lr_at(step) for step in range(3)]
    gradients = []
    for step in range(3):
        give_gradients([weight], step)
        gradients.append(weight.grad.clone())
        set_lr(optimizer, schedule, step)
        optimizer.step()
    expected = lars_by_hand(
        start, lambda step: gradients[step], 3, lr=rates, momentum=0.9, eta=0.02, decay=0.3 * decay, adapt=adapt
    )
    torch.testing.assert_close(weight.detach().flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_lars_step_length_does_not_depend_on_the_gradients_scale(scale):
    (weight,) = parameters((5, 5))
    before, norm = weight.detach().clone(), weight.norm().item()
    config = OptimizerConfig(name="lars", lr=0.5, weight_decay=0.0, trust_coefficient=1e-3)
    optimizer = build_optimizer([ParamGroup(params=[weight])], config, batch_size=8)
    give_gradients([weight], 0, scale)
    optimizer.step()
    assert (weight - before).norm().item() == pytest.approx(0.5 * 1e-3 * norm, rel=1e-3)


def test_lars_moves_a_group_that_does_not_adapt_as_sgd_does():
    for_lars, for_sgd = parameters((6,)), parameters((6,))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    lars = build_optimizer(
        [ParamGroup(params=for_lars, decay=False, adapt=False)], OptimizerConfig(name="lars", **options), batch_size=8
    )
    sgd = torch.optim.SGD(for_sgd, lr=0.1, momentum=0.9)
    for step in range(4):
        give_gradients(for_lars, step)
        give_gradients(for_sgd, step)
        lars.step()
        sgd.step()
    torch.testing.assert_close(for_lars[0], for_sgd[0])


def test_lars_survives_zero_gradients_and_zero_weights():
    weight, zero = parameters((3, 3), (3, 3))
    nn.init.zeros_(zero)
    config = OptimizerConfig(name="lars", lr=0.5, weight_decay=0.0)
    optimizer = build_optimizer([ParamGroup(params=[weight, zero])], config, batch_size=8)
    weight.grad = torch.zeros_like(weight)
    zero.grad = torch.ones_like(zero)
    optimizer.step()
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(zero.detach(), torch.full((3, 3), -0.5))


def test_lars_skips_parameters_without_gradient():
    used, unused = parameters((2, 2), (2, 2))
    before = unused.detach().clone()
    optimizer = build_optimizer([ParamGroup(params=[used, unused])], OptimizerConfig(name="lars", lr=0.5), batch_size=8)
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(unused, before)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_optimizer_continues_from_its_saved_state(name):
    def trained(interrupt):
        params = parameters((4, 4), (4,))
        groups = [ParamGroup(params=params[:1]), ParamGroup(params=params[1:], decay=False, adapt=False)]
        config = OptimizerConfig(name=name, lr=0.1)
        optimizer = build_optimizer(groups, config, batch_size=8)
        for step in range(6):
            if step == interrupt:
                state = optimizer.state_dict()
                optimizer = build_optimizer(groups, config, batch_size=8)
                optimizer.load_state_dict(state)
            give_gradients(params, step)
            optimizer.step()
        return params

    for straight, continued in zip(trained(None), trained(3), strict=True):
        assert torch.equal(straight, continued)
