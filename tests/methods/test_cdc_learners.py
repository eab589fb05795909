"""CDC over any learner: with one template it is the method of that learner, and M are M of them."""

import json
import pickle
import warnings
from copy import deepcopy

import pytest
import torch
from toys import colours

from promptprism.adapter import Card, load_adapter, save_adapter
from promptprism.backbones import Backbone
from promptprism.cost.arithmetic import image_flops, shared_image_flops
from promptprism.cost.estimate import image_prediction_flops, step_flops
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evaluation.suites import Cell
from promptprism.evidence import Opinion, to_evidence, trusted_cross_entropy
from promptprism.inference.early import early_opinions
from promptprism.inference.explain import explain
from promptprism.methods import CdcSettings, build_method, make_settings
from promptprism.methods.objectives import negative_correlation, subspace_overlap
from promptprism.prompts import encode_image
from promptprism.training.loop import learn
from tests.backbones.families import make as family

METHOD = {"maple": "maple", "ivlp": "ivlp", "coop": "coop", "lora": "clip-lora", "mmrl": "mmrl"}
OFF = {
    "head": "softmax",
    "diversity_weight": 0,
    "consistency_weight": 0,
    "class_offsets": False,
    "distance_aware": False,
}
#: MMRL's own regulariser is CDC's consistency, on images too.
ALONE = {"mmrl": {"regularisation": 0}}
DATA = colours()
SPACE, OTHER = DATA.label_space, LabelSpace(("dog", "red"))
LABELS = torch.tensor([0, 3, 1])
every_learner = pytest.mark.parametrize("learner", METHOD)


def pixels(views=1):
    return torch.randn(views, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make(name, backbone, seed=1, **settings):
    return build_method(make_settings(name, **settings), backbone, seed)


def move(method, seed=2):
    """Leave the start, where some learners are the frozen model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in method.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return method


@every_learner
def test_one_template_with_a_softmax_head_is_the_method(tiny, learner):
    alone = make(METHOD[learner], tiny, 7, **ALONE.get(learner, {}))
    cdc = make("cdc", tiny, 7, learner=learner, templates=1, views=alone.settings.views, **OFF)
    assert cdc.views == alone.views and cdc.state_dict().keys() == alone.state_dict().keys()
    assert all(value.equal(cdc.state_dict()[key]) for key, value in alone.state_dict().items())
    kept = {"method", "epochs", "batch_size", "templates", "class_offsets"}
    for name in type(alone.settings).model_fields.keys() & CdcSettings.model_fields.keys() - kept:
        assert learner == "maple" or getattr(cdc.settings, name) == getattr(alone.settings, name), name
    for method in (alone, cdc):
        move(method)
        for step in range(2):  # drop-out goes on
            loss = method(pixels(), LABELS, method.texts(SPACE), step // 2)
        loss.backward()
        method.found = loss.detach()
    torch.testing.assert_close(cdc.found, alone.found, atol=1e-6, rtol=0)
    for (name, one), (_, other) in zip(alone.named_parameters(), cdc.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-5, msg=name)
    for space in (SPACE, OTHER):
        first, second = (method.classifier(space, SPACE) for method in (alone, cdc))
        logits = first.logits(pixels())
        torch.testing.assert_close(second.logits(pixels()), logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(second.probabilities(logits), first.probabilities(logits))


@pytest.mark.slow
@every_learner
def test_templates_are_learners_of_their_own(tiny, learner):
    cdc = move(make("cdc", tiny, learner=learner, templates=3, **OFF)).eval()
    views = pixels(3)
    loss, text = cdc(views, LABELS, cdc.texts(SPACE), 0), cdc.text_features(cdc.texts(SPACE))
    loss.backward()
    logits, losses = cdc.classifier(SPACE).logits(views), []
    starts = [value.flatten(1) for value in make("cdc", tiny, learner=learner, templates=3).parameters()]
    assert any(not torch.allclose(start[0], start[2]) for start in starts) or learner == "coop"
    for m in range(3):
        one = make("cdc", tiny, learner=learner, templates=1, **OFF).eval()
        one.load_state_dict({name: value[m : m + 1] for name, value in cdc.state_dict().items()})
        losses.append(one(views[m : m + 1], LABELS, one.texts(SPACE), 0))
        losses[-1].backward()
        torch.testing.assert_close(logits[m : m + 1], one.classifier(SPACE).logits(views[m : m + 1]))
        torch.testing.assert_close(text[m : m + 1], one.text_features(one.texts(SPACE)))
        for (name, all_of_it), own in zip(cdc.named_parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(3 * all_of_it.grad[m], own.grad[0], atol=1e-5, rtol=1e-4, msg=name)
    torch.testing.assert_close(loss, sum(losses) / 3)


@pytest.mark.slow
@every_learner
def test_a_shared_view_is_the_same_view_for_all_and_can_be_asked_for_one_by_one(tiny, learner):
    cdc = move(make("cdc", tiny, learner=learner, templates=3))
    for space in (SPACE, OTHER):
        classifier = cdc.classifier(space, SPACE)
        logits = classifier.logits(pixels())
        assert logits.shape == (3, 3, len(space))
        torch.testing.assert_close(classifier.logits(pixels().expand(3, -1, -1, -1, -1)), logits)
        ask, some = classifier.one_by_one(pixels()), torch.tensor([0, 2])
        for m in range(3):
            torch.testing.assert_close(ask(m, some)[0], logits[m, some], atol=1e-4, rtol=0)
        early = early_opinions(classifier, pixels(), float("inf"))
        torch.testing.assert_close(early.fused.weight, classifier.opinions(logits)[1].weight)
        assert classifier.image_features(pixels()).shape[1:] == (3, tiny.embed_dim)
    found = explain(classifier, DATA.test[0].source)
    assert len(found.templates) == 3 and all(any(map(any, voice.map)) for voice in found.templates)
    assert bool(found.templates[0].words) == (learner not in ("lora", "mmrl"))


def test_both_readings_of_mmrl_are_trained_on_opinions_and_decide_for_classes_learned(tiny):
    cdc = move(make("cdc", tiny, learner="mmrl", templates=2, alpha=0.6, **OFF | {"head": "evidential"}))
    text, ((first, image), (second, own)) = cdc.features(pixels(2), cdc.texts(SPACE), 0)
    both = [tiny.logits(features, text) for features in (image, own)]
    losses = []
    for logits in both:
        opinions = Opinion.from_evidence(to_evidence(logits))
        fused = opinions.fuse("averaging")
        losses.append(sum(trusted_cross_entropy(each, LABELS).mean() for each in (opinions, fused)))
    assert (first, second) == (0.6, pytest.approx(0.4))
    found = cdc(pixels(2), LABELS, cdc.texts(SPACE), 0)
    torch.testing.assert_close(found, 0.6 * losses[0] + 0.4 * losses[1])
    logits = cdc.classifier(SPACE, SPACE).logits(pixels(2))
    torch.testing.assert_close(logits, 0.6 * both[0] + 0.4 * both[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(cdc.classifier(SPACE, OTHER).logits(pixels(2)), both[0], atol=1e-4, rtol=1e-5)
    assert not cdc.separable(SPACE, SPACE) and make("cdc", tiny, learner="lora").separable(SPACE, SPACE)


@pytest.mark.slow
@every_learner
def test_what_was_learned_is_loaded_again_and_bound_by_its_settings(tiny, tmp_path, learner):
    settings = make_settings("cdc", learner=learner, templates=2, epochs=1, class_offsets=True)
    trained = learn(settings, tiny, SPACE, DATA.train, seed=2)
    save_adapter(tmp_path / "A", trained.method, Card.of(trained, SPACE, None))
    again, card = load_adapter(tmp_path / "A", tiny)
    assert again.method.settings == settings and card.settings["learner"] == learner
    assert again.classifier().logits(pixels()).equal(trained.classifier().logits(pixels()))
    card_file = tmp_path / "A" / "card.json"
    content = json.loads(card_file.read_text())
    content["settings"]["templates"] = 10**9
    del content["checksum"]
    card_file.write_text(json.dumps(content))
    with pytest.raises(PromptPrismError, match=r"card's settings need 1000000000 x .*belong together"):
        load_adapter(tmp_path / "A", tiny)


@pytest.mark.slow
@every_learner
def test_it_is_pickled_and_copied_as_what_it_is(tiny, learner):
    cdc = move(make("cdc", tiny, learner=learner, templates=2))
    logits = cdc.classifier(SPACE).logits(pixels())
    for again in (pickle.loads(pickle.dumps(cdc)), deepcopy(cdc)):
        assert type(again) is type(cdc) and again.settings == cdc.settings
        assert again.classifier(SPACE).logits(pixels()).equal(logits)


def test_settings_are_the_learners_and_are_read_again(tiny):
    coop = CdcSettings(learner="coop")
    assert (coop.coupled, coop.depth, coop.vision_tokens, coop.lr, coop.templates) == (False, 1, 0, 0.01, 4)
    lora = CdcSettings(learner="lora", rank=3)
    assert (lora.optimizer, lora.lr, lora.rank, lora.alpha, lora.epochs) == ("adamw", 4e-4, 3, 1.0, 10)
    assert CdcSettings().differing() == {} and CdcSettings(learner="mmrl").alpha == 0.7
    paper = CdcSettings(learner="coop", preset="paper", epochs=7)
    assert (paper.lr, paper.batch_size, paper.epochs, paper.fusion) == (0.002, 4, 7, "dempster")
    for settings in (coop, lora, CdcSettings(learner="ivlp", depth=1)):
        assert CdcSettings.model_validate_json(settings.model_dump_json()) == settings
        cell = Cell(
            protocol="few-shot", method="cdc", settings=settings, data="d", shots=1, seed=1, version=2
        )
        assert Cell.model_validate_json(cell.model_dump_json()) == cell


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learner": "coop", "coupled": True}, "coupled=True .*learner='coop': Input should be False"),
        ({"learner": "coop", "depth": 2}, "depth=2 .*learner='coop': Input should be 1"),
        ({"learner": "ivlp", "vision_tokens": 0}, "vision_tokens=0 .*'ivlp': .*greater than or equal to 1"),
        ({"learner": "lora", "context_length": 4}, "context_length=4 .*'lora': it has no such setting"),
        ({"learner": "mmrl", "alpha": 2}, "alpha=2.0 .*'mmrl': .*less than or equal to 1"),
        ({"rank": 4}, "rank=4 .*learner='maple': it has no such setting. Leave it out, or choose another"),
        ({"learner": "mapel"}, "learner='mapel' of method 'cdc' is refused"),
        ({"learner": ["coop"]}, "learner=.'coop'. of method 'cdc' is refused"),
        ({"learner": "lora", "rank": 0}, "rank=0 of method 'cdc' is refused"),
    ],
    ids=str,
)
def test_contradictions_are_refused(settings, words):
    with pytest.raises(PromptPrismError, match=words):
        make_settings("cdc", **settings)


def test_what_a_backbone_cannot_carry_is_refused_by_name(tiny):
    with pytest.raises(PromptPrismError, match=r"rank=49 of learner 'lora' .*is above the width 48"):
        make("cdc", tiny, learner="lora", rank=49)
    with pytest.raises(PromptPrismError, match=r"each of 17 templates patches of its own.*fewer templates"):
        make("cdc", tiny, templates=17, decoupling="patches")
    convolutions = Backbone(*family("RN50"), name="RN50")
    for learner in ("ivlp", "lora", "mmrl"):
        with pytest.raises(PromptPrismError, match=f"Learner '{learner}' of .*needs .*'RN50'.*[Tt]ake a"):
            make("cdc", convolutions, learner=learner)
    with pytest.raises(PromptPrismError, match=r"tower of backbone 'RN50' has too few.*take a CLIP ViT"):
        make("cdc", convolutions, learner="coop", decoupling="patches")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make("cdc", convolutions, learner="coop").learner.context.shape[:2] == (4, 1)


@every_learner
def test_the_losses_that_decouple_are_added(tiny, learner):
    found = {}
    for name in ("none", "subspaces", "correlation", "patches"):
        settings = {"learner": learner, "templates": 2, "decoupling": name, "decoupling_weight": 0.3}
        cdc = move(make("cdc", tiny, **settings)).eval()
        found[name] = cdc(pixels(2), LABELS, cdc.texts(SPACE), 0)
    torch.testing.assert_close(found["subspaces"], found["none"] + 0.3 * subspace_overlap(cdc.contexts()))
    assert found["patches"].equal(found["none"])  # not in training: all see all
    text, readings = cdc.features(pixels(2), cdc.texts(SPACE), 0)
    expected = found["none"]
    for weight, image in readings:
        opinions = Opinion.from_evidence(to_evidence(tiny.logits(image, text)))
        expected = expected + 0.3 * weight * negative_correlation(opinions.probability)
    torch.testing.assert_close(found["correlation"], expected)


@every_learner
def test_in_training_each_template_sees_patches_that_no_other_sees(tiny, learner):
    cdc = move(make("cdc", tiny, learner=learner, templates=2, decoupling="patches", **OFF))
    shown = []
    features = type(cdc).features

    def watched(self, views, texts, epoch, groups=None):
        shown.append(groups)
        return features(self, views, texts, epoch, groups)

    type(cdc).features = watched
    try:
        for epoch in (0, 0, 1, 0):
            cdc(pixels(2), LABELS, cdc.texts(SPACE), epoch).backward()
    finally:
        del type(cdc).features
    assert all(sorted(groups.flatten().tolist()) == list(range(16)) for groups in shown)
    assert not shown[0].equal(shown[1]) and not shown[0].equal(shown[2]) and shown[0].equal(shown[3])
    assert all(value.grad.isfinite().all() and value.grad.any() for value in cdc.parameters())


def test_patches_that_are_not_shown_change_nothing(tiny):
    views, prompts = pixels().clone(), torch.randn(2, 2, 3, 64, generator=torch.Generator().manual_seed(3))
    shown = torch.tensor([[0, 1, 5], [2, 3, 7]])  # of 4 x 4
    before = encode_image(tiny, views, prompts, shown=shown)
    views[..., 16:, :] = 9  # the lower rows of patches
    torch.testing.assert_close(encode_image(tiny, views, prompts, shown=shown), before)
    views[..., 8:16, 8:16] = 9  # patch 5
    after = encode_image(tiny, views, prompts, shown=shown)
    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1], before[1])
    every = torch.arange(16).flip(0).expand(2, -1)
    torch.testing.assert_close(
        encode_image(tiny, views, prompts, shown=every), encode_image(tiny, views, prompts)
    )


def test_costs_are_counted_by_learner(tiny):
    def cost(**settings):
        method = make("cdc", tiny, consistency_weight=0, **settings)
        return step_flops(method, method.texts(SPACE).tokens, 3), image_prediction_flops(method)

    for learner in METHOD:
        (four, predicted), (one, alone) = (cost(learner=learner, templates=m) for m in (4, 1))
        shared = {"coop": alone, "mmrl": shared_image_flops(tiny, 1)}.get(learner, 0)
        assert four == pytest.approx(4 * one)
        assert predicted == pytest.approx(shared + 4 * (alone - shared))
    lora, coop = cost(learner="lora", templates=1)[0], cost(learner="coop", templates=1)[0]
    assert lora - coop == pytest.approx(3 * image_flops(tiny), rel=0.1)
    assert cost(decoupling="patches")[0] < 0.8 * cost()[0] and cost(decoupling="patches")[1] == cost()[1]
