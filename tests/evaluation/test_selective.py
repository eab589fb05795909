from fractions import Fraction
from itertools import pairwise, permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptprism.evaluation.selective import (
    STEPS,
    binomial_tail,
    detection_metrics,
    fewest_answers,
    risk_curve,
    selective_metrics,
    threshold_for_risk,
)

images = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


def tensors(pairs):
    doubt, right = zip(*pairs, strict=True)
    return torch.tensor(doubt, dtype=torch.float64), torch.tensor(right)


@pytest.mark.slow
@given(images)
def test_aurc_is_the_mean_over_all_orders_of_equal_doubt(pairs):
    areas = []
    for order in permutations(pairs):
        if all(a[0] <= b[0] for a, b in pairwise(order)):
            wrong = [not right for _, right in order]
            areas.append(sum(Fraction(sum(wrong[:n]), n) for n in range(1, len(wrong) + 1)) / len(wrong))
    assert selective_metrics(*tensors(pairs))["aurc"] == pytest.approx(float(sum(areas) / len(areas)))


@pytest.mark.slow
@given(images, st.sampled_from([0.05, 0.25, 0.5]))
def test_coverage_is_the_best_of_all_thresholds(pairs, limit):
    best = 0.0
    for threshold in range(4):
        kept = [right for doubt, right in pairs if doubt <= threshold]
        if kept and kept.count(False) / len(kept) <= limit:
            best = max(best, len(kept) / len(pairs))
    assert selective_metrics(*tensors(pairs), risk_limit=limit)[f"coverage_at_{100 * limit:.0f}_risk"] == best


def test_the_curve_by_hand():
    doubt, right = torch.arange(40.0), torch.arange(40) < 30
    expected = [max(0, 2 * step - 30) / (2 * step) for step in range(1, STEPS + 1)]
    assert risk_curve(doubt, right) == pytest.approx(expected)
    assert risk_curve(torch.zeros(3), torch.tensor([True, False, True])) == pytest.approx([1 / 3] * STEPS)


scores = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@pytest.mark.slow
@given(scores, scores)
def test_auroc_is_mann_whitney_and_fpr95_the_best_threshold(negatives, positives):
    found = detection_metrics(torch.tensor(negatives), torch.tensor(positives))
    wins = sum((p > n) + (p == n) / 2 for n, p in product(negatives, positives))
    assert found["auroc"] == pytest.approx(wins / len(negatives) / len(positives), abs=1e-6)
    rates = [
        sum(n >= t for n in negatives) / len(negatives)
        for t in range(6)
        if sum(p >= t for p in positives) >= 0.95 * len(positives)
    ]
    assert found["fpr95"] == pytest.approx(min(rates), abs=1e-6)


@pytest.mark.slow
@given(scores, scores)
def test_only_the_order_of_scores_counts(negatives, positives):
    low, high = torch.tensor(negatives).double(), torch.tensor(positives).double()
    # Sigmoids of these are all 1, and these differ by less than float32 can tell.
    assert detection_metrics(low, high) == detection_metrics(1e3 + 1e-8 * low, 1e3 + 1e-8 * high)


def test_nothing_to_tell_has_no_metric():
    assert (
        detection_metrics(torch.zeros(0), torch.ones(2))
        == {}
        == detection_metrics(torch.ones(2), torch.zeros(0))
    )


def test_the_binomial_tail_is_its_sum():
    from math import comb

    for wrong, answers, risk in ((0, 10, 0.05), (3, 40, 0.1), (7, 7, 0.2)):
        terms = [comb(answers, k) * risk**k * (1 - risk) ** (answers - k) for k in range(wrong + 1)]
        assert binomial_tail(wrong, answers, risk) == pytest.approx(sum(terms))
    assert fewest_answers(0.05) == 90
    assert binomial_tail(0, 90, 0.05) <= 0.01 < binomial_tail(0, 89, 0.05)


def test_a_threshold_needs_enough_right_answers_above_it():
    sure, right = torch.full((89,), 0.995), torch.ones(89, dtype=torch.bool)
    assert threshold_for_risk(sure, right, 0.05) is None
    more = torch.cat([sure, torch.tensor([0.42])])
    # Below 0.42 there are 90, all right; the starts above it have 89 only.
    assert threshold_for_risk(more, torch.ones(90, dtype=torch.bool), 0.05) is None
    enough = torch.full((90,), 0.995)
    assert threshold_for_risk(enough, torch.ones(90, dtype=torch.bool), 0.05) == 0
    doubtful = torch.cat([enough, torch.full((50,), 0.7)])
    assert threshold_for_risk(doubtful, doubtful > 0.9, 0.05) == pytest.approx(0.71)


@pytest.mark.slow
def test_thresholds_break_their_promise_in_five_of_a_hundred_draws_at_most():
    broken = 0
    for seed in range(200):
        p = torch.rand(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        right = torch.rand(300, generator=torch.Generator().manual_seed(1000 + seed)) < p
        found = threshold_for_risk(p, right, 0.2)
        # Where p is uniform and true, the risk above t is (1 - t) / 2: at most 0.2 from 0.6 on.
        broken += found is not None and found < 0.6 - 1e-9
    assert broken <= 10
