import math

import pytest
import torch
from toys import colours

from promptprism import PromptPrism
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.inference.early import early_opinions, fused_so_far, lead, margin_for, templates_needed
from promptprism.methods import build_method, make_settings

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little
SPACE = LabelSpace(("cat", "red fox", "lemon", "owl"))


def make(tiny, name="cdc", **settings):
    return build_method(make_settings(name, **settings), tiny, seed=2).classifier(SPACE)


@pytest.fixture
def classifier(tiny):
    return make(tiny, templates=3)


def pixels(images=6):
    return torch.randn(1, images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_lead_is_the_distance_of_the_best_two_weights():
    weight = torch.tensor([[3.0, 1.0, 0.5], [2.0, 1.75, 0.0], [1.0, 1.0, 0.0]])
    assert lead(Opinion(weight)).tolist() == [2.0, 0.25, 0.0]
    assert lead(Opinion(weight[:, :1])).tolist() == [math.inf] * 3  # one class is never overtaken


@pytest.mark.slow
def test_never_stopped_is_the_full_fusion(classifier):
    with torch.no_grad():
        _, fused = classifier.opinions(classifier.logits(pixels()))
    early = early_opinions(classifier, pixels(), math.inf)
    torch.testing.assert_close(early.fused.weight, fused.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [3] * 6


def test_no_margin_is_the_first_template(classifier):
    with torch.no_grad():
        first = classifier.opinions(classifier.logits(pixels()))[0][0]
    early = early_opinions(classifier, pixels(), 0.0)
    torch.testing.assert_close(early.fused.weight, first.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [1] * 6


@pytest.mark.parametrize("fusion", ["dempster", "averaging"])
@pytest.mark.parametrize("vision_from", [0, 1])
def test_each_image_stops_by_itself_as_a_replay_says(tiny, fusion, vision_from):
    classifier = make(tiny, templates=3, fusion=fusion, vision_from=vision_from)
    with torch.no_grad():
        opinions = classifier.opinions(classifier.logits(pixels()))[0]
    so_far = fused_so_far(opinions, fusion)
    torch.testing.assert_close(so_far.weight[-1], opinions.fuse(fusion).weight)
    margin = float(lead(so_far)[0].sort().values[2:4].mean())  # three images stop at once
    early = early_opinions(classifier, pixels(), margin)
    used = early.templates_used
    assert used.equal(templates_needed(lead(so_far), margin)) and (used == 1).sum() == 3 and used.max() > 1
    for image, count in enumerate(used.tolist()):
        expected = so_far.weight[count - 1, image]
        torch.testing.assert_close(early.fused.weight[image], expected, atol=1e-5, rtol=1e-5)
        assert count == 3 or lead(Opinion(expected)) > margin
        assert all(lead(Opinion(so_far.weight[m, image])) <= margin for m in range(count - 1))


def test_the_prediction_stands_if_what_is_to_come_turns_by_less(tiny):
    classifier = make(tiny, templates=3, fusion="dempster")
    with torch.no_grad():
        opinions, fused = classifier.opinions(classifier.logits(pixels()))
    spread = opinions.weight.amax(-1) - opinions.weight.amin(-1)
    margin = float(spread[1:].sum(0).max())
    early = early_opinions(classifier, pixels(), margin)
    assert early.fused.prediction.equal(fused.prediction)


def test_templates_needed_and_the_margin_for_a_budget():
    leads = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 6.0, 8.0], [3.0, 3.0, 9.0, 12.0]])
    assert templates_needed(leads, 0.0).tolist() == [1, 1, 1, 1]
    assert templates_needed(leads, 1.0).tolist() == [2, 1, 1, 1]
    assert templates_needed(leads, 2.0).tolist() == [3, 3, 1, 1]
    assert templates_needed(leads, 7.0).tolist() == [3, 3, 3, 2]
    assert templates_needed(leads, math.inf).tolist() == [3, 3, 3, 3]
    for budget in (1.0, 1.25, 1.6, 2.0, 2.5, 2.75, 2.9):
        margin = margin_for(leads, budget)
        used = [float(templates_needed(leads, p).double().mean()) for p in (margin, margin + 2.001)]
        assert used[0] <= budget < used[1]
    assert margin_for(leads, 3.0) == math.inf
    assert margin_for(leads[:1], 1.0) == math.inf  # a single template
    with pytest.raises(PromptPrismError, match="every image takes at least 1"):
        margin_for(leads, 0.5)


def test_only_opinions_can_be_stopped_at(tiny, classifier):
    for other in (make(tiny, "maple"), make(tiny, head="softmax")):
        with pytest.raises(PromptPrismError, match="has no opinions to stop at"):
            early_opinions(other, pixels(), 1.0)
    for margin in (-1.0, math.nan):
        with pytest.raises(PromptPrismError, match="give 0 or more"):
            early_opinions(classifier, pixels(), margin)


@pytest.mark.slow
def test_estimator_asks_for_images_in_their_order(tiny):
    data = colours()
    model = PromptPrism(backbone=tiny, templates=2, epochs=1).fit(data)
    images, labels = [record.source for record in data.test], [record.label for record in data.test]
    full, early = model.opinions(images).fused, model.early_opinions(images, math.inf)
    torch.testing.assert_close(early.fused.weight, full.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [2] * len(images)
    assert list(model.predict(images, margin=math.inf)) == list(model.predict(images))
    margin = model.margin_for(images, 1.5)
    early = model.early_opinions(images, margin)
    assert 1.25 <= early.templates_used.double().mean() <= 1.5
    assert list(model.predict(images, margin)) == list(model.classes_[early.fused.prediction])
    score = model.score_early(images, labels, margin=margin)
    assert score.templates_used == early.templates_used.double().mean()
    assert score.accuracy == (early.fused.prediction == torch.tensor(labels)).double().mean()
    with pytest.raises(PromptPrismError, match="there is no image to look at"):
        model.early_opinions([], 1.0)
    with pytest.raises(PromptPrismError, match="'coop' has no opinions to stop at"):
        PromptPrism("coop", tiny, epochs=1).fit(data).margin_for(images, 2.0)
