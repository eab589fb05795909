from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, mannwhitneyu
from toys import colours

from promptprism.drift import Reference
from promptprism.errors import PromptPrismError
from promptprism.inference.doubt import doubt
from promptprism.inference.predictor import Predictor
from promptprism.methods import build_method, make_settings
from promptprism.runtime import Answers
from promptprism.serving.metrics import Metrics


@pytest.mark.parametrize("method", ["zero-shot", "cdc"])
def test_answers_are_compared_as_they_were_before_they_were_calibrated(tiny, method):
    data = colours()
    photos = [record.source for record in data.test]
    plain = build_method(make_settings(method), tiny).classifier(data.label_space)
    sharp = replace(plain, temperature=0.3)
    with torch.no_grad():
        logits = torch.cat([*Predictor(sharp).logits(photos)], dim=1)
    share = sharp.probabilities(logits)
    assert (share.amax(-1) - torch.tensor(doubt(plain, photos)[0])).abs().max() > 0.01
    assert doubt(sharp, photos) == doubt(plain, photos)
    metrics = Metrics(None, lambda: 0, temperature=0.3)
    metrics.answered(Answers(logits.numpy(), share.numpy()), own=True)
    assert [one for one, _ in metrics.latest] == pytest.approx(doubt(plain, photos)[0], abs=1e-5)


@pytest.mark.parametrize(("moved", "sizes"), [(0.0, (60, 80)), (0.4, (256, 40)), (0.15, (200, 1000))])
def test_distance_and_effect_are_those_of_scipy_and_the_chance_nearly(moved, sizes):
    generator = np.random.default_rng(1)
    old, new = (generator.normal(0.5, 0.2, size).round(6) for size in sizes)
    new = (new + moved * 0.2).round(6)
    found = Reference.of("x", old, None).shift(new, None)["scores"]["probability"]
    theirs = ks_2samp(old, new)
    assert found["distance"] == pytest.approx(theirs.statistic)
    other = mannwhitneyu(new, old, use_continuity=False, method="asymptotic")
    assert found["effect"] == pytest.approx(2 * other.statistic / len(old) / len(new) - 1)
    expected = min(1, 2 * min(theirs.pvalue, other.pvalue))
    assert found["p_value"] == pytest.approx(expected, abs=0.02, rel=0.5)


@pytest.mark.parametrize("values", [3, 40])
def test_chance_of_ties_is_that_of_scipy(values):
    generator = np.random.default_rng(2)
    old, new = (generator.integers(0, values, size) / 10 for size in (80, 50))
    new = new.clip(0.1)
    found = Reference.of("x", old, None).shift(new, None)["scores"]["probability"]
    theirs = mannwhitneyu(new, old, use_continuity=False, method="asymptotic").pvalue
    assert found["p_value"] == pytest.approx(2 * min(theirs, ks_2samp(old, new).pvalue), abs=0.02, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(20, 20), (256, 40), (300, 500)])
@pytest.mark.parametrize("shape", ["even", "near one", "few values"])
def test_photos_that_are_alike_are_called_shifted_no_more_often_than_the_level(sizes, shape):
    """Of 1,000 pairs of draws; 0.01 of them, and three standard deviations more."""
    generator, rounds, alarms = np.random.default_rng(3), 1000, 0

    def answers(size):
        probability = {
            "even": lambda: generator.uniform(0.2, 1, size),
            "near one": lambda: generator.beta(8, 0.3, size),
            "few values": lambda: generator.choice([0.3, 0.9, 1.0], size),
        }[shape]()
        return probability, 1 - probability + generator.normal(0, 0.05, size)

    for _ in range(rounds):
        alarms += Reference.of("x", *answers(sizes[0])).shift(*answers(sizes[1]))["shifted"]
    assert alarms <= 0.01 * rounds + 3 * (0.01 * 0.99 * rounds) ** 0.5


def test_a_mild_shift_of_all_photos_is_seen_with_many():
    """Cliff's delta of 0.15, as between a data set and its second version."""
    generator = np.random.default_rng(4)

    def found(count):
        old, new = (generator.normal(0.5 - moved, 0.2, count) for moved in (0, 0.054))
        return Reference.of("x", old, None).shift(new, None)["shifted"]

    few, many = (np.mean([found(count) for _ in range(50)]) for count in (50, 1000))
    assert few < 0.3 and many > 0.95


def test_equal_answers_are_no_shift_and_others_are_one():
    scores = np.linspace(0.1, 0.9, 50)
    reference = Reference.of("x", scores, 1 - scores)
    same = reference.shift(scores, 1 - scores)
    assert not same["shifted"]
    assert same["scores"]["uncertainty"] == pytest.approx(
        {"distance": 0, "p_value": 1, "effect": 0, "median_reference": 0.5, "median": 0.5}
    )
    other = reference.shift(scores / 2, 1 - scores)
    assert other["shifted"] and other["scores"]["probability"]["effect"] < -0.4


def test_too_few_photos_show_nothing():
    with pytest.raises(PromptPrismError, match="30 photos of the reference and 3 new ones are too few"):
        Reference.of("x", [0.5] * 30, None).shift([0.1] * 3, None)
