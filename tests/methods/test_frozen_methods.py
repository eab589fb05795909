"""The methods on frozen image features: linear probe, Tip-Adapter."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from toys import colours

from promptprism.adapter import Card, load_adapter, save_adapter
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismWarning
from promptprism.methods import build_method, make_settings
from promptprism.methods.frozen import frozen_features
from promptprism.methods.linear_probe import solve
from promptprism.training.loop import learn

DATA = colours()
FROZEN = ["linear-probe", "tip-adapter", "tip-adapter-f"]


def train(backbone, name, validation=(), **settings):
    settings = make_settings(name, **settings)
    return learn(settings, backbone, DATA.label_space, DATA.train, validation=validation)


def test_logistic_regression_is_at_its_optimum():
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(40, 7, generator=generator), torch.arange(40) % 3
    weight, bias = (value.double().requires_grad_() for value in solve(features, labels, 3, 0.5))
    loss = 0.5 * F.cross_entropy(F.linear(features.double(), weight, bias), labels, reduction="sum")
    (loss + weight.square().sum() / 2).backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    # Of a symmetric problem in one dimension the solution has w = C sum of x (1 - p), both of them.
    weight, bias = solve(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2, 1.0)
    size = weight[0, 0].item()
    assert weight[1, 0].item() == pytest.approx(-size) and bias.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert size == pytest.approx(2 * torch.tensor(-2 * size).sigmoid().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_other_classes_get_zero_shot_clip(tiny, name):
    trained = train(tiny, name, DATA.train, **({"epochs": 1} if name == "tip-adapter-f" else {}))
    new = LabelSpace(("dog", "cat"))
    views = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = build_method(make_settings("zero-shot"), tiny)
    torch.testing.assert_close(
        trained.classifier(new).logits(views), plain.classifier(new).logits(views), rtol=0, atol=1e-4
    )
    learned, own = trained.classifier().logits(views), plain.classifier(DATA.label_space).logits(views)
    assert (learned - own).abs().max() > 0.1
    # Classes that were learned are known by name, in any order.
    turned = trained.classifier(replace(DATA.label_space, names=DATA.class_names[::-1])).logits(views)
    torch.testing.assert_close(turned.flip(-1), learned, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_an_adapter_holds_all_that_was_learned(tiny, tmp_path, name):
    trained = train(tiny, name, DATA.train, **({"epochs": 2} if name == "tip-adapter-f" else {}))
    save_adapter(tmp_path / "adapter", trained.method, Card.of(trained, trained.space, None))
    loaded, _ = load_adapter(tmp_path / "adapter", tiny)
    views = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert loaded.classifier().logits(views).equal(trained.classifier().logits(views))
    assert trained.training.collapsed is None and trained.training.images == 16
    width = tiny.embed_dim
    trainable = {"linear-probe": 4 * width + 4, "tip-adapter": 0, "tip-adapter-f": 16 * width}
    assert trained.training.trainable == trainable[name]


@pytest.mark.parametrize("name", FROZEN)
def test_without_validation_images_it_says_what_it_used(tiny, name):
    used = "0.316" if name == "linear-probe" else "alpha=1.17, beta=1"
    with pytest.warns(PromptPrismWarning, match=f"{name} has no validation images .*{used}"):
        trained = train(tiny, name, **({"epochs": 1} if name == "tip-adapter-f" else {}))
    if name == "linear-probe":
        weight, _ = solve(
            frozen_features(tiny, DATA.train), torch.tensor([r.label for r in DATA.train]), 4, 0.316
        )
        torch.testing.assert_close(trained.method.weight.detach(), weight)
    else:
        assert trained.method.alpha_beta.tolist() == pytest.approx([1.17, 1.0])


@pytest.mark.slow
def test_a_key_is_the_mean_feature_of_the_views_of_an_image(tiny):
    trained = train(tiny, "tip-adapter", DATA.train, views="flip", passes=2)
    views = [frozen_features(tiny, DATA.train, "set1:0", 1, epoch) for epoch in range(2)]
    torch.testing.assert_close(trained.method.keys, F.normalize(sum(views) / 2, dim=-1))
    assert not views[0].equal(views[1])
    assert trained.method.alpha_beta[0] != pytest.approx(1.17)
