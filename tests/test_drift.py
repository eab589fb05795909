import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from promptprism.drift import Reference
from promptprism.errors import PromptPrismError


@pytest.mark.parametrize(("moved", "sizes"), [(0.0, (60, 80)), (0.4, (256, 40)), (0.15, (200, 1000))])
def test_distance_and_effect_are_those_of_scipy_and_the_chance_nearly(moved, sizes):
    generator = np.random.default_rng(1)
    old, new = (generator.normal(0.5, 0.2, size).round(6) for size in sizes)
    new = (new + moved * 0.2).round(6)
    found = Reference.of("x", old, None).shift(new, None)["scores"]["probability"]
    theirs = ks_2samp(old, new)
    assert found["distance"] == pytest.approx(theirs.statistic)
    assert found["p_value"] == pytest.approx(theirs.pvalue, abs=0.02)
    area = mannwhitneyu(new, old).statistic / len(old) / len(new)
    assert found["effect"] == pytest.approx(2 * area - 1)


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
