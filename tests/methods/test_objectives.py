import math

import pytest
import torch

from promptprism.methods.objectives import (
    consistency_loss,
    diversity_loss,
    logit_consistency_loss,
    negative_correlation,
    patch_groups,
    subspace_overlap,
)


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, [len(degrees), 1, 2]."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1).unsqueeze(1)


def test_diversity_is_the_mean_over_pairs():
    vectors = 3 * at(0, 60, 180)  # cosines 1/2, -1, -1/2; length does not count
    for form, expected in {"squared_cosine": 1.5 / 3, "cosine": -1 / 3, "hinge": 0.1 / 3}.items():
        assert diversity_loss(vectors, form, margin=0.4).item() == pytest.approx(expected, abs=1e-6)


def test_diversity_is_the_mean_over_classes_too():
    vectors = torch.cat([at(0, 60), at(0, 0)], dim=1)
    assert diversity_loss(vectors, "cosine").item() == pytest.approx((0.5 + 1) / 2)


def test_one_template_has_no_diversity():
    assert diversity_loss(torch.randn(1, 5, 8)).item() == 0


def test_equal_templates_have_bounded_gradients():
    vectors = (1e-7 * torch.randn(4, 5, 8)).requires_grad_()
    (gradient,) = torch.autograd.grad(diversity_loss(vectors), vectors)
    assert gradient.abs().max() < 1


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("cosine", 1 - math.cos(math.pi / 3)),
        ("l2", 2 - 2 * math.cos(math.pi / 3)),
        ("l1", 0.5 + math.sqrt(0.75)),
    ],
)
def test_consistency_closed_forms(form, expected):
    text, anchor = torch.cat([at(60), at(60)]), at(0)
    assert consistency_loss(text, anchor, form).item() == pytest.approx(expected, abs=1e-6)
    assert consistency_loss(anchor, anchor, form).item() == 0


def test_logit_consistency_is_the_kl_divergence():
    logits, zero_shot = torch.randn(3, 4, 5), torch.randn(1, 4, 5)
    p, q = zero_shot.softmax(-1), logits.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(logit_consistency_loss(logits, zero_shot), expected)
    assert logit_consistency_loss(zero_shot, zero_shot).abs() < 1e-6


def test_subspaces_overlap_by_the_squared_cosines_of_their_vectors():
    plane, other = torch.eye(4)[None, :2], torch.eye(4)[None, 2:]
    turned = torch.tensor([[[1, 1, 0, 0], [1, -1, 0, 0.0]]])  # the same plane
    tilted = torch.tensor([[[1, 0, 0, 0], [0, 0.5, 0, math.sqrt(0.75)]]])
    for pair, expected in (((plane, other), 0), ((plane, 3 * turned), 1), ((plane, tilted), (1 + 0.25) / 2)):
        assert subspace_overlap(torch.stack(pair)).item() == pytest.approx(expected, abs=1e-6)
    three = torch.stack([plane, other, tilted])  # 0, 5/8 and 3/8
    assert subspace_overlap(three).item() == pytest.approx(1 / 3, abs=1e-6)
    both = torch.cat([three, three[[0, 0, 0]]], dim=1)  # at another place all are equal
    assert subspace_overlap(both).item() == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    assert subspace_overlap(three[:1]).item() == 0


def test_negative_correlation_is_liu_and_yaos_penalty():
    probabilities = torch.randn(3, 4, 5).softmax(-1)
    deviations = probabilities - probabilities.mean(0)
    others = torch.stack([sum(deviations[j] for j in range(3) if j != m) for m in range(3)])
    expected = (deviations * others).sum(-1).mean()
    torch.testing.assert_close(negative_correlation(probabilities), expected)
    opposed = torch.eye(2).unsqueeze(1)
    assert negative_correlation(opposed).item() == -0.5 and negative_correlation(opposed[[0, 0]]).item() == 0


def test_groups_of_patches_are_apart_and_equally_large():
    groups = patch_groups(14, 4, torch.Generator().manual_seed(1))
    assert groups.shape == (4, 3) and len(set(groups.flatten().tolist())) == 12
    assert groups.min() >= 0 and groups.max() < 14
    assert not groups.equal(patch_groups(14, 4, torch.Generator().manual_seed(2)))
