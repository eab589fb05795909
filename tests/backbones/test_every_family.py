"""Every family that open_clip has: our forward is the model's own, with prompts too, and prompts are learned.

The plain forward with prompts is the model's own code, with prompts put in at the doors of its modules.
"""

import functools
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.inference.explain import relevance_maps
from promptprism.methods import build_method, make_settings
from promptprism.prompts import encode_image, encode_text
from tests.backbones.families import FAMILIES, make

pytestmark = pytest.mark.slow

NAMES = ("cat", "red fox", "lemon")
SPACE = LabelSpace(NAMES)
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def backbone_of(family):
    return Backbone(*make(family), name=family)


def randn(*shape, seed=0, scale=0.3):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()


def pixels_for(backbone, count=3):
    return randn(1, count, 3, backbone.image_size, backbone.image_size, seed=1, scale=1.0).detach()


def text_parts(model):
    """Token embedding and blocks."""
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        return text.token_embedding, text.transformer.resblocks
    encoder = text.transformer
    layers = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return encoder.get_input_embeddings(), layers[0]


def plain_text(backbone, tokens, prompts):
    """Features [M, K, D] by the model's own code."""
    first, n = backbone.first_word, prompts.shape[2]
    embedding, blocks = text_parts(backbone.model)

    def put(x, own):
        return torch.cat([x[:, :first], own.expand(len(x), -1, -1), x[:, first + n :]], dim=1)

    features = []
    for template in prompts:
        with ExitStack() as hooks:
            hooks.callback(embedding.register_forward_hook(lambda _m, _i, x, p=template[0]: put(x, p)).remove)
            for block, own in zip(blocks[1:], template[1:], strict=False):
                hook = block.register_forward_pre_hook(lambda _m, i, p=own: (put(i[0], p), *i[1:]))
                hooks.callback(hook.remove)
            features.append(F.normalize(backbone.model.encode_text(tokens, normalize=False), dim=-1))
    return torch.stack(features)


def plain_image(backbone, views, prompts, pool_prompts):
    """Features [M, B, D] by the model's own code."""
    visual, n = backbone.model.visual, prompts.shape[2]
    if hasattr(visual, "trunk"):
        blocks, door = visual.trunk.blocks, getattr(visual.trunk, "norm_pre", visual.trunk.blocks[0])
    else:
        blocks, door = visual.transformer.resblocks, visual.ln_pre
    tokens, features = backbone.vision.tokens, []

    def enter(_module, inputs, keywords, own=None, keep=tokens):
        keywords = dict(keywords)
        if keywords.get("rope") is not None:  # prompts are not turned: sine 0, cosine 1
            rope = keywords["rope"]
            still = torch.cat([torch.zeros(n, rope.shape[-1] // 2), torch.ones(n, rope.shape[-1] // 2)], -1)
            keywords["rope"] = torch.cat([rope, still.expand(*rope.shape[:-2], -1, -1)], dim=-2)
        x = inputs[0]
        if own is not None:
            x = torch.cat([x[:, :keep], own.expand(len(x), -1, -1)], dim=1)
        return (x, *inputs[1:]), keywords

    for m, template in enumerate(prompts):
        with ExitStack() as hooks:
            prehook = functools.partial(enter, own=template[0])
            hooks.callback(door.register_forward_pre_hook(prehook, with_kwargs=True).remove)
            for layer, block in enumerate(blocks):
                if block is not door:
                    own = template[layer] if 0 < layer < len(template) else None
                    prehook = functools.partial(enter, own=own)
                    hooks.callback(block.register_forward_pre_hook(prehook, with_kwargs=True).remove)
            if not pool_prompts:
                hooks.callback(blocks[-1].register_forward_hook(lambda _m, _i, x: x[:, :tokens]).remove)
            images = views[min(m, len(views) - 1)]
            features.append(F.normalize(backbone.model.encode_image(images, normalize=False), dim=-1))
    return torch.stack(features)


def assert_same(ours, plain, prompts):
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    weights = randn(*ours.shape, seed=7).detach()
    found, expected = (torch.autograd.grad((each * weights).sum(), prompts)[0] for each in (ours, plain))
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1, expected.abs().max()), rtol=1e-4)


@every_family
def test_features_are_the_models_own(family):
    model, _ = make(family)
    texts = [f"a photo of a {name}" for name in NAMES]
    backbone = backbone_of(family)
    pixels, tokens = pixels_for(backbone), backbone.tokenize(texts)
    with torch.no_grad():
        image, text = (
            model.encode_image(pixels[0], normalize=False),
            model.encode_text(tokens, normalize=False),
        )
        ours = encode_image(backbone, pixels)[0], encode_text(backbone, tokens)[0]
    torch.testing.assert_close(ours[0], F.normalize(image, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], F.normalize(text, dim=-1), atol=1e-5, rtol=0)
    assert ours[1].std(0).max() > 1e-3  # the texts differ
    assert backbone.embed_dim == ours[0].shape[-1] == ours[1].shape[-1]


@pytest.mark.parametrize("memory_mb", [1000, 0], ids=["kept", "recomputed"])
@every_family
def test_text_prompts_are_those_of_the_plain_forward(family, memory_mb):
    backbone = backbone_of(family)
    tokens = backbone.tokenize([f"a photo of a {name}" for name in NAMES])
    prompts = randn(2, 2, 3, backbone.text_width)
    ours = encode_text(backbone, tokens, prompts, memory_mb)
    assert_same(ours, plain_text(backbone, tokens, prompts), prompts)


@pytest.mark.parametrize("pool_prompts", [False, True], ids=["apart", "pooled"])
@every_family
def test_vision_prompts_are_those_of_the_plain_forward(family, pool_prompts):
    backbone = backbone_of(family)
    if not backbone.vision_layers:
        assert backbone.vision.reads == "convolution" and backbone.vision.tokens == 0
        return
    prompts, pixels = randn(2, 2, 3, backbone.vision_width), pixels_for(backbone)
    ours = encode_image(backbone, pixels, prompts, pool_prompts=pool_prompts)
    assert_same(ours, plain_image(backbone, pixels, prompts, pool_prompts), prompts)
    apart = encode_image(backbone, pixels, prompts, pool_prompts=False)
    pools = backbone.vision.reads in ("mean", "attention")  # where prompts could be among what is read
    assert pools == (not torch.equal(encode_image(backbone, pixels, prompts, 0, True), apart))


@pytest.mark.parametrize("name", ["coop", "maple", "cdc", "cocoop"])
@every_family
@pytest.mark.filterwarnings("ignore:the image tower of backbone")
def test_a_step_lowers_the_loss(family, name):
    backbone = backbone_of(family)
    settings = make_settings(name, **({"templates": 2, "head": "softmax"} if name == "cdc" else {}))
    if name == "maple" and not backbone.vision_layers:
        with pytest.raises(PromptPrismError, match="has no tokens that prompts may join"):
            build_method(settings, backbone)
        return
    method = build_method(settings, backbone)
    batch = pixels_for(backbone), torch.tensor([0, 1, 2]), method.texts(SPACE), 0
    loss = method(*batch)
    loss.backward()
    size = sum((value.grad**2).sum() for value in method.parameters()).sqrt()
    assert size > 0 and loss.isfinite()
    with torch.no_grad():
        for value in method.parameters():
            value -= 0.01 * value.grad / size
        assert method(*batch) < loss


@every_family
def test_bfloat16_stays_near_and_gives_float32(family):
    exact, low = backbone_of(family), Backbone(*make(family), name=family, precision="bfloat16")
    pixels, tokens = pixels_for(exact), exact.tokenize([f"a photo of a {name}" for name in NAMES])
    text = randn(2, 2, 3, exact.text_width)
    runs = [lambda backbone: encode_text(backbone, tokens, text)]
    if exact.vision_layers:
        image = randn(2, 2, 3, exact.vision_width)
        runs.append(lambda backbone: encode_image(backbone, pixels, image))
    else:
        runs.append(lambda backbone: encode_image(backbone, pixels))
    for run in runs:
        near = run(low)
        assert near.dtype == torch.float32 and low.dtype == torch.bfloat16
        assert (run(exact) * near).sum(-1).min() > 0.99
    (gradient,) = torch.autograd.grad(runs[0](low).sum(), text)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@pytest.mark.parametrize("method", ["zero-shot", "cdc"])
@every_family
@pytest.mark.filterwarnings("ignore:the image tower of backbone")
def test_maps_of_relevance_have_the_towers_patches(family, method):
    backbone = backbone_of(family)
    classifier = build_method(make_settings(method), backbone).classifier(SPACE)
    logits, maps = relevance_maps(classifier, pixels_for(backbone, 1))
    assert maps.shape == (len(logits), *backbone.vision.grid) and maps.isfinite().all()
    assert not maps.numel() or maps.abs().max() > 0


@pytest.mark.parametrize(
    ("family", "door"),
    [
        ("ViT", "transformer.resblocks.1.ln_1"),
        ("ViT-average", "ln_post"),
        ("coca_ViT-B-32", "attn_pool.ln_k"),
    ],
)
def test_maps_look_where_the_feature_is_read(family, door):
    backbone = backbone_of(family)
    assert backbone.vision.door is backbone.model.visual.get_submodule(door)


def test_a_mean_over_patches_before_the_last_norm_has_a_door_of_its_own():
    backbone, seen = backbone_of("CLIPA"), []
    backbone.vision.door.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        image = encode_image(backbone, pixels_for(backbone))[0]
    visual, (tokens,) = backbone.model.visual, seen
    own = visual.ln_post(tokens[:, backbone.vision.first_patch :].mean(1)) @ visual.proj
    torch.testing.assert_close(image, F.normalize(own, dim=-1), atol=1e-5, rtol=0)


def test_cdc_without_vision_prompts_says_so_and_keeps_a_view_for_each_template():
    backbone = backbone_of("RN50")
    with pytest.warns(
        UserWarning, match=r"no tokens that prompts may join: the templates of 'cdc' live in the text"
    ):
        method = build_method(make_settings("cdc", templates=3), backbone)
    assert len(method.views) == 3 and method.learner.to_vision_weight is None
    assert method.learner.context.shape == (3, 2, 2, backbone.text_width)
    views = pixels_for(backbone).expand(3, -1, -1, -1, -1) * torch.tensor([1, 0.5, 0.1]).view(3, 1, 1, 1, 1)
    logits = method.classifier(SPACE).logits(views)
    assert (
        method.shape.vision_prompts == 0
        and logits.shape == (3, 3, 3)
        and not torch.allclose(logits[0], logits[1], atol=1e-3)
    )


def test_logits_of_a_sigmoid_model_are_its_own():
    model, tokenizer = make("SigLIP")
    backbone = backbone_of("SigLIP")
    pixels, texts = pixels_for(backbone), [f"a photo of a {name}." for name in NAMES]
    with torch.no_grad():
        expected, _ = model.get_logits(pixels[0], tokenizer(texts))
        zero_shot = build_method(make_settings("zero-shot"), backbone).classifier(SPACE)
        logits = zero_shot.logits(pixels)
    assert (
        backbone.logit_bias == pytest.approx(float(model.logit_bias), abs=1e-6) and backbone.logit_bias < -9
    )
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(zero_shot.probabilities(logits), expected.softmax(-1), atol=1e-5, rtol=0)
