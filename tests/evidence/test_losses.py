import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from promptprism.evidence import Opinion, kl_to_vacuous, trusted_cross_entropy

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tmc.npz")


def reference_rounding(classes: int) -> float:
    """The reference takes log Gamma(K) in float32, whatever it is given."""
    return math.lgamma(classes) - torch.lgamma(torch.tensor(float(classes))).item()


def golden(classes: int, name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"K{classes}/{name}"])


@pytest.mark.parametrize("classes", [3, 20, 101])
@pytest.mark.parametrize("step", [0, 5, 20])
def test_golden_trusted_cross_entropy(classes, step):
    fused = Opinion.from_evidence(golden(classes, "evidence")).fuse()
    loss = trusted_cross_entropy(fused, golden(classes, "labels"), kl_weight=min(1, step / 10))
    expected = golden(classes, f"trusted_ce_step{step}_of10") - min(1, step / 10) * reference_rounding(
        classes
    )
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [3, 20, 101])
def test_golden_kl(classes):
    fused = Opinion.from_evidence(golden(classes, "evidence")).fuse()
    expected = golden(classes, "kl_uniform") - reference_rounding(classes)
    torch.testing.assert_close(kl_to_vacuous(fused), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3, 1e6])
def test_float32_kl_agrees_with_the_distribution_in_float64(scale):
    evidence = torch.rand(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
    expected = kl_divergence(Dirichlet(evidence + 1), Dirichlet(torch.ones_like(evidence)))
    single = kl_to_vacuous(Opinion.from_evidence(evidence.float()))
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=2e-5)


def test_closed_form_without_evidence_is_the_harmonic_sum():
    loss = trusted_cross_entropy(Opinion(torch.zeros(1, 4, dtype=torch.float64)), torch.tensor([2]))
    assert loss.item() == pytest.approx(1 + 1 / 2 + 1 / 3)  # psi(4) - psi(1)


def test_labels_broadcast_over_templates():
    opinion = Opinion.from_evidence(golden(20, "evidence"))
    labels = golden(20, "labels")
    loss = trusted_cross_entropy(opinion, labels, 0.5)
    assert loss.shape == opinion.weight.shape[:-1]
    for m in range(len(loss)):
        torch.testing.assert_close(loss[m], trusted_cross_entropy(opinion[m], labels, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 30.0, 500.0])  # both sides of the switch to series
def test_gradients_match_finite_differences(scale):
    evidence = (
        torch.rand(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * scale + 0.1
    )
    labels = torch.tensor([0, 4, 2])
    evidence.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda e: trusted_cross_entropy(Opinion.from_evidence(e), labels, 0.3), evidence
    )
    assert torch.autograd.gradcheck(
        lambda e: trusted_cross_entropy(Opinion.from_evidence(e).fuse(), labels, 0.3), evidence
    )


def test_more_evidence_for_the_true_class_lowers_the_loss():
    evidence = torch.tensor([[1.0, 1.0, 1.0], [5.0, 1.0, 1.0], [50.0, 1.0, 1.0]])
    loss = trusted_cross_entropy(Opinion.from_evidence(evidence), torch.zeros(3, dtype=torch.long), 1.0)
    assert (loss.diff() < 0).all()
