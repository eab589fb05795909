from dataclasses import replace

import pytest
import torch
from toys import colours

from promptprism.data.batches import labels_of
from promptprism.data.splits import base_new
from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import predictions, shift_metrics
from promptprism.evaluation.protocols import PROTOCOLS, calibrate, score
from promptprism.inference.predictor import Predictor
from promptprism.methods import METHODS, build_method, make_settings

DATA = colours(5)


def predicted(part, classifier):
    sources = [record.source for record in part.test]
    return predictions(classifier, torch.cat(list(Predictor(classifier).logits(sources)), 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "cdc, distance_aware"])
@pytest.mark.parametrize("phrase", ["a photo of a {}.", "a drawing of a {}."])
def test_new_images_are_told_from_base_ones_in_the_base_label_space(tiny, name, phrase):
    base, new = base_new(DATA)
    new = replace(new, phrase=phrase)
    name, *settings = name.split(", ")
    method = build_method(make_settings(name, **dict.fromkeys(settings, True)), tiny)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    scores = score(method, base.label_space, {"base": base, "new": new}, home="base")
    assert all(before[key].equal(value) for key, value in method.state_dict().items())
    at_home = method.classifier(base.label_space)
    usual, other = (predicted(part, at_home) for part in (base, new))
    expected = shift_metrics(usual[1], other[1])
    found = {key: value for key, value in scores["new"].metrics.items() if key.startswith("ood/")}
    assert found == pytest.approx(expected, abs=0.1) and len(found) == (8 if at_home.evidential else 6)
    for template, (one, another) in enumerate(zip(usual[0], other[0], strict=True)):
        assert shift_metrics(one, another).keys() <= scores["new"].templates[template].keys()
    assert not any(key.startswith("ood/") for key in scores["base"].metrics)
    alone = score(method, base.label_space, {"new": new})["new"]
    assert alone.metrics == pytest.approx(
        {key: scores["new"].metrics[key] for key in alone.metrics}, rel=1e-3
    )


def test_each_image_is_read_once(tiny, monkeypatch):
    read = []
    logits = Predictor.logits

    def counted(self, sources, batch_size=32):
        read.extend(map(id, sources))
        return logits(self, sources, batch_size)

    monkeypatch.setattr(Predictor, "logits", counted)
    base, new = base_new(DATA)
    method = build_method(make_settings("maple"), tiny)
    score(method, base.label_space, {"base": base, "new": new}, home="base")
    assert sorted(read) == sorted(id(record.source) for record in DATA.test)


def test_shifted_images_keep_the_label_space_of_the_source(tiny):
    protocol = PROTOCOLS["cross-domain"]
    # As with ImageNet-R: fewer classes, in another order, and written in another way.
    shifted = replace(colours(3), name="shifted", class_names=("Blue", "Red", "Green"))
    method = build_method(make_settings("coop"), tiny)
    scores = score(method, DATA.label_space, protocol.scored(DATA, {"shifted": shifted}), protocol.home)
    at_home = method.classifier(DATA.label_space)
    usual, other = (predicted(part, at_home)[1] for part in (DATA, shifted))
    expected = shift_metrics(usual, other)
    assert {key: scores["shifted"].metrics[key] for key in expected} == pytest.approx(expected, abs=0.1)
    assert scores["shifted"].classes == 3 and list(scores["shifted"].class_accuracy) == [
        "Blue",
        "Red",
        "Green",
    ]
    assert not any(key.startswith("ood/") for key in scores["source"].metrics)


@pytest.mark.parametrize("name", ["zero-shot", "maple", "linear-probe"])
def test_halves_told_among_all_are_the_whole_told_once(tiny, name):
    protocol = PROTOCOLS["base-to-all"]
    assert protocol.learning(DATA).class_names == base_new(DATA)[0].class_names
    method, space = build_method(make_settings(name), tiny), base_new(DATA)[0].label_space
    scores = score(method, space, protocol.scored(DATA, {}), protocol.home)
    right = predicted(DATA, method.classifier(DATA.label_space, space))[1].answer == labels_of(DATA.test)
    base = labels_of(DATA.test) < len(space)
    assert scores["base"].accuracy == pytest.approx(right[base].double().mean().item())
    assert scores["new"].accuracy == pytest.approx(right[~base].double().mean().item())
    assert [scores[part].classes for part in ("base", "new")] == [5, 5]
    assert [scores[part].images for part in ("base", "new")] == [9, 6]
    with pytest.raises(PromptPrismError, match="has 2 classes: base and new need at least 4"):
        protocol.scored(colours(2), {})


@pytest.mark.slow
def test_baselines_are_fitted_on_images_that_were_not_learned_from(tiny):
    base, new = base_new(DATA)
    method = build_method(make_settings("cdc", templates=2), tiny)
    learned = base.train[::2]
    held_out = calibrate(method, base, learned)
    assert (held_out.fit.fitted_on, held_out.fit.images) == ("held-out", 6)
    validated = calibrate(method, replace(base, val=base.test), learned)
    assert (validated.fit.fitted_on, validated.fit.images) == ("validation", 9)
    assert calibrate(method, base, base.train).fit.fitted_on == "learned"
    many = replace(base, val=base.test * 10)
    assert calibrate(method, many, learned, seed=3).fit == calibrate(method, many, learned, seed=3).fit
    assert calibrate(method, many, learned).fit.images == 3 * 16
    scores = score(method, base.label_space, {"base": base, "new": new}, "base", held_out)
    for part in scores.values():
        assert part.post_hoc == held_out.fit
        for ending in ("ts", "dac", "ts_dac"):
            assert {f"cal/{kind}_{ending}" for kind in ("ece", "nll", "brier")} <= part.metrics.keys()
