"""Conformal sets: closed forms, the guarantee, and the same sets as MAPIE's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptprism.errors import PromptPrismError
from promptprism.inference.conformal import Sets, check_enough, fewest, fit_sets, nonconformity, quantile

ROW = torch.tensor([[0.5, 0.125, 0.25, 0.125]])


def drawn(n, classes, seed):
    """Probabilities that are right on average no more than half of the time, and labels."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(n, classes, generator=generator)).softmax(-1)
    # Labels that the probabilities do not know well: coverage must not depend on it.
    labels = probabilities.square().multinomial(1, generator=generator)[:, 0]
    return probabilities, torch.where(torch.rand(n, generator=generator) < 0.3, labels.flip(0), labels)


def test_scores_in_closed_form():
    assert nonconformity(ROW, "lac").tolist() == [[0.5, 0.875, 0.75, 0.875]]
    assert nonconformity(ROW, "aps").tolist() == [[0.0, 0.75, 0.5, 0.875]]  # equal ones in their order


def test_the_quantile_is_the_smallest_that_enough_scores_reach():
    scores = torch.arange(1, 20).double()
    assert [quantile(scores, alpha) for alpha in (0.05, 0.1, 0.5)] == [19, 18, 10]
    assert [fewest(alpha) for alpha in (0.5, 0.1, 0.05, 0.3)] == [1, 9, 19, 3]
    assert quantile(scores[:9], 0.1) == 9


def test_a_set_is_never_empty():
    sets = Sets(score="lac", alpha=0.1, quantiles=(0.01,), n=9)
    assert sets.of(ROW).tolist() == [[True, False, False, False]]
    each = Sets(score="lac", alpha=0.1, quantiles=(0.1, 0.9, 0.7, 0.8), n=9)
    assert each.of(ROW).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("per_class", [False, True])
def test_too_few_photos_are_refused_with_how_many_it_takes(per_class):
    labels = torch.tensor([0] * 9 + [1] * 8)
    if per_class:
        with pytest.raises(
            PromptPrismError, match=r"8 photos of class 'b' are too few .* it takes 9 of each"
        ):
            check_enough(labels, 0.1, ("a", "b"), True)
    else:
        check_enough(labels, 0.1, ("a", "b"), False)
        with pytest.raises(
            PromptPrismError, match=r"17 photos are too few for sets at alpha 0.05: it takes 19"
        ):
            check_enough(labels, 0.05, ("a", "b"), False)


@pytest.mark.slow
@given(
    st.integers(19, 60),
    st.sampled_from([0.05, 0.1, 0.2, 0.33]),
    st.sampled_from(["lac", "aps"]),
    st.integers(0, 9),
)
def test_over_all_ways_to_choose_the_new_photo_coverage_is_at_least_stated(n, alpha, score, seed):
    probabilities, labels = drawn(n + 1, 5, seed)
    held = 0
    for new in range(n + 1):
        rest = torch.arange(n + 1) != new
        sets = fit_sets(probabilities[rest], labels[rest], alpha, score, False)
        held += bool(sets.of(probabilities[new : new + 1])[0, labels[new]])
    # The guarantee in its exact form: the n + 1 photos may be drawn in any order.
    assert held >= (1 - alpha) * (n + 1) - 1e-9


def test_a_model_that_is_sure_has_small_sets_all_the_same():
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(4000, 10, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]  # right in 3 of 4
    shares = logits.softmax(-1)
    sets = fit_sets(shares[:2000], labels[:2000], 0.1, "aps", False)
    within = sets.of(shares[2000:])
    covered = within.gather(-1, labels[2000:, None]).float().mean()
    assert 0.88 < covered < 0.92 and within.sum(-1).float().mean() < 1.7


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_within_each_class_coverage_is_at_least_stated_on_many_new_photos(score):
    held = torch.zeros(4)
    for seed in range(40):
        probabilities, labels = drawn(2400, 4, seed)
        sets = fit_sets(probabilities[:400], labels[:400], 0.1, score, True)
        within = sets.of(probabilities[400:]).gather(1, labels[400:, None])[:, 0].float()
        held += torch.stack([within[labels[400:] == k].mean() for k in range(4)]) / 40
    assert held.min() > 0.895 and held.max() < 0.94


class Scores:
    """A fitted classifier whose inputs are its probabilities, as MAPIE wants one."""

    _estimator_type = "classifier"

    def __init__(self, classes):
        self.classes_ = np.arange(classes)

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, inputs, labels):
        return self

    def predict_proba(self, inputs):
        return inputs

    def predict(self, inputs):
        return inputs.argmax(1)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("score", ["lac", "aps"])
def test_mapie_gives_the_same_sets(score, alpha, monkeypatch):
    classification = pytest.importorskip("mapie.classification")
    probabilities, labels = drawn(700, 6, 3)
    probabilities = probabilities.double()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    extra = {}
    if score == "aps":  # with 1 for each random number
        aps = pytest.importorskip("mapie.conformity_scores.sets.aps")
        ones = SimpleNamespace(uniform=lambda size: np.ones(size))
        monkeypatch.setattr(aps, "check_random_state", lambda _: ones)
        extra = {"conformity_score_params": {"include_last_label": True}}
    theirs = classification.SplitConformalClassifier(
        Scores(6), confidence_level=1 - alpha, conformity_score=score, prefit=True
    ).conformalize(probabilities[:300].numpy(), labels[:300].numpy())
    _, found = theirs.predict_set(probabilities[300:].numpy(), **extra)
    ours = fit_sets(probabilities[:300], labels[:300], alpha, score, False)
    # Neither leaves a set of APS empty; theirs of LAC may be.
    within = ours.of(probabilities[300:])
    if score == "lac":
        within &= nonconformity(probabilities[300:], score) <= ours.quantiles[0]
    assert (torch.as_tensor(found[:, :, 0]) == within).all()
