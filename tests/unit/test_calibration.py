"""Calibration figures against slow versions written from their definitions, and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from cl_core.measures import calibration


@pytest.fixture(scope="module")
def answers():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (400,), generator=generator)
    logits = torch.randn(400, 5, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 5)
    return logits, labels


def test_figures_agree_with_scikit_learn(answers):
    logits, labels = answers
    probabilities, predicted = logits.double().softmax(dim=1), logits.argmax(dim=1)
    assert calibration.log_loss(logits, labels) == pytest.approx(log_loss(labels, probabilities))
    assert calibration.macro_f1(predicted, labels) == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert calibration.confusion(predicted, labels, 5).tolist() == confusion_matrix(labels, predicted).tolist()


def test_brier_score_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert calibration.brier_score(logits, torch.tensor([0, 1])) == pytest.approx((0.5 + 2 * 0.75**2) / 2)


def test_calibration_error_by_bins_of_equal_mass(answers):
    logits, labels = answers
    rows = sorted(
        (float(p.max()), bool(p.argmax() == label)) for p, label in zip(logits.double().softmax(1), labels, strict=True)
    )
    total = 0.0
    for number in range(15):
        size, extra = divmod(400, 15)
        begin = number * size + min(number, extra)
        part = rows[begin : begin + size + (number < extra)]
        accuracy, confidence = sum(right for _, right in part), sum(sure for sure, _ in part)
        total += abs(accuracy - confidence) / 400
    assert calibration.calibration_error(logits, labels) == pytest.approx(total)


def test_certain_and_right_is_perfectly_calibrated():
    assert calibration.calibration_error(100 * torch.eye(4), torch.arange(4)) == pytest.approx(0)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_the_logits(answers, factor):
    logits, labels = answers
    plain = calibration.fit_temperature(logits, labels)
    assert calibration.fit_temperature(factor * logits, labels) == pytest.approx(factor * plain, rel=1e-2)


def test_answers_that_are_right_for_a_few_images_do_not_make_certain():
    logits, labels = torch.eye(4)[:, :4] * 2, torch.arange(4)
    warmest = (logits / calibration.fit_temperature(logits, labels)).softmax(dim=1).max()
    assert 0.8 < warmest < 0.95
