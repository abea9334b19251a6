"""What the assignment of images to prototypes tells about them, against closed forms."""

import math

import pytest
import torch

from plugins.methods.assignment import assignment_information


@pytest.mark.parametrize("row", [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]])
def test_nothing_is_told_where_all_images_get_the_same_answer_sharp_or_flat(row):
    assert assignment_information(torch.tensor(row).repeat(8, 1)).item() == pytest.approx(0, abs=1e-6)


def test_certain_and_even_answers_tell_the_log_of_the_prototypes():
    assert assignment_information(torch.eye(4).repeat(3, 1)).item() == pytest.approx(math.log(4), rel=1e-6)
    assert assignment_information(torch.eye(3, 9)).item() == pytest.approx(math.log(3), rel=1e-6)  # no more than images


def test_it_is_the_mean_divergence_of_the_rows_from_their_mean():
    shares = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    mean = shares.mean(dim=0)
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, mean.tolist(), strict=True)) for row in shares.tolist()]
    assert assignment_information(shares).item() == pytest.approx(sum(divergences) / 6, rel=1e-5)
