import json

import pytest
import torch
from toys import colours

from promptprism.data.records import Dataset
from promptprism.data.splits import base_new, few_shot
from promptprism.errors import PromptPrismError
from promptprism.evaluation.base_to_new import BaseToNew, base_to_new
from promptprism.evaluation.evaluate import evaluate
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.inference.predictor import Predictor
from promptprism.methods import METHODS, build_method
from promptprism.training.loop import train

DATA = colours(5)
QUICK = {"epochs": 2, "batch_size": 4, "lr": 0.002}


@pytest.mark.parametrize("name", list(METHODS))
def test_the_protocol_is_its_steps_by_hand(tiny, name):
    settings = QUICK | {"epochs": 15 if name == "coop" else 6, "lr": 0.02} if name != "zero-shot" else {}
    result = base_to_new(name, tiny, DATA, shots=3, seed=2, **settings)
    base, new = base_new(DATA)
    method = build_method(name, tiny, base.class_names, phrase=DATA.phrase, seed=2, **settings)
    train(method, few_shot(base.train, 3, 2), seed=2)
    predictor = Predictor(method)
    on_base = evaluate(predictor, base.test, "base")
    assert result.base.metrics == on_base.metrics
    assert result.base.templates == on_base.templates and result.base.reliability == on_base.reliability
    method.set_classes(new.class_names)
    assert result.new.metrics == evaluate(predictor, new.test, "new").metrics
    assert (result.base.classes, result.new.classes) == (3, 2)
    assert result.training.images == 9 and (result.base.images, result.new.images) == (9, 6)
    assert result.training.collapsed is None
    assert result.hm == harmonic_mean(result.base.accuracy, result.new.accuracy)
    assert ("cal/uncertainty" in result.base.metrics) == method.evidential
    assert len(result.base.template_accuracy) == (4 if name == "cdc" else 1)


def test_a_result_goes_through_json_unchanged_and_cannot_be_altered(tiny):
    result = base_to_new("cdc", tiny, DATA, shots=2, **QUICK)
    assert BaseToNew.model_validate_json(result.model_dump_json()) == result
    content = json.loads(result.model_dump_json())
    assert content["backbone"]["fingerprint"] == tiny.fingerprint
    assert content["settings"]["epochs"] == 2 and content["settings"]["templates"] == 4
    assert {"seconds", "peak_memory_mb", "device", "threads", "versions"} <= content["base"]["cost"].keys()
    with pytest.raises(ValueError, match="frozen"):
        result.hm = 1.0


def test_a_collapsed_run_has_no_harmonic_mean(tiny, monkeypatch):
    collapsed = train(build_method("coop", tiny, DATA.class_names, epochs=1), DATA.train)
    collapsed = collapsed.model_copy(update={"collapsed": "says the test"})
    monkeypatch.setattr("promptprism.evaluation.protocols.train", lambda *_, **__: collapsed)
    assert base_to_new("coop", tiny, DATA, shots=2, epochs=1).hm is None


def test_template_accuracy_and_uncertainty_are_those_of_the_opinions(tiny):
    method = build_method("cdc", tiny, DATA.class_names, templates=3)
    predictor = Predictor(method)
    result = evaluate(predictor, DATA.test, "colours", batch_size=4)
    logits = torch.cat(list(predictor.logits([record.source for record in DATA.test])), 1)
    labels = torch.tensor([record.label for record in DATA.test])
    templates, fused = method.opinions(logits)
    expected = (templates.prediction == labels).double().mean(-1).tolist()
    assert result.template_accuracy == pytest.approx(expected)
    assert result.metrics["cal/uncertainty"] == pytest.approx(fused.uncertainty.mean().item(), abs=1e-6)
    assert result.accuracy == pytest.approx((fused.prediction == labels).double().mean().item())


def test_data_that_cannot_be_scored_is_refused_before_training(tiny):
    with pytest.raises(PromptPrismError, match="no test split"):
        base_to_new("coop", tiny, Dataset("mine", DATA.class_names, train=DATA.train))
    with pytest.raises(PromptPrismError, match="'red' has 4"):
        base_to_new("coop", tiny, DATA, shots=16)
    predictor = Predictor(build_method("zero-shot", tiny, DATA.class_names[:2]))
    with pytest.raises(PromptPrismError, match="no image to score"):
        evaluate(predictor, (), "nothing")
    with pytest.raises(PromptPrismError, match="label 2 of image 6 does not fit"):
        evaluate(predictor, DATA.test, "colours")
