import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismWarning
from promptprism.evaluation.calibration import (
    BINS,
    COLDEST,
    Calibrator,
    PostHoc,
    adaptive_error,
    calibration_of,
    fit_temperature,
    reliability,
)
from promptprism.methods import ZeroShot, build_method, make_settings

answers = st.lists(st.tuples(st.floats(0, 0.9999), st.booleans()), min_size=1, max_size=40)


def tensors(pairs):
    confidence, right = zip(*pairs, strict=True)
    return torch.tensor(confidence, dtype=torch.float64), torch.tensor(right)


def test_bins_by_hand():
    found = reliability(torch.tensor([0.5, 0.51, 0.999, 1.0]), torch.tensor([True, False, True, True]))
    assert found.count == (0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2)
    assert found.confidence[7] == pytest.approx(0.505) and found.accuracy[7] == 0.5
    assert found.accuracy[14] == 1 and found.accuracy[0] is None and found.confidence[0] is None


@pytest.mark.slow
@given(answers)
def test_the_gaps_of_the_bins_make_the_calibration_error(pairs):
    confidence, right = tensors(pairs)
    found = reliability(confidence, right)
    assert sum(found.count) == len(pairs) and len(found.count) == BINS
    gaps = [
        n * abs(c - a)
        for n, c, a in zip(found.count, found.confidence, found.accuracy, strict=True)
        if c is not None
    ]
    expected = binary_calibration_error(confidence.float(), right.int(), n_bins=BINS, norm="l1").item()
    assert sum(gaps) / len(pairs) == pytest.approx(expected, abs=1e-5)


def test_adaptive_error_by_hand():
    # 30 images, two to a bin: confidences 0.01, ..., 0.30, and every second answer is right.
    confidence = torch.arange(1, 31).double() / 100
    gaps = [abs(0.5 - (confidence[2 * i] + confidence[2 * i + 1]) / 2) for i in range(15)]
    assert adaptive_error(confidence, torch.arange(30) % 2 == 0) == pytest.approx(float(sum(gaps)) / 15)
    assert adaptive_error(torch.full((20,), 0.7), torch.arange(20) < 14) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30),
    st.randoms(),
)
def test_adaptive_error_does_not_depend_on_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert adaptive_error(*tensors(pairs)) == pytest.approx(adaptive_error(*tensors(shuffled)), abs=1e-9)


@pytest.mark.slow
@given(st.floats(0.5, 8), st.floats(0.55, 0.95))
def test_the_temperature_of_two_classes_has_a_closed_form(gap, share):
    logits = torch.tensor([[gap, 0.0]]).repeat(1000, 1)
    wrong = round(1000 * (1 - share))
    labels = (torch.arange(1000) < wrong).long()
    odds = math.log((1000 - wrong) / wrong)
    assert fit_temperature(logits, labels) == pytest.approx(min(max(gap / odds, COLDEST), 20), rel=1e-4)


def test_temperatures_follow_the_scale_of_the_logits_and_have_bounds():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 5, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2, rel=0.2)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-6)

    def loss(temperature):
        return F.cross_entropy(logits.double() / temperature, labels).item()

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))
    assert fit_temperature(logits, logits.argmax(-1)) == pytest.approx(COLDEST)
    assert fit_temperature(logits, logits.argmin(-1)) == pytest.approx(20)


def unit(*angles):
    return torch.tensor([[[math.cos(a), math.sin(a)] for a in angles]])


def calibrator(tuned, zero_shot, temperature=1.0):
    return Calibrator(PostHoc(temperature=temperature, fitted_on="validation", images=1), tuned, zero_shot)


def chord(angle):
    return 2 * math.sin(angle / 2)


def test_dac_factors_by_hand():
    # Base classes at 0 and 1; one new class moved from 1.3 to 2, one stayed at 0.5, one has become base.
    fitted = calibrator(unit(0.0, 1.0), unit(0.0, 1.0))
    factors = fitted.factors(unit(2.0, 0.5, 1.01), unit(1.3, 0.5, 1.3))
    before, after = (chord(1.3) + chord(0.3)) / 2, (chord(2.0) + chord(1.0)) / 2
    assert factors.tolist() == pytest.approx([math.exp(before - after), 1.0, 1.0])
    two = calibrator(torch.cat([unit(0.0, 1.0)] * 2), unit(0.0, 1.0))
    mean = (after + (chord(1.6) + chord(0.6)) / 2) / 2
    found = two.factors(torch.cat([unit(2.0), unit(1.6)]), unit(1.3))
    assert found.tolist() == pytest.approx([math.exp(before - mean)])


def test_only_the_five_nearest_base_classes_count():
    base = unit(*(0.1 * i for i in range(6)))
    found = calibrator(base, base).factors(unit(-0.5), unit(-0.2))
    near, nearer = (sum(chord(start + 0.1 * i) for i in range(5)) / 5 for start in (0.5, 0.2))
    assert found.item() == pytest.approx(math.exp(nearer - near))


def test_without_a_change_of_features_dac_changes_nothing(tiny):
    names, others = LabelSpace(("red", "green", "blue")), LabelSpace(("cat", "dog", "cow"))
    logits = 4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    zero_shot = ZeroShot(tiny).classifier(names)
    fitted = calibrator(zero_shot.text, zero_shot.zero_shot_features, temperature=2.5)
    found = fitted.calibrated(logits, ZeroShot(tiny).classifier(others))
    assert torch.allclose(found["ts"], (logits / 2.5).softmax(-1))
    assert torch.allclose(found["dac"], logits.softmax(-1)) and torch.allclose(found["ts_dac"], found["ts"])


@pytest.mark.parametrize("name", ["maple", "cdc", "cocoop"])
def test_base_classes_keep_their_temperature_and_no_answer_changes(tiny, name):
    names, others = LabelSpace(("red", "green", "blue")), LabelSpace(("cat", "dog", "cow"))
    method = build_method(make_settings(name), tiny)
    with torch.no_grad():
        method.learner.context.add_(0.1)
    logits = 4 * torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    fitted = Calibrator.of(method.classifier(names), logits, torch.arange(8) % 3, "validation")
    assert fitted.fit.images == 8
    assert fitted.fit.temperature == fit_temperature(logits.double().mean(0), torch.arange(8) % 3)
    spaces = (names, others)
    on_base, on_new = (fitted.calibrated(logits.mean(0), method.classifier(space)) for space in spaces)
    if name == "cocoop":  # its text features depend on the image
        assert on_base.keys() == on_new.keys() == {"ts"}
        return
    assert torch.allclose(on_base["dac"], logits.mean(0).double().softmax(-1))
    assert not torch.allclose(on_new["dac"], on_base["dac"]) and torch.equal(on_new["ts"], on_base["ts"])
    assert all(torch.equal(one.argmax(-1), logits.mean(0).argmax(-1)) for one in on_new.values())


def test_photos_that_are_all_answered_rightly_decide_no_temperature():
    labels = torch.arange(40) % 2
    logits = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()[labels]
    how = {"risk": 0.3, "alpha": 0.2, "score": "lac", "per_class": False}
    with pytest.warns(PromptPrismWarning, match="the 10 photos that decide the temperature are all answered"):
        assert calibration_of(logits, labels, "data", **how).temperature == 1
    labels[0] = 1
    assert calibration_of(logits, labels, "data", **how).temperature == pytest.approx(
        math.log(7 / 3) / math.log(9)
    )
