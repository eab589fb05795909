import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptprism.data.names import LabelSpace
from promptprism.evaluation.metrics import (
    Prediction,
    class_accuracies,
    classification_metrics,
    harmonic_mean,
    prediction_metrics,
    predictions,
    shift_metrics,
)
from promptprism.methods import Cdc, CdcSettings


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
        {
            "cls/accuracy": 1,
            "cls/macro_f1": 1,
            "cal/ece": 0,
            "cal/adaptive_ece": 0,
            "cal/nll": 0,
            "cal/brier": 0,
        }
    )
    wrong = classification_metrics(torch.eye(3), torch.tensor([1, 2, 0]))
    assert wrong["cal/brier"] == 2 and wrong["cal/ece"] == wrong["cal/adaptive_ece"] == 1
    assert wrong["cal/nll"] == pytest.approx(-math.log(1e-12))


def test_classes_that_do_not_occur_are_left_out_of_macro_f1():
    metrics = classification_metrics(torch.eye(10)[:2], torch.tensor([0, 1]))
    assert metrics["cls/macro_f1"] == 1


def test_one_class_is_always_right_and_rounding_is_no_logit():
    one = classification_metrics(torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
    assert (one["cls/accuracy"], one["cls/macro_f1"], one["cal/ece"], one["cal/nll"]) == (1, 1, 0, 0)
    rows = torch.tensor([[0.8, 0.2], [1.0, 0.0]], dtype=torch.float64)
    above = rows + torch.tensor([[0.0, 0.0], [2.3e-16, 0.0]], dtype=torch.float64)
    assert above.max() > 1
    labels = torch.tensor([1, 0])
    assert classification_metrics(above, labels) == pytest.approx(classification_metrics(rows, labels))


@given(st.floats(0, 1), st.floats(0, 1))
def test_harmonic_mean_lies_between_and_is_zero_if_one_is(base, new):
    hm = harmonic_mean(base, new)
    assert min(base, new) - 1e-9 <= hm <= max(base, new) + 1e-9
    assert harmonic_mean(base, 0) == 0 and harmonic_mean(new, base) == hm
    assert harmonic_mean(0.9, 0.6) == pytest.approx(0.72)


def test_accuracy_by_class():
    found = class_accuracies(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]), 3)
    assert found == [pytest.approx(2 / 3), 0.0, None]


def softmax_prediction(logits):
    logits = torch.tensor(logits, dtype=torch.float64)
    return Prediction(logits, logits.softmax(-1), None)


def test_doubts_by_hand_also_where_probabilities_are_nearly_one():
    doubts = softmax_prediction([[0.0, 0.0], [100.0, 0.0]]).doubts
    assert list(doubts) == ["max_prob", "entropy", "energy"]
    assert doubts["max_prob"].tolist() == pytest.approx([0.5, math.exp(-100)], rel=1e-9)
    assert doubts["entropy"].tolist() == pytest.approx([math.log(2), 101 * math.exp(-100)], rel=1e-6)
    assert doubts["energy"].tolist() == pytest.approx([-math.log(2), -100])


def test_a_prediction_is_scored_as_far_as_its_images_allow():
    prediction = softmax_prediction([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    metrics = prediction_metrics(prediction, torch.tensor([0, 1, 1]))
    assert metrics["sc/auroc_max_prob"] == 1 and metrics["sc/fpr95_energy"] == 0
    assert metrics["sc/aurc"] == pytest.approx(1 / 9)
    assert metrics["sc/coverage_at_5_risk"] == pytest.approx(2 / 3)
    all_right = prediction_metrics(prediction, prediction.answer)
    assert set(metrics) - set(all_right) == {
        f"sc/{metric}_{score}" for metric in ("auroc", "fpr95") for score in ("max_prob", "entropy", "energy")
    }
    assert all(math.isfinite(value) for value in all_right.values())


def test_images_are_told_from_others_by_every_score():
    usual, other = softmax_prediction([[3.0, 0.0], [5.0, 0.0]]), softmax_prediction([[1.0, 0.0], [4.0, 0.0]])
    metrics = shift_metrics(usual, other)
    assert metrics == {
        f"ood/{metric}_{score}": value
        for score in ("max_prob", "entropy", "energy")
        for metric, value in (("auroc", 0.75), ("fpr95", 0.5))
    }


@pytest.mark.parametrize("head", ["evidential", "softmax"])
def test_predictions_are_the_methods_own(tiny, head):
    classifier = Cdc(tiny, CdcSettings(templates=2, head=head)).classifier(LabelSpace(("a", "b", "c")))
    logits = 5 * torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    each, final = predictions(classifier, logits)
    assert torch.allclose(final.probabilities.float(), classifier.probabilities(logits))
    assert torch.allclose(final.logits.float(), logits.mean(0)) and len(each) == 2
    if head == "softmax":
        assert final.uncertainty is None
        assert torch.allclose(each[1].probabilities.float(), logits[1].softmax(-1))
        return
    opinions, fused = classifier.opinions(logits)
    assert torch.allclose(final.uncertainty.float(), fused.uncertainty)
    for template in range(2):
        assert torch.allclose(each[template].probabilities.float(), opinions[template].probability)
        assert torch.allclose(each[template].uncertainty.float(), opinions[template].uncertainty)
    metrics = prediction_metrics(final, torch.tensor([0, 1, 2, 0]))
    assert {"sc/aurc_uncertainty", "sc/coverage_at_5_risk_uncertainty", "cal/uncertainty"} <= metrics.keys()
