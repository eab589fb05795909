import pytest
import torch
from toys import base_to_new, colours, quick

from promptprism.data.records import Dataset
from promptprism.data.splits import base_new, few_shot
from promptprism.errors import PromptPrismError
from promptprism.evaluation.evaluate import evaluate
from promptprism.evaluation.protocols import PROTOCOLS, draw
from promptprism.inference.predictor import Predictor
from promptprism.methods import METHODS, Cdc, CdcSettings, ZeroShot, make_settings
from promptprism.training.loop import learn

DATA = colours(5)
QUICK = {"epochs": 2, "batch_size": 4, "lr": 0.002}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has no validation images")
@pytest.mark.parametrize("name", list(METHODS))
def test_the_protocol_is_its_steps_by_hand(tiny, name):
    settings = quick(name, **QUICK | {"epochs": 15 if name == "coop" else 6, "lr": 0.02})
    result, scores = base_to_new(name, tiny, DATA, shots=3, seed=2, **settings)
    base, new = base_new(DATA)
    chosen = make_settings(name, **settings)
    trained = learn(chosen, tiny, base.label_space, few_shot(base.train, 3, 2), seed=2)
    on_base = evaluate(Predictor(trained.classifier()), base.test, "base")
    assert scores["base"].metrics == on_base.metrics
    assert scores["base"].templates == on_base.templates
    assert scores["base"].reliability == on_base.reliability
    classifier = trained.classifier(new.label_space)
    assert scores["new"].metrics == evaluate(Predictor(classifier), new.test, "new").metrics
    assert (scores["base"].classes, scores["new"].classes) == (3, 2)
    assert result.training.images == 9 and (scores["base"].images, scores["new"].images) == (9, 6)
    assert result.training.collapsed is None
    assert ("cal/uncertainty" in scores["base"].metrics) == classifier.evidential
    assert len(scores["base"].template_accuracy) == (4 if name == "cdc" else 1)


def test_template_accuracy_and_uncertainty_are_those_of_the_opinions(tiny):
    classifier = Cdc(tiny, CdcSettings(templates=3)).classifier(DATA.label_space)
    predictor = Predictor(classifier)
    result = evaluate(predictor, DATA.test, "colours", batch_size=4)
    logits = torch.cat(list(predictor.logits([record.source for record in DATA.test])), 1)
    labels = torch.tensor([record.label for record in DATA.test])
    templates, fused = classifier.opinions(logits)
    expected = (templates.prediction == labels).double().mean(-1).tolist()
    assert result.template_accuracy == pytest.approx(expected)
    assert result.metrics["cal/uncertainty"] == pytest.approx(fused.uncertainty.mean().item(), abs=1e-6)
    assert result.accuracy == pytest.approx((fused.prediction == labels).double().mean().item())


def test_data_that_cannot_be_scored_is_refused_before_training(tiny):
    protocol = PROTOCOLS["base-to-new"]
    with pytest.raises(PromptPrismError, match="no test split"):
        draw(protocol, Dataset("mine", DATA.class_names, train=DATA.train), 16, 1)
    with pytest.raises(PromptPrismError, match="'red' has 4"):
        draw(protocol, DATA, 16, 1)
    predictor = Predictor(ZeroShot(tiny).classifier(colours(2).label_space))
    with pytest.raises(PromptPrismError, match="no image to score"):
        evaluate(predictor, (), "nothing")
    with pytest.raises(PromptPrismError, match="label 2 of image 6 does not fit"):
        evaluate(predictor, DATA.test, "colours")
