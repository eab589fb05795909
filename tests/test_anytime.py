import math

import pytest
import torch

from promptprism import PromptPrism
from promptprism.anytime import early_opinions, settled
from promptprism.errors import PromptPrismError
from promptprism.methods import build_method

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little
NAMES = ["cat", "red fox", "lemon", "owl"]


@pytest.fixture
def method(tiny):
    return build_method("cdc", tiny, NAMES, templates=3, seed=2).eval()


def pixels(images=6):
    return torch.randn(1, images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_settled_when_the_lead_outweighs_what_is_to_come():
    weight = torch.tensor([[3.0, 1.0, 0.5], [2.0, 1.75, 0.0], [1.0, 1.0, 0.0]])
    assert settled(weight, 2, 0.9).tolist() == [True, False, False]  # leads 2, 0.25, 0 against 1.8
    assert settled(weight, 2, 1.0).tolist() == [False, False, False]
    assert settled(weight, 1, 0.2).tolist() == [True, True, False]
    assert settled(weight, 0, math.inf).all() and not settled(weight, 1, math.inf).any()


def test_never_stopped_is_the_full_fusion(method):
    with torch.no_grad():
        _, fused = method.opinions(method(pixels()))
    early = early_opinions(method, pixels(), method.text_features(), math.inf)
    torch.testing.assert_close(early.fused.weight, fused.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [3] * 6


def test_no_margin_is_the_first_template(method):
    with torch.no_grad():
        first = method.opinions(method(pixels()))[0][0]
    early = early_opinions(method, pixels(), method.text_features(), 0.0)
    torch.testing.assert_close(early.fused.weight, first.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [1] * 6


def test_each_image_stops_by_itself_at_the_sum_of_what_it_asked(method):
    text = method.text_features()
    with torch.no_grad():
        weights = method.opinions(method(pixels()))[0].weight
    lead = weights[0].topk(2).values
    margin = float((lead[:, 0] - lead[:, 1]).median()) / 2
    early = early_opinions(method, pixels(), text, margin)
    assert early.templates_used.min() == 1 < early.templates_used.max()
    for image, used in enumerate(early.templates_used.tolist()):
        torch.testing.assert_close(
            early.fused.weight[image], weights[:used, image].sum(0), atol=1e-5, rtol=1e-5
        )


def test_the_prediction_stands_if_no_template_turns_by_more_than_the_margin(method):
    with torch.no_grad():
        opinions, fused = method.opinions(method(pixels()))
    margin = float((opinions.weight.amax(-1) - opinions.weight.amin(-1)).max())
    early = early_opinions(method, pixels(), method.text_features(), margin)
    assert early.fused.prediction.equal(fused.prediction)


def test_only_opinions_can_be_stopped_at(tiny, method):
    for other in (build_method("maple", tiny, NAMES), build_method("cdc", tiny, NAMES, head="softmax")):
        with pytest.raises(PromptPrismError, match="has no opinions to stop at"):
            early_opinions(other, pixels(), other.text_features(), 1.0)
    for margin in (-1.0, math.nan):
        with pytest.raises(PromptPrismError, match="give 0 or more"):
            early_opinions(method, pixels(), method.text_features(), margin)


def test_estimator_asks_for_images_in_their_order(tiny):
    from toys import colours

    data = colours()
    model = PromptPrism(backbone=tiny, templates=2, epochs=1).fit(data)
    images = [record.source for record in data.test]
    full, early = model.opinions(images).fused, model.early_opinions(images, math.inf)
    torch.testing.assert_close(early.fused.weight, full.weight, atol=1e-5, rtol=1e-5)
    assert early.templates_used.tolist() == [2] * len(images)
    with pytest.raises(PromptPrismError, match="there is no image to look at"):
        model.early_opinions([], 1.0)
