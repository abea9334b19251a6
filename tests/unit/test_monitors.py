"""The monitor stops a run whose embedding has collapsed for good, and no other."""

import math

import pluggy
import pytest
import torch

from cl_core import hookspecs
from cl_core.errors import CollapseError
from cl_core.measures.diagnostics import collapse_figures
from cl_core.types import RunInfo
from plugins import monitors

HEALTHY = {"feature_std": 1.0, "effective_rank": 40.0, "active_share": 0.3, "assignment_information": 1.0}
FLAT = {"feature_std": 0.05, "effective_rank": 40.0}
LINE = {"feature_std": 1.0, "effective_rank": 1.2}


@pytest.fixture
def watched(tmp_path):
    """(start, log) of the monitor behind a real plugin manager, a run of 100 steps started."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(monitors)
    hooks = manager.hook
    info = RunInfo(experiment="toy", directory=tmp_path, total_steps=100, config={})

    def start():
        hooks.on_run_start(run=info)

    start()
    return start, lambda step, figures: hooks.on_log(step=step, metrics=figures)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (FLAT, r"feature_std is 0\.05.*below 0\.1, so all images.*lower optimizer\.lr"),
        (LINE, r"effective_rank is 1\.2.*below 2, so the embeddings.*lower optimizer\.lr"),
        ({"feature_std": math.nan, "effective_rank": math.nan}, "feature_std is nan"),
        ({"active_share": 0.009}, r"active_share is 0\.009.*below 0\.01, so nearly all outputs are 0.*optimizer\.clip"),
    ],
)
def test_a_lasting_collapse_stops_the_run_and_says_what_to_do(watched, figures, said):
    _, log = watched
    for step in (20, 30, 40, 50):
        log(step, figures)
    with pytest.raises(CollapseError, match=rf"collapsed: at step 60 {said}"):
        log(60, figures)


def test_answers_that_tell_nothing_are_judged_in_the_last_quarter(watched):
    _, log = watched
    for step in range(1, 76):
        log(step, {"assignment_information": 0.001})
    for step in range(76, 80):
        log(step, {"assignment_information": 0.001})
    with pytest.raises(CollapseError, match=r"assignment_information is 0\.001.*sharpen the targets"):
        log(80, {"assignment_information": 0.001})


def test_two_figures_that_dip_in_turn_do_not_add_up(watched):
    _, log = watched
    for step in range(20, 100):
        log(step, FLAT if step % 2 else LINE)


def test_a_dip_that_recovers_does_not_stop_the_run(watched):
    _, log = watched
    for step in range(20, 100):
        log(step, HEALTHY if step % 5 == 0 else FLAT)


def test_the_first_tenth_of_a_run_is_not_judged(watched):
    _, log = watched
    for step in range(1, 11):
        log(step, FLAT)
    for step in range(11, 15):
        log(step, FLAT)
    with pytest.raises(CollapseError, match="at step 15"):
        log(15, FLAT)


def test_strikes_of_one_run_do_not_count_in_the_next(watched):
    start, log = watched
    for _ in range(3):
        for step in (20, 30, 40, 50):
            log(step, LINE)
        start()


def test_steps_without_an_embedding_are_not_judged(watched):
    _, log = watched
    for step in range(20, 100):
        log(step, {"loss": 1.0})


def embeddings(collapsing, steps):
    """What a linear encoder makes of fixed inputs while it learns to be constant, or to tell its inputs apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 16, generator=generator)
    weight = torch.randn(16, 8, generator=generator, requires_grad=True)
    bias = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    for _ in range(steps):
        z = inputs @ weight + bias
        unit = torch.nn.functional.normalize(z, dim=1)
        scores = (unit @ unit.T) / 0.5
        loss = (z - 1).square().mean(dim=0).sum() if collapsing else torch.logsumexp(scores, dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield z.detach()


def test_the_monitor_stops_a_training_that_collapses(watched):
    _, log = watched
    with pytest.raises(CollapseError, match="collapsed"):  # noqa: PT012 - the loop is the training
        for step, z in enumerate(embeddings(collapsing=True, steps=100), start=1):
            log(step, collapse_figures(z))


def test_the_monitor_lets_a_healthy_training_finish(watched):
    _, log = watched
    for step, z in enumerate(embeddings(collapsing=False, steps=100), start=1):
        log(step, collapse_figures(z))
