"""Equality with the public MMRL; tests/golden/README.md says how it ran."""

import numpy as np
import pytest
import torch
from golden_runs import assert_gradient, five_steps, logits_of, loss_of, space_of, start

from promptprism.data.names import LabelSpace
from promptprism.methods import build_method, make_settings
from promptprism.prompts.representation import both_features
from promptprism.training.schedule import make_optimizer, step_rate

pytestmark = pytest.mark.slow

OURS = {"compound_rep_tokens_r2vproj": "to_vision", "compound_rep_tokens_r2tproj": "to_text"}


def parameter(method, name):
    """Our tensor, and the index of it there, of a reference name."""
    if name.endswith("proj_rep"):
        return method.learner.projection, (0,)
    if name.endswith("compound_rep_tokens"):
        return method.learner.tokens, (0,)
    _, which, layer, part = name.split(".")
    return getattr(method.learner, f"{OURS[which]}_{part}"), (0, int(layer))


@pytest.fixture
def arrays(golden):
    return golden("mmrl")


@pytest.fixture
def method(golden_backbone, arrays):
    settings = make_settings(
        "mmrl", preset="paper", tokens=5, width=128, first_layer=2, alpha=0.7, regularisation=2
    )
    method, covered = build_method(settings, golden_backbone), 0
    with torch.no_grad():
        for name in arrays["names"]:
            tensor, index = parameter(method, name)
            tensor[index].copy_(start(name, tuple(tensor[index].shape)))
            covered += tensor[index].numel()
    assert covered == sum(value.numel() for value in method.parameters())
    return method


def assert_logits(method, arrays, suffix="", atol=2e-4):
    fused, alone = logits_of(method, arrays), method.classifier(space_of(arrays), LabelSpace(("dog", "cat")))
    torch.testing.assert_close(fused, arrays[f"logits_fusion{suffix}"], rtol=0, atol=atol)
    found = alone.logits(arrays["images"][None])[0]
    torch.testing.assert_close(found, arrays[f"logits{suffix}"], rtol=0, atol=atol)


def test_golden_logits_of_classes_that_were_learned_and_of_others(method, arrays):
    assert_logits(method, arrays)


def test_golden_features(method, arrays):
    learner = method.learner
    text = method.text_features(method.texts(space_of(arrays)))[0]
    image, own = both_features(
        method.backbone, arrays["images"][None], learner()[1], method.first_layer, learner.projection
    )
    torch.testing.assert_close(text, arrays["text_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(image[0], arrays["image_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(100 * own[0] @ text.T, arrays["logits_rep"], rtol=0, atol=2e-4)


def test_golden_frozen_classifier(golden_backbone, arrays):
    method = build_method(make_settings("zero-shot"), golden_backbone)
    torch.testing.assert_close(logits_of(method, arrays), arrays["zero_shot_logits"], rtol=0, atol=2e-4)
    features = method.texts(space_of(arrays)).zero_shot_features[0]
    torch.testing.assert_close(features, arrays["text_features_frozen"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("alpha", "weight"), [(0.7, 2.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_golden_loss_and_its_parts(golden_backbone, method, arrays, alpha, weight):
    chosen = method.settings.model_copy(update={"alpha": alpha, "regularisation": weight})
    other = build_method(chosen, golden_backbone)
    other.load_state_dict(method.state_dict())
    of = {name: float(arrays[f"loss_{name}"]) for name in ("ce_class", "ce_rep", "reg_image", "reg_text")}
    expected = alpha * of["ce_class"] + (1 - alpha) * of["ce_rep"]
    expected += weight * (of["reg_image"] + of["reg_text"])
    assert loss_of(other, arrays).item() == pytest.approx(expected, abs=2e-5)
    if weight == 2:
        assert expected == pytest.approx(float(arrays["loss"]), abs=1e-6)


def test_golden_gradients(method, arrays):
    loss_of(method, arrays).backward()
    for name in arrays["names"]:
        tensor, index = parameter(method, name)
        gradient = tensor.grad[index]
        if f"grad/{name}" in arrays:
            assert_gradient(gradient, arrays[f"grad/{name}"], name)
        else:
            norm = float(arrays[f"grad_norm/{name}"])
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
            assert_gradient(gradient[:16], arrays[f"grad_first16rows/{name}"], name)


def test_golden_five_steps_of_sgd(method, arrays):
    np.testing.assert_allclose(five_steps(method, arrays), arrays["sgd_losses"], rtol=1e-3)
    assert_logits(method, arrays, "_after", atol=2e-3)


def test_golden_five_steps_of_adamw(method, arrays):
    optimizer = make_optimizer(method.settings, method.parameters())
    np.testing.assert_allclose(five_steps(method, arrays, optimizer), arrays["adamw_losses"], rtol=1e-3)
    after = {name.replace("adamw_", ""): value for name, value in arrays.items()}
    assert_logits(method, arrays | after, "_after", atol=5e-3)


def test_golden_rates(arrays):
    rates = [step_rate(make_settings("mmrl", preset="paper"), epoch, 0, 7) for epoch in range(10)]
    np.testing.assert_allclose(rates, arrays["lrs_base2new"], rtol=1e-6)
