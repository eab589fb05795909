import pytest
import torch

from promptprism.training.schedule import learning_rate, rate_scale


def test_rates_of_five_epochs_are_the_fields():
    rates = [learning_rate(epoch, 5, 0.0035, 1e-5) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], abs=5e-7)


def test_rates_are_those_of_torchs_cosine_after_a_constant_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    for epoch in range(1, 200):
        assert learning_rate(epoch, 200, 0.002, 1e-5) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        cosine.step()


def test_a_single_epoch_is_no_warm_up():
    assert learning_rate(0, 1, 0.01, 1e-5) == 0.01


@pytest.mark.parametrize("logit_scale", [10.0, 28.0, 100.0])
def test_a_scaled_step_moves_logits_as_far_on_any_backbone(logit_scale):
    """Logits s * cos(w): one step of gradient descent on them, to first order in the rate."""
    moved = []
    for scale in (100.0, logit_scale):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        logit = scale * weight.cos()
        logit.backward()
        with torch.no_grad():
            weight -= 1e-9 * rate_scale(scale) * weight.grad
        moved.append((scale * weight.cos() - logit).item())
    assert moved[1] == pytest.approx(moved[0], rel=1e-4)
