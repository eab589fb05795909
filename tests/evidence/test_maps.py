import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion, distance_factors, to_evidence, trusted_cross_entropy

KINDS = ("exp_centered", "exp", "softplus", "relu", "exp_tanh")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exp_centered", [math.exp(-1), math.exp(1)]),
        ("exp", [1.0, math.exp(2)]),
        ("softplus", [math.log(2), math.log1p(math.exp(2))]),
        ("relu", [0.0, 2.0]),
        ("exp_tanh", [1.0, math.exp(10 * math.tanh(0.2))]),
    ],
)
def test_evidence_has_its_closed_form(kind, expected):
    logits = torch.tensor([0.0, 4.0], dtype=torch.float64)
    assert to_evidence(logits, kind, 2.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_default_temperature_of_exp_tanh_is_tanh_of_the_cosine_over_a_tenth():
    cosine = torch.tensor([0.3], dtype=torch.float64)
    assert to_evidence(100 * cosine, "exp_tanh").item() == pytest.approx(math.exp(math.tanh(0.3) / 0.1))


def test_only_differences_count_for_exp_centered():
    logits = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(to_evidence(logits), to_evidence(logits + 50))


def test_half_precision_logits_give_float32_evidence():
    assert to_evidence(torch.full((2,), 30.0, dtype=torch.bfloat16), "exp").dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 100, 21_000])
def test_extreme_logits_overflow_neither_values_nor_gradients(kind, classes):
    logits = torch.full((8, 3, classes), -100.0)
    logits[:, 0, 0] = 100  # one class against all others
    logits[:, 1] = 100
    logits[:, 2, 1::2] = 100
    logits.requires_grad_()
    each = Opinion.from_evidence(to_evidence(logits, kind))
    labels = torch.tensor([1, 0, 0])
    loss = torch.zeros(())
    for opinion in (each, each.fuse()):
        for value in (
            opinion.belief,
            opinion.uncertainty,
            opinion.probability,
            opinion.evidence,
            opinion.alpha,
        ):
            assert value.isfinite().all()
        torch.testing.assert_close(
            opinion.belief.sum(-1) + opinion.uncertainty, torch.ones(opinion.weight.shape[:-1])
        )
        loss = loss + trusted_cross_entropy(opinion, labels, kl_weight=1 / classes).sum()
    loss.backward()
    assert loss.isfinite()
    assert isinstance(logits.grad, Tensor) and logits.grad.isfinite().all()


@settings(max_examples=50)
@given(st.sampled_from(KINDS), st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(0.05, 50))
def test_evidence_is_finite_non_negative_and_keeps_the_order(kind, logits, temperature):
    evidence = to_evidence(torch.tensor(logits, dtype=torch.float64), kind, temperature)
    assert evidence.isfinite().all() and (evidence >= 0).all()
    order = torch.tensor(logits, dtype=torch.float64).argsort(stable=True)
    assert (evidence[order].diff() >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_evidence_matches_finite_differences(kind):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4
    assert torch.autograd.gradcheck(lambda x: to_evidence(x, kind, 1.5), logits.requires_grad_())


def test_bad_kind_and_temperature_are_named():
    with pytest.raises(PromptPrismError, match=r"'sigmoid'.*exp_centered"):
        to_evidence(torch.zeros(3), "sigmoid")  # type: ignore[arg-type]
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(PromptPrismError, match=str(temperature)):
            to_evidence(torch.zeros(3), temperature=temperature)


def test_distance_factors_of_each_template():
    def unit(*angles):
        return torch.tensor([[[math.cos(a), math.sin(a)] for a in angles]])

    def chord(angle):
        return 2 * math.sin(angle / 2)

    # A class at 1.3 before: the first template moved it to 2, the second onto a class learned.
    learned, zero_shot = unit(0.0, 1.0), unit(0.0, 1.0)
    features = torch.cat([unit(2.0), unit(1.01)])
    found = distance_factors(features, torch.cat([learned] * 2), unit(1.3), zero_shot)
    apart = (chord(2.0) + chord(1.0) - chord(1.3) - chord(0.3)) / 2
    assert found.flatten().tolist() == pytest.approx([math.exp(-apart), 1.0])
    # One that it left where it was keeps its logits.
    assert distance_factors(unit(0.5), learned, unit(0.5), zero_shot).item() == pytest.approx(1.0)
