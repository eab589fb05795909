import open_clip
import pytest
import torch

from promptprism.backbones import Backbone
from promptprism.backbones.backbone import fingerprint_of
from promptprism.errors import PromptPrismError
from promptprism.prompts import encode_image


def test_sizes_are_read_from_the_model(tiny):
    sizes = (tiny.image_size, tiny.embed_dim, tiny.text_width, tiny.vision_width, tiny.context_length)
    assert sizes == (32, 24, 48, 64, 40)
    assert (tiny.text_layers, tiny.vision_layers) == (2, 2)
    assert tiny.logit_scale == pytest.approx(30)
    assert (tiny.mean, tiny.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert tiny.dtype == torch.float32 and tiny.device.type == "cpu"


def test_frozen_and_always_in_evaluation_mode(tiny):
    tiny.train()
    assert not any(module.training for module in tiny.modules())
    assert not any(p.requires_grad for p in tiny.parameters())


@pytest.mark.slow
def test_fingerprint_ignores_precision_and_sees_one_changed_number(tiny, tiny_factory):
    low = tiny_factory("bfloat16")
    assert low.fingerprint == tiny.fingerprint and len(tiny.fingerprint) == 16
    other = tiny_factory()
    other.model.ln_final.bias.data[0] += 1e-3
    assert fingerprint_of(other.model) != tiny.fingerprint


def test_bfloat16_casts_matrices_and_keeps_norms_and_positions(tiny_factory):
    low = tiny_factory("bfloat16")
    block = low.model.visual.transformer.resblocks[0]
    assert low.dtype == torch.bfloat16
    for weight in (
        block.attn.in_proj_weight,
        block.mlp.c_fc.bias,
        low.model.visual.conv1.weight,
        low.model.text_projection,
    ):
        assert weight.dtype == torch.bfloat16
    for weight in (block.ln_1.weight, low.model.positional_embedding, low.model.token_embedding.weight):
        assert weight.dtype == torch.float32


@pytest.mark.slow
def test_quick_gelu_is_folded_and_the_model_stays_the_same():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"width": 64, "layers": 2}
        model = open_clip.CLIP(
            24,
            {**size, "head_width": 32, "patch_size": 8, "image_size": 32},
            {**size, "heads": 2, "vocab_size": 49408, "context_length": 16},
            quick_gelu=True,
        ).eval()
        pixels = torch.randn(3, 3, 32, 32)
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a cat", "a photo of a dog"])
    before = model.encode_image(pixels), model.encode_text(tokens), fingerprint_of(model)
    backbone = Backbone(model, open_clip.SimpleTokenizer())
    assert (backbone.activation, backbone.fingerprint) == ("quick_gelu", before[2])
    assert {type(block.mlp.gelu) for block in model.visual.transformer.resblocks} == {torch.nn.SiLU}
    torch.testing.assert_close(model.encode_image(pixels), before[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(tokens), before[1], atol=1e-5, rtol=0)


def test_tokenize_marks_the_end_and_refuses_what_is_too_long(tiny):
    tokens = tiny.tokenize(["a photo of a cat.", "日本語 🦊"])
    assert tokens.shape == (2, 40)
    assert tiny.text.end(tokens).tolist()[0] == 7
    fits = " ".join(["a"] * 38)
    assert tiny.tokenize([fits]).ne(0).all()
    with pytest.raises(PromptPrismError, match=r"'a a a .*40 tokens of backbone 'tiny'"):
        tiny.tokenize(["short", fits + " a"])


def test_eos_pooling_of_custom_text_models(tiny, tiny_factory):
    custom = tiny_factory(custom_text=True, text_cfg={"pool_type": "eos", "eos_id": 49407})
    tokens = tiny.tokenize(["a cat", "a photo of a dog"])
    assert custom.text.end(tokens).equal(tiny.text.end(tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_cfg": {"attentional_pool": "parallel"}}, "'parallel' attention, unfinished in open_clip"),
        ({"vision_cfg": {"image_size": (32, 64)}}, "its images are 32 x 64 pixels; they must be square"),
        ({"text_cfg": {"pool_type": "none"}}, "its text feature is read by 'none' pooling"),
    ],
)
def test_what_is_not_known_is_refused(tiny_factory, changes, words):
    with pytest.raises(PromptPrismError, match=words):
        tiny_factory(**changes)


def test_no_clip_at_all():
    with pytest.raises(PromptPrismError, match="Linear is not one of open_clip's CLIP classes"):
        Backbone(torch.nn.Linear(2, 2), open_clip.SimpleTokenizer())


class Staged(torch.nn.Module):
    """A vision module of its own that says `stem`, `blocks` and `read`."""

    def __init__(self, visual):
        super().__init__()
        self.of, self.blocks, self.image_size = visual, visual.transformer.resblocks, visual.image_size
        self.width, self.heads, self.tokens = 64, 2, 17

    def stem(self, images):
        return self.of._embeds(images)

    def read(self, x):
        return self.of.ln_post(x) @ self.of.proj


@pytest.mark.slow
def test_a_module_that_has_stem_blocks_and_read_is_taken_as_it_is(tiny_factory):
    plain = tiny_factory(vision_cfg={"no_ln_pre": True})
    model = torch.nn.Module()
    model.visual, model.logit_scale = Staged(plain.model.visual), plain.model.logit_scale
    model.text = open_clip.model._build_text_tower(24, {"width": 48, "heads": 2, "layers": 2})
    staged = Backbone(model, plain.tokenizer, name="staged")
    assert (staged.vision.reads, staged.vision.grid, staged.vision.tokens) == ("class token", (4, 4), 17)
    assert (staged.vision_width, staged.vision_layers, staged.text.causal) == (64, 2, True)
    views, prompts = torch.randn(1, 3, 3, 32, 32), 0.3 * torch.randn(2, 2, 3, 64)
    for own in (None, prompts):
        ours, expected = (encode_image(backbone, views, own) for backbone in (staged, plain))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
