import numpy as np
import pytest
from made_results import result, two

from promptprism.evaluation.metrics import harmonic_mean
from promptprism.reports.interval import hm_interval
from promptprism.reports.report import make_table


def pair(base, new, rival_base, rival_new):
    return np.array([[[base, new], [rival_base, rival_new]]])


def test_equal_pairs_leave_no_doubt():
    one = np.repeat(pair(0.8, 0.6, 0.7, 0.5), 3, axis=0)
    expected = harmonic_mean(0.8, 0.6) - harmonic_mean(0.7, 0.5)
    assert hm_interval({"a": one, "b": one, "c": one}) == pytest.approx((expected,) * 3)


@pytest.mark.slow
def test_it_covers_as_often_as_it_says():
    """Of an even difference: the interval of a mean of n, by the bootstrap's variance (n - 1) / n."""
    differences = np.random.default_rng(1).normal(0.02, 0.05, 15)
    pairs = {str(i): pair(0.5 + d, 0.5 + d, 0.5, 0.5) for i, d in enumerate(differences)}
    middle, low, high = hm_interval(pairs)
    assert middle == pytest.approx(differences.mean())
    half = 1.96 * differences.std() / np.sqrt(15)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.15 * half)
    assert hm_interval(pairs) == (middle, low, high)


def test_seeds_differ_within_a_data_set():
    seeds = np.concatenate([pair(0.5, 0.5, 0.5, 0.5), pair(0.7, 0.7, 0.5, 0.5)])
    _, low, high = hm_interval({"a": seeds, "b": seeds, "c": seeds})
    # The mean of three data sets of two redrawn seeds each: 6 fair draws of 0 or 0.2.
    assert (low, high) == pytest.approx((0.2 / 6, 1.0 / 6))


def test_the_table_says_it_of_the_pairs_that_both_have():
    results = [
        result(method, data, seed, two(0.6 + gain + 0.01 * seed, 0.6))
        for method, gain in (("cdc", 0.1), ("maple", 0.0)) for data in "abc" for seed in (1, 2)
    ]  # fmt: skip
    results[0] = result("cdc", "a", 1, two(0.1, 0.1), collapsed="so")
    note = make_table(results, "base-to-new").notes[-1]
    assert note.startswith("cdc less maple in HM: +4.") and "3 data sets and their seeds, 5 pairs" in note
    assert "95 % interval" not in " ".join(make_table(results[:4], "base-to-new").notes)
    more = [result("cdc", data, 2, two(0.72, 0.62), templates=2) for data in "abc"]
    notes = " ".join(make_table([*results, *more], "base-to-new").notes)
    assert "cdc (templates=2) less maple in HM: +5." in notes
    assert "cdc (templates=2) less cdc in HM: +1." in notes and "cdc less cdc" not in notes
