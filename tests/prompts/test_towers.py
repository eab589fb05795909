from functools import partial

import pytest
import torch

from benchmarks.reference import plain_image, plain_text
from promptprism.backbones import block
from promptprism.prompts import encode_image, encode_text, text, vision

NAMES = {
    "usual": ["cat", "golden retriever", "Boeing 737-800", "lemon"],
    "one class": ["cat"],
    "identical": ["cat", "cat", "cat"],
    "very different length": [
        "a",
        "the annual crop land of the very far north that nobody has seen for long",
        "x y",
    ],
    "one begins another": ["red", "red fox", "red fox cub", "red"],
    "non-Latin": ["日本語", "лиса", "🦊🦊"],
}


def randn(*shape, seed=0, scale=0.3):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()


def assert_same(fast, plain, leaves, backbone, *arguments):
    """Values and gradients of a random function of the features agree to 1e-5 (of the largest gradient)."""
    results = [fast(backbone, *arguments), plain(backbone.model, *arguments)]
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)
    direction = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(9))
    if leaves:
        grads = [torch.autograd.grad((r * direction).sum(), leaves) for r in results]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(
                ours, theirs, atol=1e-5 * float(theirs.abs().max().clamp(min=1)), rtol=0
            )


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize(("templates", "depth", "n"), [(1, 1, 2), (3, 2, 2), (2, 2, 4)])
def test_text_with_prompts_is_the_plain_forward(tiny, names, templates, depth, n):
    prompts = randn(templates, depth, n, tiny.text_width)
    tokens = tiny.tokenize([f"a photo of a {name}." for name in names])
    assert_same(encode_text, plain_text, [prompts], tiny, tokens, prompts)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_text_without_prompts_is_open_clip(tiny, names):
    for phrase in ("a photo of a {}.", "{} texture."):  # with a shared beginning and without
        tokens = tiny.tokenize([phrase.replace("{}", name) for name in names])
        expected = tiny.model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(encode_text(tiny, tokens)[0], expected, atol=1e-5, rtol=0)


def test_class_right_behind_the_prompts_and_placeholders_that_differ(tiny):
    prompts = randn(2, 2, 3, tiny.text_width)
    tokens = tiny.tokenize(["X X X cat", "Y Y Y red fox"])
    assert_same(encode_text, plain_text, [prompts], tiny, tokens, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("memory_mb", [0, 0.5])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_text_recomputed_in_chunks_is_the_plain_forward(tiny, names, memory_mb):
    prompts = randn(2, 2, 2, tiny.text_width)
    tokens = tiny.tokenize([f"a photo of a {name}." for name in names * 4])
    encode = partial(encode_text, memory_mb=memory_mb)
    assert_same(encode, plain_text, [prompts], tiny, tokens, prompts)
    with torch.no_grad():
        torch.testing.assert_close(encode(tiny, tokens, prompts), encode_text(tiny, tokens, prompts))


def kept_mb(compute):
    """MiB that autograd keeps for the backward pass of `compute()`, frozen weights aside."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in storages.values()) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_text_keeps_what_it_says_and_no_more_than_its_budget(tiny_factory, precision):
    backbone = tiny_factory(precision)
    prompts = randn(3, 2, 2, backbone.text_width)
    tokens = backbone.tokenize([f"a photo of a {'very ' * (i % 4)}red fox." for i in range(200)])
    said = sum(size for *_, size in text._groups(backbone, sorted([4, 5, 6, 7] * 50), 5, 3, 1e9))
    kept = kept_mb(lambda: encode_text(backbone, tokens, prompts))
    assert said == pytest.approx(kept, rel=0.2)
    for budget in (0.8 * kept, 0.3 * kept):
        assert kept_mb(partial(encode_text, backbone, tokens, prompts, budget)) < budget


def test_classes_are_grouped_by_length_and_memory(tiny):
    def cuts(lengths, templates, limit_mb):
        return [group[:2] for group in text._groups(tiny, lengths, 5, templates, limit_mb)]

    assert cuts([2, 3, 4], 1, 1e9) == [(0, 3)]
    assert cuts([2] * 50 + [3] * 2 + [4], 4, 1e9) == [(0, 50), (50, 53)]
    assert cuts([2, 2, 2], 4, 0) == [(0, 1), (1, 2), (2, 3)]
    size = next(text._groups(tiny, [3] * 7, 5, 2, 1e9))[2]
    assert cuts([3] * 14, 2, size) == [(0, 7), (7, 14)]


def test_text_needs_room_for_its_prompts(tiny):
    with pytest.raises(ValueError, match="4 prompts need 4 placeholder tokens; a text has only 1"):
        encode_text(tiny, tiny.tokenize(["cat"]), randn(1, 1, 4, tiny.text_width))


def test_text_of_another_pooling_and_tower_class(tiny_factory):
    custom = tiny_factory(
        custom_text=True, text_cfg={"pool_type": "eos", "eos_id": 49407, "ls_init_value": 0.1}
    )
    tokens = custom.tokenize(["a photo of a cat.", "a photo of a red fox."])
    expected = custom.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encode_text(custom, tokens)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pass_mb", [24, 0], ids=["one pass", "a pass for each template"])
@pytest.mark.parametrize("longest", [256, 0], ids=["explicit products", "fused kernel"])
@pytest.mark.parametrize(("views", "templates", "depth", "n"), [(1, 1, 1, 2), (3, 3, 2, 2), (1, 3, 2, 1)])
def test_image_with_prompts_is_the_plain_forward(
    tiny, monkeypatch, pass_mb, longest, views, templates, depth, n
):
    monkeypatch.setattr(vision, "_PASS_MB", pass_mb)
    monkeypatch.setattr(block, "_LONGEST_EXPLICIT", longest)
    prompts = randn(templates, depth, n, tiny.vision_width)
    pixels = randn(views, 4, 3, 32, 32, seed=1, scale=1.0)
    assert_same(encode_image, plain_image, [prompts, pixels], tiny, pixels, prompts)


def test_late_prompts_meet_the_plain_states_and_send_no_gradient_below(tiny):
    prompts, pixels = randn(2, 1, 2, tiny.vision_width), randn(1, 3, 3, 32, 32, scale=1.0)
    visual = tiny.model.visual
    first, second = visual.transformer.resblocks
    x = visual.conv1(pixels[0]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], dim=1) + visual.positional_embedding
    x = first(visual.ln_pre(x)).expand(2, -1, -1, -1)
    x = torch.cat([x, prompts[:, 0, None].expand(-1, 3, -1, -1)], dim=2).flatten(0, 1)
    expected = torch.nn.functional.normalize(visual.ln_post(second(x)[:, 0]) @ visual.proj, dim=-1)
    late = encode_image(tiny, pixels.detach(), prompts, first_layer=1)
    torch.testing.assert_close(late, expected.unflatten(0, (2, 3)), atol=1e-5, rtol=0)
    seen = []
    handle = first.mlp.gelu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encode_image(tiny, pixels.detach(), prompts, first_layer=1)
    handle.remove()
    assert [(len(state), state.requires_grad) for state in seen] == [(1, False)]


def test_image_without_prompts_is_open_clip(tiny):
    pixels = randn(2, 3, 3, 32, 32, scale=1.0)
    expected = torch.stack([tiny.model.encode_image(view, normalize=True) for view in pixels])
    torch.testing.assert_close(encode_image(tiny, pixels), expected, atol=1e-5, rtol=0)


def test_models_without_first_norm_and_with_layer_scale(tiny_factory):
    model = tiny_factory(vision_cfg={"no_ln_pre": True, "ls_init_value": 0.5})
    prompts, pixels = randn(2, 2, 2, model.vision_width), randn(2, 3, 3, 32, 32, scale=1.0)
    assert_same(encode_image, plain_image, [prompts], model, pixels, prompts)


@pytest.mark.slow
def test_bfloat16_stays_near_and_gives_float32(tiny, tiny_factory):
    low = tiny_factory("bfloat16")
    text, vision = randn(2, 2, 2, tiny.text_width), randn(2, 2, 2, tiny.vision_width)
    tokens, pixels = (
        tiny.tokenize(["a photo of a cat.", "a photo of a fox."]),
        randn(2, 3, 3, 32, 32, scale=1.0),
    )
    for encode, inputs, prompts in ((encode_text, tokens, text), (encode_image, pixels, vision)):
        exact, near = encode(tiny, inputs, prompts), encode(low, inputs, prompts)
        assert near.dtype == torch.float32
        assert (exact * near).sum(-1).min() > 0.999
        (gradient,) = torch.autograd.grad(near.sum(), prompts)
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same(tiny_factory):
    here, there = tiny_factory(), tiny_factory().to("cuda")
    prompts, pixels = randn(2, 2, 2, here.vision_width), randn(2, 3, 3, 32, 32, scale=1.0)
    far = encode_image(there, pixels.cuda(), prompts.cuda()).cpu()
    torch.testing.assert_close(far, encode_image(here, pixels, prompts), atol=1e-4, rtol=0)
    text = randn(2, 2, 2, here.text_width)
    tokens = here.tokenize(["a photo of a cat.", "a photo of a red fox."])
    far = encode_text(there, tokens.cuda(), text.cuda()).cpu()
    torch.testing.assert_close(far, encode_text(here, tokens, text), atol=1e-4, rtol=0)
