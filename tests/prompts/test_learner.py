from types import SimpleNamespace

import pytest
import torch

from promptprism.errors import PromptPrismError
from promptprism.prompts import PromptLearner


def test_starts_from_the_phrase_and_from_copies(tiny):
    learner = PromptLearner(tiny, templates=3, context_length=2, depth=2, coupled=True)
    words = tiny.tokenize(["a photo"])[0, 1:3]
    for m in range(3):
        assert learner.context[m, 0].equal(tiny.text.token_embedding(words))
    assert learner.context[:, 1].std().item() == pytest.approx(0.02, rel=0.2)
    assert not learner.context[0, 1].equal(learner.context[1, 1])
    assert learner.phrase == "a photo of a {}."


def test_maps_of_deeper_layers_start_equal_and_the_first_is_its_own(tiny_factory):
    backbone = tiny_factory(vision_cfg={"layers": 3}, text_cfg={"layers": 3})
    weight = PromptLearner(backbone, depth=3, coupled=True).to_vision_weight[0]
    assert weight[1].equal(weight[2]) and not weight[0].equal(weight[1])
    assert weight.abs().max().item() == pytest.approx(backbone.text_width**-0.5, rel=0.01)


def test_prompts_are_the_context_and_its_linear_image(tiny):
    learner = PromptLearner(tiny, templates=2, context_length=3, depth=2, coupled=True)
    text, vision = learner()
    assert text.shape == (2, 2, 3, 48) and vision.shape == (2, 2, 3, 64)
    expected = torch.nn.functional.linear(
        learner.context[1, 1], learner.to_vision_weight[1, 1], learner.to_vision_bias[1, 1]
    )
    torch.testing.assert_close(vision[1, 1], expected)


def test_uncoupled_learns_only_context(tiny):
    learner = PromptLearner(tiny, context_length=16, phrase_init=False)
    assert learner()[1] is None
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert learner.phrase == "X " * 16 + "{}."


def test_start_depends_on_seed_and_template_only(tiny):
    one = PromptLearner(tiny, templates=1, depth=2, coupled=True, seed=5)
    torch.rand(7)
    four = PromptLearner(tiny, templates=4, depth=2, coupled=True, seed=5)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        assert a[0].equal(b[0])
    assert not PromptLearner(tiny, depth=2, seed=6).context.equal(one.context)


def test_number_of_values_on_vit_b_16(tiny):
    """J (512 * 768 + 768) + J * 2 * 512 for each of 4 templates, J = 9."""
    vit_b_16 = SimpleNamespace(
        text_width=512,
        vision_width=768,
        text_layers=12,
        vision_layers=12,
        device="cpu",
        tokenize=tiny.tokenize,
        first_word=1,
        count_tokens=tiny.count_tokens,
        text=SimpleNamespace(token_embedding=lambda tokens: torch.zeros(len(tokens), 512)),
    )
    learner = PromptLearner(vit_b_16, templates=4, context_length=2, depth=9, coupled=True)
    assert sum(p.numel() for p in learner.parameters()) == 14_220_288


def test_late_vision_prompts_come_from_the_upper_layers(tiny):
    learner = PromptLearner(tiny, depth=2, coupled=True, vision_from=1)
    text, vision = learner()
    assert text.shape == (1, 2, 2, 48) and vision.shape == (1, 1, 2, 64)
    expected = learner.context[0, 1] @ learner.to_vision_weight[0, 0].T + learner.to_vision_bias[0, 0]
    torch.testing.assert_close(vision[0, 0], expected)
    with pytest.raises(PromptPrismError, match="vision_from=2 leaves no layer with vision prompts"):
        PromptLearner(tiny, depth=2, coupled=True, vision_from=2)


def test_too_deep_or_too_long(tiny):
    with pytest.raises(PromptPrismError, match="depth 9 is more than the 2 layers of backbone 'tiny'"):
        PromptLearner(tiny, depth=9, coupled=True)
    with pytest.raises(PromptPrismError, match="context_length=5 tokens before the class name"):
        PromptLearner(tiny, context_length=5)
    with pytest.raises(PromptPrismError, match=r"'\{\} texture.' has fewer than context_length=2"):
        PromptLearner(tiny, phrase="{} texture.")
