"""Equality with the public PromptSRC; tests/golden/README.md says how it ran. Its prompts are IVLP's."""

import numpy as np
import pytest
import torch
from golden_runs import assert_gradient, five_steps, logits_of, loss_of, part_of, space_of, start

from promptprism.methods import build_method, make_settings
from promptprism.methods.promptsrc import gaussian_weights
from promptprism.training.schedule import step_rate

pytestmark = pytest.mark.slow

TOKENS = {"": (4, 3, 4, 3), "asym/": (2, 3, 3, 2)}


def reference_names(text_depth, vision_depth):
    """Reference name of each trainable tensor -> our tensor and the index of it there."""
    names = {"ctx": ("learner.context", (0, 0)), "image_encoder.VPT": ("learner.vision", (0, 0))}
    for tower, tensor, depth in (("text", "context", text_depth), ("image", "vision", vision_depth)):
        for layer in range(1, depth):
            name = f"{tower}_encoder.transformer.resblocks.{layer}.VPT_shallow"
            names[name] = (f"learner.{tensor}", (0, layer))
    return names


def make(name, backbone, arrays, tokens, **settings):
    n, depth, m, vision_depth = tokens
    if name == "promptsrc":
        settings["frozen_phrases"] = tuple(arrays["templates"])
    settings = make_settings(
        name, context_length=n, depth=depth, vision_tokens=m, vision_depth=vision_depth, **settings
    )
    method, covered = build_method(settings, backbone), 0
    tensors = dict(method.named_parameters())
    with torch.no_grad():
        for reference, (ours, index) in reference_names(depth, vision_depth).items():
            part = tensors[ours][index]
            if reference == "ctx":
                torch.testing.assert_close(part, arrays["param/ctx"][:n], rtol=0, atol=1e-7)
            else:
                part.copy_(start(reference, tuple(part.shape)))
            covered += part.numel()
    assert covered == sum(value.numel() for value in tensors.values())
    return method


@pytest.fixture(params=TOKENS)
def case(request, golden_backbone, golden):
    arrays, prefix = golden("promptsrc"), request.param
    method = make("promptsrc", golden_backbone, arrays, TOKENS[prefix])
    return method, part_of(arrays, prefix), TOKENS[prefix]


def test_golden_losses(case):
    method, arrays, _ = case
    losses = method.losses(arrays["images"][None], arrays["labels"], method.texts(space_of(arrays)))
    for found, name in zip(losses, ("ce", "l1_text_unweighted", "l1_image_unweighted", "kl"), strict=True):
        assert found.item() == pytest.approx(float(arrays[f"loss_{name}"]), abs=2e-5), name
    assert loss_of(method, arrays).item() == pytest.approx(float(arrays["loss"]), abs=2e-5)


def test_golden_frozen_text_features(case):
    method, arrays, _ = case
    features = method.texts(space_of(arrays)).zero_shot_features[0]
    expected = torch.nn.functional.normalize(arrays["fixed_embeddings"], dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_golden_logits(case):
    method, arrays, _ = case
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)


def test_golden_logits_and_loss_of_ivlp(case, golden_backbone):
    _, arrays, tokens = case
    method = make("ivlp", golden_backbone, arrays, tokens)
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)
    assert loss_of(method, arrays).item() == pytest.approx(float(arrays["loss_ce"]), abs=2e-5)


def test_golden_gradients(case):
    method, arrays, (_, depth, _, vision_depth) = case
    loss_of(method, arrays).backward()
    tensors = dict(method.named_parameters())
    asymmetric = depth != vision_depth
    for reference, (ours, index) in reference_names(depth, vision_depth).items():
        gradient = tensors[ours].grad[index]
        if asymmetric:
            expected = float(arrays[f"grad_norm/{reference}"])
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-4), reference
        else:
            assert_gradient(gradient, arrays[f"grad/{reference}"], reference)


def test_golden_five_steps_of_sgd(case):
    method, arrays, _ = case
    np.testing.assert_allclose(five_steps(method, arrays), arrays["sgd_losses"], rtol=1e-3)
    torch.testing.assert_close(logits_of(method, arrays), arrays["logits_after"], rtol=0, atol=2e-3)


def test_golden_average_over_epochs(golden_backbone, golden):
    arrays = golden("promptsrc")
    mean, std = arrays["gpa/mean_std"].tolist()
    lr = float(arrays["gpa/base_lr"])
    settings = {"epochs": 6, "lr": lr, "aggregation_mean": mean, "aggregation_std": std}
    method = make("promptsrc", golden_backbone, arrays, TOKENS[""], **settings)
    optimizer = torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    texts = method.texts(space_of(arrays))
    for epoch in range(6):
        rate = step_rate(method.settings, epoch, 0, 2)
        assert rate == pytest.approx(float(arrays["gpa/lrs"][epoch]))
        optimizer.param_groups[0]["lr"] = rate
        for step, batch in enumerate((slice(2), slice(2, 4))):
            optimizer.zero_grad()
            loss = method(arrays["images"][None, batch], arrays["labels"][batch], texts, epoch)
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(float(arrays["gpa/losses"][epoch, step]), rel=1e-3)
        method.after_epoch(epoch)
    last = logits_of(method, arrays)
    torch.testing.assert_close(last, arrays["gpa/logits_last_unaggregated"], rtol=0, atol=2e-3)
    tensors = dict(method.named_parameters())
    for name, (ours, index) in reference_names(3, 3).items():
        norm = float(arrays[f"gpa/last_norm/{name}"])
        assert tensors[ours][index].norm().item() == pytest.approx(norm, rel=1e-4)
    method.finish(texts, (), ())
    for name, (ours, index) in reference_names(3, 3).items():
        torch.testing.assert_close(tensors[ours][index], arrays[f"gpa/param/{name}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(method, arrays), arrays["gpa/logits"], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "epochs", "mean", "std"),
    [
        ("gpa/weights", 6, 4, 1.5),
        ("gpa/weights_base2new", 20, 15, 1),
        ("gpa/weights_cross_dataset", 20, 6, 10),
        ("gpa/weights_few_shot_a", 50, 30, 30),
        ("gpa/weights_few_shot_b", 50, 45, 5),
    ],
)
def test_golden_weights_of_the_average(golden, name, epochs, mean, std):
    found = gaussian_weights(epochs, mean, std)
    np.testing.assert_allclose(found, golden("promptsrc")[name], rtol=1e-5, atol=1e-12)
