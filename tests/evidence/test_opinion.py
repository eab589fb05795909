from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promptprism.evidence import FUSIONS, Opinion

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tmc.npz")
evidences = st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(2, 12)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 1e4))
)


@pytest.mark.parametrize("classes", [3, 20, 101])
def test_golden_fused_alpha(classes):
    fused = Opinion.from_evidence(torch.from_numpy(GOLDEN[f"K{classes}/evidence"])).fuse()
    expected = torch.from_numpy(GOLDEN[f"K{classes}/fused_alpha"])
    torch.testing.assert_close(fused.alpha, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(fused.log_alpha, expected.log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused.log_strength, expected.sum(-1).log(), rtol=1e-12, atol=0)
    assert torch.equal(fused.prediction, expected.argmax(-1))


def test_closed_form_of_one_opinion():
    opinion = Opinion.from_evidence(torch.tensor([6.0, 1.0, 0.0], dtype=torch.float64))
    assert opinion.belief.tolist() == pytest.approx([0.6, 0.1, 0.0])
    assert opinion.uncertainty.item() == pytest.approx(0.3)
    assert opinion.alpha.tolist() == pytest.approx([7, 2, 1])
    assert opinion.probability.tolist() == pytest.approx([0.7, 0.2, 0.1])
    assert opinion.prediction.item() == 0


def dempster(b1, u1, b2, u2):
    """The reduced rule as it is written down, with its K x K conflict."""
    conflict = np.outer(b1, b2).sum() - b1 @ b2
    return (b1 * b2 + b1 * u2 + b2 * u1) / (1 - conflict), u1 * u2 / (1 - conflict)


@pytest.mark.slow
@settings(max_examples=60)
@given(evidences)
def test_fusion_is_dempsters_rule(evidence):
    opinion = Opinion.from_evidence(torch.from_numpy(evidence))
    fused = opinion.fuse()
    for i in range(evidence.shape[1]):
        belief, u = opinion.belief[0, i].numpy(), opinion.uncertainty[0, i].numpy()
        for m in range(1, evidence.shape[0]):
            belief, u = dempster(belief, u, opinion.belief[m, i].numpy(), opinion.uncertainty[m, i].numpy())
        assert fused.belief[i].numpy() == pytest.approx(belief, rel=1e-6, abs=1e-12)
        assert fused.uncertainty[i].item() == pytest.approx(u, rel=1e-6)


@pytest.mark.slow
@settings(max_examples=60)
@given(evidences, st.randoms(use_true_random=False))
def test_masses_sum_to_one_and_fusion_knows_no_order(evidence, random):
    opinion = Opinion.from_evidence(torch.from_numpy(evidence))
    fused = opinion.fuse()
    for each in (opinion, fused):
        ones = torch.ones(each.weight.shape[:-1], dtype=torch.float64)
        torch.testing.assert_close(each.belief.sum(-1) + each.uncertainty, ones)
        torch.testing.assert_close(each.probability.sum(-1), ones)
    order = list(range(evidence.shape[0]))
    random.shuffle(order)
    torch.testing.assert_close(Opinion(opinion.weight[order]).fuse().weight, fused.weight)
    one_by_one = opinion[0]
    for m in range(1, evidence.shape[0]):
        one_by_one = Opinion(torch.stack([one_by_one.weight, opinion[m].weight])).fuse()
    torch.testing.assert_close(one_by_one.weight, fused.weight)
    assert (fused.uncertainty <= opinion.uncertainty.amin(0) + 1e-12).all()


@settings(max_examples=30)
@given(evidences)
def test_a_vacuous_opinion_is_neutral(evidence):
    opinion = Opinion.from_evidence(torch.from_numpy(evidence))
    vacuous = Opinion.from_evidence(torch.zeros_like(opinion.weight))
    assert (vacuous.uncertainty == 1).all() and (vacuous.belief == 0).all()
    assert torch.equal(Opinion(torch.stack([opinion.weight, vacuous.weight])).fuse().weight, opinion.weight)


def test_float32_agrees_with_float64_over_the_whole_range():
    evidence = 10.0 ** torch.arange(-8, 25, dtype=torch.float64).repeat(4, 1)
    exact, single = Opinion.from_evidence(evidence).fuse(), Opinion.from_evidence(evidence.float()).fuse()
    torch.testing.assert_close(single.belief.double(), exact.belief, rtol=1e-4, atol=1e-30)
    torch.testing.assert_close(single.log_strength.double(), exact.log_strength, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name", ["belief", "uncertainty", "probability", "log_alpha", "log_strength", "alpha"]
)
def test_gradients_match_finite_differences(name):
    evidence = torch.rand(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 20 + 0.1
    assert torch.autograd.gradcheck(
        lambda e: getattr(Opinion.from_evidence(e).fuse(), name), evidence.requires_grad_()
    )


def test_the_class_axis_is_not_fused_or_indexed():
    with pytest.raises(ValueError, match="nothing to fuse"):
        Opinion(torch.zeros(3)).fuse()
    with pytest.raises(IndexError):
        Opinion(torch.zeros(3))[0]


@pytest.mark.parametrize("rule", ["cautious", "averaging", "tempered", "pooling"])
@given(evidence=evidences)
@settings(max_examples=30)
def test_rules_for_dependent_opinions_do_not_count_the_same_twice(rule, evidence):
    opinion = Opinion.from_evidence(torch.from_numpy(evidence))
    one = Opinion(opinion.weight[:1].expand_as(opinion.weight))
    torch.testing.assert_close(one.fuse(rule).weight, opinion.weight[0])
    order = list(reversed(range(len(evidence))))
    torch.testing.assert_close(Opinion(opinion.weight[order]).fuse(rule).weight, opinion.fuse(rule).weight)
    # Never surer than Dempster's rule, which counts everything.
    assert (opinion.fuse(rule).uncertainty >= opinion.fuse().uncertainty - 1e-9).all()


def test_rules_of_fusion_by_hand():
    opinion = Opinion.from_evidence(torch.tensor([[2.0, 0.0], [6.0, 2.0]], dtype=torch.float64))
    assert opinion.fuse().evidence.tolist() == pytest.approx([2 * (2 * 4 - 1), 2 * (1 * 2 - 1)])
    assert opinion.fuse("cautious").evidence.tolist() == pytest.approx([6.0, 2.0])
    assert opinion.fuse("averaging").evidence.tolist() == pytest.approx([4.0, 1.0])
    assert opinion.fuse("tempered").evidence.tolist() == pytest.approx([2 * (8**0.5 - 1), 2 * (2**0.5 - 1)])


@given(evidence=evidences)
@settings(max_examples=30)
def test_pooling_is_the_mean_of_belief_and_uncertainty(evidence):
    opinion = Opinion.from_evidence(torch.from_numpy(evidence))
    pooled = opinion.fuse("pooling")
    torch.testing.assert_close(pooled.belief, opinion.belief.mean(0))
    torch.testing.assert_close(pooled.uncertainty, opinion.uncertainty.mean(0))
    torch.testing.assert_close(pooled.probability, opinion.probability.mean(0))


@pytest.mark.parametrize("rule", tuple(FUSIONS.own))
@given(evidence=evidences)
@settings(max_examples=30)
def test_every_rule_combines_the_quantity_that_it_names(rule, evidence):
    opinion, fusion = Opinion.from_evidence(torch.from_numpy(evidence)), FUSIONS[rule]
    fused = fusion.measure(opinion.fuse(rule))
    own = fusion.measure(opinion)
    torch.testing.assert_close(fused, own.amax(0) if fusion.how == "max" else getattr(own, fusion.how)(0))
    if fusion.how != "max":
        torch.testing.assert_close(fusion.contributions(opinion).sum(0), fused)


def test_an_unknown_rule_is_named():
    with pytest.raises(
        ValueError, match="unknown rule 'average': choose one of dempster, cautious, averaging"
    ):
        Opinion(torch.ones(2, 3)).fuse("average")
