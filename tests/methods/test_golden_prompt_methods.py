"""Equality with the public KgCoOp and ProGrad; tests/golden/README.md says how they ran."""

import numpy as np
import pytest
import torch
from golden_runs import assert_gradient, five_steps, logits_of, loss_of, part_of, space_of, start

from promptprism.methods import build_method, make_settings
from promptprism.methods.prograd import aligned
from promptprism.training.schedule import rate_scale, step_rate


class TestKgCoOp:
    @pytest.fixture(params=["", "same_template/"])
    def case(self, request, golden_backbone, golden):
        arrays = golden("kgcoop")
        case = part_of(arrays, request.param)
        return build_method(make_settings("kgcoop"), golden_backbone), case

    @pytest.mark.slow
    def test_golden_loss_and_its_parts(self, case, golden_backbone):
        method, arrays = case
        assert sum(value.numel() for value in method.parameters()) == arrays["param/ctx"].numel()
        torch.testing.assert_close(method.learner.context[0, 0], arrays["param/ctx"], rtol=0, atol=1e-7)
        assert loss_of(method, arrays).item() == pytest.approx(float(arrays["loss"]), abs=2e-5)
        plain = build_method(make_settings("kgcoop", knowledge_weight=0), golden_backbone)
        assert loss_of(plain, arrays).item() == pytest.approx(float(arrays["loss_ce"]), abs=2e-5)
        features = method.texts(space_of(arrays)).zero_shot_features[0]
        torch.testing.assert_close(features, arrays["text_features_fixed"], rtol=0, atol=1e-6)

    def test_golden_logits(self, case):
        method, arrays = case
        torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)

    def test_golden_gradient(self, case):
        method, arrays = case
        loss_of(method, arrays).backward()
        assert_gradient(method.learner.context.grad[0, 0], arrays["grad/ctx"])

    @pytest.mark.slow
    def test_golden_five_steps_of_sgd(self, case):
        method, arrays = case
        np.testing.assert_allclose(five_steps(method, arrays), arrays["sgd_losses"], rtol=1e-3)
        torch.testing.assert_close(logits_of(method, arrays), arrays["logits_after"], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "epochs"), [("kgcoop", 100), ("promptsrc", 20)])
def test_golden_rates(golden, name, epochs):
    settings = make_settings(name, preset="paper")
    rates = [step_rate(settings, epoch, 0, 7) for epoch in range(epochs)]
    assert settings.epochs == epochs and rate_scale(100) == 1
    np.testing.assert_allclose(rates, golden(name)["lrs_base2new"], rtol=1e-6)


class TestProGrad:
    @pytest.fixture(params=["", "lambda08/", "random_start/"])
    def case(self, request, golden_backbone, golden):
        arrays = golden("prograd")
        case = part_of(arrays, request.param)
        settings = make_settings(
            "prograd",
            context_length=4,
            initial_phrase=arrays["template"],
            conflict_weight=float(case["lambda"]),
            teacher_temperature=float(case["T"]),
        )
        method = build_method(settings, golden_backbone)
        if request.param == "random_start/":
            with torch.no_grad():
                method.learner.context[0, 0] = start("prompt_learner.ctx", (4, 512))
        else:
            torch.testing.assert_close(method.learner.context[0, 0], arrays["param/ctx"], rtol=0, atol=1e-7)
        return method, case

    @pytest.mark.slow
    def test_golden_losses(self, case):
        method, arrays = case
        own, known = method.losses(arrays["images"][None], arrays["labels"], method.texts(space_of(arrays)))
        assert own.item() == pytest.approx(float(arrays["loss_ce"]), abs=2e-5)
        assert known.item() == pytest.approx(float(arrays["loss_kl"]), abs=2e-5)
        assert loss_of(method, arrays).item() == own.item()
        for loss, name in ((own, "grad_ce/ctx"), (known, "grad_kl/ctx")):
            (gradient,) = torch.autograd.grad(loss, method.learner.context, retain_graph=True)
            assert_gradient(gradient[0, 0], arrays[name])

    def test_golden_logits(self, case):
        method, arrays = case
        torch.testing.assert_close(logits_of(method, arrays), arrays["logits"], rtol=0, atol=2e-4)
        zero_shot = build_method(make_settings("zero-shot"), method.backbone)
        torch.testing.assert_close(
            logits_of(zero_shot, arrays), arrays["zero_shot_logits"], rtol=0, atol=2e-4
        )

    @pytest.mark.slow
    def test_golden_gradient(self, case):
        method, arrays = case
        loss_of(method, arrays).backward()
        assert_gradient(method.learner.context.grad[0, 0], arrays["grad/ctx"])

    @pytest.mark.slow
    def test_golden_five_steps_of_sgd(self, case):
        method, arrays = case
        losses = five_steps(method, arrays)
        np.testing.assert_allclose(losses, arrays["sgd_losses_ce_kl"][:, 0], rtol=1e-3)
        torch.testing.assert_close(logits_of(method, arrays), arrays["logits_after"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("rule", ["conflict", "conflict_lambda08", "agree"])
def test_golden_rule_of_prograd(golden, rule):
    arrays = golden("prograd")
    of = {name: arrays[f"rule/{rule}/{name}"] for name in ("grad_ce", "grad_kl", "lambda", "result")}
    found = aligned(of["grad_ce"], of["grad_kl"], float(of["lambda"]))
    torch.testing.assert_close(found, of["result"], rtol=1e-6, atol=1e-7)
