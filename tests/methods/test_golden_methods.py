"""Equality with the public MaPLe, CoOp and CoCoOp; tests/golden/README.md says how they ran."""

import numpy as np
import pytest
import torch
from golden_runs import assert_gradient, five_steps, logits_of, loss_of, start

from promptprism.methods import build_method, make_settings

SETTINGS = {"maple": {"depth": 3}, "coop": {}, "cocoop": {}}


def reference_names(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Reference name of each trainable tensor -> our tensor and the index of it there."""
    if name == "coop":
        return {"ctx": ("learner.context", (0, 0))}
    if name == "cocoop":
        nets = [f"meta_net.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
        return {"ctx": ("learner.context", (0, 0)), **{net: (net, ()) for net in nets}}
    names = {"ctx": ("learner.context", (0, 0))}
    for layer in range(3):
        reference = "proj" if layer == 0 else f"compound_prompt_projections.{layer - 1}"
        names[f"{reference}.weight"] = ("learner.to_vision_weight", (0, layer))
        names[f"{reference}.bias"] = ("learner.to_vision_bias", (0, layer))
        if layer:
            names[f"compound_prompts_text.{layer - 1}"] = ("learner.context", (0, layer))
    return names


@pytest.fixture(params=SETTINGS)
def case(request, golden_backbone, golden):
    """A method at the reference's start values, and what the reference printed."""
    name, arrays = request.param, golden(request.param)
    method = build_method(make_settings(name, **SETTINGS[name]), golden_backbone)
    tensors = dict(method.named_parameters())
    covered = 0
    with torch.no_grad():
        for reference, (ours, index) in reference_names(name).items():
            part = tensors[ours][index]
            if reference == "ctx":  # starts from the phrase
                torch.testing.assert_close(part, arrays["param/ctx"], rtol=0, atol=1e-7)
            else:
                part.copy_(start("prompt_learner." + reference, tuple(part.shape)))
            covered += part.numel()
    assert covered == sum(p.numel() for p in method.parameters())  # nothing else is learned
    return name, method, arrays


def test_golden_logits(case):
    _, method, arrays = case
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)


def test_golden_loss(case):
    _, method, arrays = case
    loss = loss_of(method, arrays)
    assert loss.item() == pytest.approx(float(arrays["loss"]), abs=2e-5)


@pytest.mark.slow
def test_golden_gradients(case):
    name, method, arrays = case
    loss_of(method, arrays).backward()
    tensors = dict(method.named_parameters())
    for reference, (ours, index) in reference_names(name).items():
        gradient = tensors[ours].grad[index]
        if f"grad/{reference}" in arrays:
            expected = arrays[f"grad/{reference}"]
        else:
            expected = arrays[f"grad_first16rows/{reference}"]
            norm = float(arrays[f"grad_norm/{reference}"])
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4)
            gradient = gradient[:16]
        assert_gradient(gradient, expected, reference)


@pytest.mark.slow
def test_golden_five_steps_of_sgd(case):
    _, method, arrays = case
    losses = five_steps(method, arrays)
    np.testing.assert_allclose(losses, arrays["sgd_losses"], rtol=1e-3)
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits_after"], rtol=0, atol=2e-3)
