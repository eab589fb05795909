import math

import pytest
import torch

from promptprism.methods.objectives import consistency_loss, diversity_loss, logit_consistency_loss


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
