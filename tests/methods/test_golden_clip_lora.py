"""Equality with the public CLIP-LoRA; tests/golden/README.md says how it ran."""

import numpy as np
import pytest
import torch
from golden_runs import assert_gradient, five_steps, logits_of, loss_of, part_of, start

from promptprism.methods import build_method, make_settings
from promptprism.training.schedule import make_optimizer, step_rate

pytestmark = pytest.mark.slow

THIRDS = "qkv"


def parameter(method, name):
    """Our tensor, and the index of it there, of a reference name."""
    tower = method.vision if name.startswith("visual.") else method.text
    parts = name.split(".")
    layer, third = int(parts[parts.index("resblocks") + 1]), THIRDS.index(parts[-2][0])
    return (tower.down if name.endswith("_A") else tower.up), (0, layer, third)


def make(backbone, arrays, zero_b=False, **settings):
    method = build_method(make_settings("clip-lora", preset="paper", dropout=0, **settings), backbone)
    covered = 0
    with torch.no_grad():
        for name in arrays["names"]:
            tensor, index = parameter(method, name)
            part = tensor[index]
            if not (zero_b and name.endswith("_B")):
                part.copy_(start(name, tuple(part.shape)))
            covered += part.numel()
    assert covered == sum(value.numel() for value in method.parameters()) and len(arrays["names"]) == 36
    return method


@pytest.fixture
def arrays(golden):
    return golden("clip_lora")


def test_golden_logits_merged_and_not(golden_backbone, arrays):
    method = make(golden_backbone, arrays)
    assert method.text.scaling == pytest.approx(float(arrays["scaling"]))
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits_train"], rtol=0, atol=2e-4)
    assert loss_of(method, arrays).item() == pytest.approx(float(arrays["loss"]), abs=2e-5)


def test_golden_gradients(golden_backbone, arrays):
    method = make(golden_backbone, arrays)
    loss_of(method, arrays).backward()
    for name in arrays["names"]:
        tensor, index = parameter(method, name)
        assert_gradient(tensor.grad[index], arrays[f"grad/{name}"], name)


def test_golden_five_steps_of_sgd(golden_backbone, arrays):
    method = make(golden_backbone, arrays)
    np.testing.assert_allclose(five_steps(method, arrays), arrays["sgd_losses"], rtol=2e-5)
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits_after"], rtol=0, atol=2e-4)


def test_golden_start_is_zero_shot_clip(golden_backbone, arrays):
    method, of = make(golden_backbone, arrays, zero_b=True), part_of(arrays, "zero_b/")
    torch.testing.assert_close(logits_of(method, of), arrays["zero_shot_logits"], rtol=0, atol=2e-4)
    loss = loss_of(method, of)
    assert loss.item() == pytest.approx(float(of["loss"]), abs=2e-5)
    loss.backward()
    for name in arrays["names"]:
        tensor, index = parameter(method, name)
        gradient = tensor.grad[index]
        if name.endswith("_A"):
            assert not gradient.any()
            continue
        norm = float(arrays[f"zero_b/grad_norm/{name}"])
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
        if ".1." in name:
            assert_gradient(gradient, arrays[f"zero_b/grad/{name}"], name)


@pytest.mark.parametrize("prefix", ["", "zero_b/"])
def test_golden_eight_steps_of_adamw(golden_backbone, arrays, prefix):
    method = make(golden_backbone, arrays, zero_b=bool(prefix), epochs=8)
    of = part_of(arrays, prefix + "adamw/")
    optimizer, losses = make_optimizer(method.settings, method.parameters()), []
    for epoch in range(8):
        rate = step_rate(method.settings, epoch, 0, 1)
        assert rate == pytest.approx(float(of["lrs"][epoch]))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(method, of)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, of["losses"], rtol=2e-5)
    torch.testing.assert_close(logits_of(method, of), of["logits_after"], rtol=0, atol=2e-3)
    for name in arrays["names"] if prefix else ():
        tensor, index = parameter(method, name)
        norm = float(of[f"param_norm/{name}"])
        assert tensor[index].norm().item() == pytest.approx(norm, rel=1e-4), name


def test_golden_rates(arrays):
    settings = make_settings("clip-lora", preset="paper")
    steps = [*range(0, 8000, 500), 7999]
    rates = [step_rate(settings, *divmod(step, 50), 50) for step in steps]
    np.testing.assert_allclose(rates, arrays["lrs_16shots_every500"], rtol=1e-6)
