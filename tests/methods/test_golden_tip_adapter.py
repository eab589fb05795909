"""Equality with the public Tip-Adapter and Tip-Adapter-F; tests/golden/README.md says how they ran."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from promptprism.methods import make_settings, tip_adapter
from promptprism.methods.tip_adapter import TipAdapterF, cache_logits, search
from promptprism.training.schedule import make_optimizer, rate_scale, step_rate


@pytest.fixture
def arrays(golden):
    return golden("tip_adapter")


@pytest.fixture
def zero_shot(arrays):
    return 100 * arrays["test_features"] @ arrays["text_features"].T


def test_golden_cache(arrays, tiny, monkeypatch):
    passes = iter(arrays["train_features_raw"])
    monkeypatch.setattr(tip_adapter, "frozen_features", lambda *_: next(passes))
    monkeypatch.setattr(tiny, "embed_dim", 32)
    method = TipAdapterF(tiny, make_settings("tip-adapter-f", passes=2))
    method.allot(6, 24)
    method.prepare(None, [type("Record", (), {"label": label}) for label in arrays["train_labels"].tolist()])
    torch.testing.assert_close(method.keys.detach(), arrays["cache_keys"], rtol=0, atol=1e-6)
    assert method.labels.equal(arrays["train_labels"])


@pytest.mark.parametrize("row", range(3))
def test_golden_logits(arrays, zero_shot, row):
    alpha, beta = arrays["alpha_beta"][row].tolist()
    values = F.one_hot(arrays["train_labels"], 6).float()
    assert values.equal(arrays["cache_values"])
    votes = cache_logits(arrays["test_features"] @ arrays["cache_keys"].T, values, beta)
    torch.testing.assert_close(zero_shot, arrays["clip_logits"], rtol=0, atol=2e-4)
    torch.testing.assert_close(votes, arrays[f"cache_logits_{row}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(zero_shot + alpha * votes, arrays[f"tip_logits_{row}"], rtol=0, atol=2e-4)


def test_golden_search(arrays, zero_shot):
    affinity = arrays["test_features"] @ arrays["cache_keys"].T
    found = search(affinity, arrays["cache_values"], zero_shot, arrays["test_labels"], 5, 12)
    assert found[::-1] == pytest.approx(arrays["search/best_beta_alpha"].tolist())


def test_golden_training_of_the_keys(arrays, zero_shot):
    settings = make_settings("tip-adapter-f", preset="paper", epochs=5)
    keys = torch.nn.Parameter(arrays["cache_keys"].clone())
    alpha, beta = arrays["f/alpha_beta"].tolist()
    optimizer = make_optimizer(settings, [keys])

    def logits(features):
        text = 100 * features @ arrays["text_features"].T
        return text + alpha * cache_logits(features @ keys.T, arrays["cache_values"], beta)

    losses = []
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = step_rate(settings, epoch, 0, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(arrays["f/lrs"][epoch]))
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(arrays["batch_features"]), arrays["batch_labels"])
        loss.backward()
        if not epoch:
            torch.testing.assert_close(keys.grad, arrays["f/grad_keys"], rtol=1e-4, atol=1e-7)
        losses.append(loss.item())
        optimizer.step()
    np.testing.assert_allclose(losses, arrays["f/losses"], rtol=2e-5)
    torch.testing.assert_close(keys.detach(), arrays["f/keys_after"], rtol=0, atol=1e-5)
    after = logits(arrays["test_features"]).detach()
    torch.testing.assert_close(after, arrays["f/logits_after"], rtol=0, atol=2e-3)
    assert rate_scale(25, "adamw") == 4
