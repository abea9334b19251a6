"""The differentiable collectives, against a single process that holds all rows."""

import cases
import torch

from cl_core.distributed import average, gather, total, world_size

ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def test_gathered_rows_come_in_the_order_of_the_batch_with_the_gradient_of_the_whole(two):
    everything, gradient = cases.squares_of_gathered(ROWS)
    assert torch.equal(everything, ROWS)
    answers = two(cases.squares_of_gathered, ROWS)
    assert all(torch.equal(gathered, ROWS) for gathered, _ in answers)
    torch.testing.assert_close(torch.cat([share for _, share in answers]), gradient)


def test_a_loss_may_compare_only_its_own_rows_with_all_of_them(two):
    _, gradient = cases.squares_of_gathered(ROWS)
    torch.testing.assert_close(torch.cat(two(cases.own_anchors, ROWS)), gradient)


def test_totals_are_sums_over_the_processes_with_gradient(two):
    values = torch.tensor([2.0, 5.0])
    for result, gradient in two(cases.sums_and_gradient, values):
        assert float(result) == 49
        assert float(gradient) == 14  # d (a + b)^2 / da


def test_in_one_process_and_alone_everything_is_the_identity(two):
    assert world_size() == 1
    assert all(function(ROWS) is ROWS for function in (gather, total, average))
    assert two(cases.size_when_alone) == [(2, 1, 2), (2, 1, 2)]
