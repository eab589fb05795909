"""The leading classes, found a part at a time, are those of the whole matrix."""

from dataclasses import replace

import pytest
import torch
from toys import picture

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evidence import FUSIONS, Fusion
from promptprism.inference import answers, predictor
from promptprism.inference.leading import leading
from promptprism.methods import base, build_method, classifier, make_settings

SPACE = LabelSpace(tuple(f"thing {number}" for number in range(37)))
VIEWS = torch.randn(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
NAMED = [f"photo {i}" for i in range(6)]
RULES = ("dempster", "cautious", "averaging", "tempered", "pooling")


def build(backbone, method="cdc", space=SPACE, **settings):
    return build_method(make_settings(method, **settings), backbone, 1).classifier(space)


def at_odds(one):
    """Templates that see other things in the same words."""
    noise = torch.randn(one.text.shape, generator=torch.Generator().manual_seed(5))
    return replace(one, text=torch.nn.functional.normalize(one.text + 0.2 * noise, dim=-1))


def check(one, part, most=5):
    """The whole way is `answers`' own: probabilities, opinions."""
    found = leading(one, VIEWS, NAMED, most, part)
    logits = one.logits(VIEWS)
    shares = one.probabilities(logits)
    values, places = shares.topk(most)
    assert torch.equal(found.classes, places)
    torch.testing.assert_close(found.probability, values, rtol=2e-5, atol=1e-7)
    own = logits.argmax(-1)
    if one.evidential:
        templates, fused = one.opinions(logits)
        own = templates.prediction
        torch.testing.assert_close(found.belief, fused.belief.gather(1, places)[:, 0], rtol=2e-5, atol=1e-7)
        torch.testing.assert_close(found.uncertainty, fused.uncertainty, rtol=2e-5, atol=1e-7)
    else:
        assert found.belief is None and found.uncertainty is None
    assert torch.equal(found.disagreement, (own != places[:, 0]).float().mean(0))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("part", [1, 5, 36, 100])
def test_each_rule_of_fusion_in_parts_is_the_rule(tiny, rule, part):
    one = at_odds(build(tiny, templates=3, fusion=rule))
    found = check(one, part)
    assert found.disagreement.max() > 0
    calibrated = replace(one, temperature=1.7)
    assert (check(calibrated, part).probability < found.probability)[:, 0].all()


@pytest.mark.parametrize("evidence", ["exp_centered", "exp", "softplus", "exp_tanh"])
def test_each_map_to_evidence(tiny, evidence):
    check(at_odds(build(tiny, templates=2, evidence=evidence, fusion="pooling")), 7)


@pytest.mark.parametrize("learner", ["coop", "ivlp", "lora"])
def test_each_learner(tiny, learner):
    check(at_odds(build(tiny, templates=2, learner=learner)), 7)


@pytest.mark.parametrize("method", ["zero-shot", "coop", "maple", "clip-lora", "promptsrc"])
def test_softmax_heads(tiny, method):
    one = build(tiny, method)
    check(one, 7)
    check(replace(one, temperature=0.6), 7, most=37)


def test_what_is_more_than_a_product_of_features_is_taken_whole(tiny):
    assert not build(tiny, "cocoop").by_class
    assert build(tiny, "cdc", distance_aware=True).by_class  # learned classes have no factors
    assert not build(tiny, "mmrl").by_class and not build(tiny, learner="mmrl").by_class
    lowest = Fusion(lambda opinions: opinions.weight.amin(0), "log(1 + e/K)", lambda one: one.weight, "max")
    assert not lowest.by_class  # another's rule may look at all classes
    assert all(FUSIONS.own[rule].by_class for rule in RULES)


@pytest.mark.parametrize("learner", ["maple", "lora"])
def test_answers_are_the_same_however_many_are_looked_at_together(tiny, monkeypatch, learner):
    photos = [picture(colour, i) for i, colour in enumerate(["red", "green", "blue", "black"])]
    whole = list(answers.answers(build(tiny, templates=2, learner=learner), photos))
    monkeypatch.setattr(answers, "PART", 10)
    monkeypatch.setattr(base, "PART", 10)
    one = build(tiny, templates=2, learner=learner)
    torch.testing.assert_close(one.text, build_whole(tiny, monkeypatch, learner).text, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.logits(VIEWS), build_whole(tiny, monkeypatch, learner).logits(VIEWS))

    def refuse(*_):
        raise AssertionError("a matrix of all classes was made")

    monkeypatch.setattr(type(one), "logits", refuse)
    monkeypatch.setattr(type(one), "by_class", True)
    for row, other in zip(answers.answers(one, photos), whole, strict=True):
        assert row.keys() == other.keys()
        assert [top["class"] for top in row["top"]] == [top["class"] for top in other["top"]]
        for name in ("class", "image", "disagreement"):
            assert row[name] == other[name]
        for name in ("probability", "belief", "uncertainty"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)


def build_whole(tiny, monkeypatch, learner):
    with monkeypatch.context() as patch:
        patch.setattr(base, "PART", 10**6)
        return build(tiny, templates=2, learner=learner)


def test_text_features_on_the_disk_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier.tempfile, "tempdir", str(tmp_path))
    parts = torch.randn(2, 9, 4).split([4, 4, 1], dim=1)
    text = classifier.on_disk(iter(parts), 9)
    assert torch.equal(text, torch.cat(parts, 1)) and not list(tmp_path.iterdir())

    class Full:
        def seek(self, place): ...

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(classifier.tempfile, "TemporaryFile", Full)
    with pytest.raises(PromptPrismError, match=r"text features of 9 classes .*No space left.*TMPDIR"):
        classifier.on_disk(iter(parts), 9)


def test_answers_that_are_not_finite_are_refused(tiny):
    one = build(tiny, templates=2)
    one.text[0, 30] = float("nan")
    with pytest.raises(PromptPrismError, match="answers for 6 of 6 images are not finite, first 'photo 0'"):
        leading(one, VIEWS, NAMED, 5, 7)
    assert predictor.check_finite(one.logits(VIEWS)[:, :, :30], NAMED) is None
