import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptprism.evaluation.metrics import class_accuracies, classification_metrics, harmonic_mean


def test_metrics_of_four_images_by_hand():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    metrics = classification_metrics(probabilities, torch.tensor([0, 1, 1, 2]))
    assert metrics["cls/accuracy"] == pytest.approx(3 / 4)
    assert metrics["cls/macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # Each confidence falls into a bin of its own but 0.6, which two share, one of them right.
    assert metrics["cal/ece"] == pytest.approx((0.2 + 2 * abs(0.6 - 0.5) + 0.3) / 4, abs=1e-6)
    assert metrics["cal/nll"] == pytest.approx(-(math.log(0.8 * 0.3 * 0.7 * 0.6)) / 4)
    squares = [0.04 + 0.01 + 0.01, 0.36 + 0.49 + 0.01, 0.01 + 0.09 + 0.04, 0.04 + 0.04 + 0.16]
    assert metrics["cal/brier"] == pytest.approx(sum(squares) / 4)


def test_certain_and_right_is_perfect_certain_and_wrong_is_finite():
    perfect = classification_metrics(torch.eye(3), torch.arange(3))
    assert perfect == pytest.approx(
        {"cls/accuracy": 1, "cls/macro_f1": 1, "cal/ece": 0, "cal/nll": 0, "cal/brier": 0}
    )
    wrong = classification_metrics(torch.eye(3), torch.tensor([1, 2, 0]))
    assert wrong["cal/brier"] == 2 and wrong["cal/ece"] == 1
    assert wrong["cal/nll"] == pytest.approx(-math.log(1e-12))


def test_classes_that_do_not_occur_are_left_out_of_macro_f1():
    metrics = classification_metrics(torch.eye(10)[:2], torch.tensor([0, 1]))
    assert metrics["cls/macro_f1"] == 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_harmonic_mean_lies_between_and_is_zero_if_one_is(base, new):
    hm = harmonic_mean(base, new)
    assert min(base, new) - 1e-9 <= hm <= max(base, new) + 1e-9
    assert harmonic_mean(base, 0) == 0 and harmonic_mean(new, base) == hm
    assert harmonic_mean(0.9, 0.6) == pytest.approx(0.72)


def test_accuracy_by_class():
    found = class_accuracies(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]), 3)
    assert found == [pytest.approx(2 / 3), 0.0, None]
