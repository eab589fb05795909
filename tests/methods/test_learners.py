"""What the further methods promise beside the figures of their public code."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import colours

from promptprism.backbones.block import AdaptedBlock
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods import METHODS, build_method, make_settings
from promptprism.methods.frozen import frozen_features
from promptprism.methods.learner import OWN, RIDGE, predicted
from promptprism.prompts import encode_image, encode_text
from promptprism.training.loop import learn

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "methods.md"
DATA = colours()
SPACE = DATA.label_space
LABELS = torch.tensor([0, 3, 1])


def pixels(views=1):
    return torch.randn(views, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make(name, backbone, **settings):
    return build_method(make_settings(name, **settings), backbone)


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["promptsrc", "clip-lora", "tip-adapter-f", "mmrl", "prograd"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, name):
    """With averages, drop-out, AdamW's two moments, rates from step to step."""
    settings = make_settings(name, epochs=3, batch_size=4)
    arguments = settings, tiny, SPACE, DATA.train
    whole = learn(*arguments, seed=2, validation=DATA.test)

    def stop(epoch, _):
        if epoch == 1:
            raise Stopped

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stopped):
        learn(*arguments, seed=2, checkpoint=file, after_epoch=stop)
    resumed = learn(*arguments, seed=2, validation=DATA.test, checkpoint=file)
    assert [one.loss for one in resumed.training.history] == [one.loss for one in whole.training.history]
    for key, value in whole.method.state_dict().items():
        assert value.equal(resumed.method.state_dict()[key]), key
    again = learn(*arguments, seed=2, validation=DATA.test, checkpoint=file)
    assert all(
        value.equal(again.method.state_dict()[key]) for key, value in whole.method.state_dict().items()
    )


@pytest.mark.slow
def test_promptsrc_saves_the_average_of_its_epochs(tiny):
    seen = []
    settings = make_settings("promptsrc", epochs=3, aggregation_mean=2, aggregation_std=1)
    trained = learn(
        settings,
        tiny,
        SPACE,
        DATA.train,
        after_epoch=lambda _, method: seen.append(method.learner.context.detach().clone()),
    )
    weights = torch.tensor([-0.5, 0.0, -0.5]).softmax(0)
    expected = sum(weight * one for weight, one in zip(weights, seen, strict=True))
    torch.testing.assert_close(trained.method.learner.context.detach(), expected)
    plain = learn(replace_setting(settings, aggregate=False), tiny, SPACE, DATA.train)
    assert plain.method.learner.context.equal(seen[-1])


def replace_setting(settings, **changes):
    return settings.model_copy(update=changes)


def test_vpt_is_the_phrase_with_other_images(tiny):
    method, zero_shot = make("vpt", tiny), make("zero-shot", tiny)
    space = replace(SPACE, phrase="a drawing of a {}.")
    assert [name for name, _ in method.named_parameters()] == ["learner.vision"]
    assert method.learner.vision.shape == (1, 2, 4, 64)
    assert method.classifier(space).text.equal(zero_shot.classifier(space).text)
    assert not method.classifier(space).logits(pixels()).equal(zero_shot.classifier(space).logits(pixels()))


def test_prompts_learned_apart_are_a_setting_of_cdc_too(tiny):
    apart = {"templates": 2, "coupled": False, "vision_tokens": 3, "vision_depth": 1}
    method = make("cdc", tiny, **apart)
    method(pixels(2), LABELS, method.texts(SPACE), 0).backward()
    assert method.learner.vision.shape == (2, 1, 3, 64) and method.learner.vision.grad.any(-1).all()
    with pytest.raises(PromptPrismError, match=r"vision_tokens=3 .*coupled=False, or vision_tokens=0"):
        make("cdc", tiny, vision_tokens=3)
    with pytest.raises(PromptPrismError, match="smaller vision_depth"):
        make("ivlp", tiny, vision_depth=3)


def test_mmrl_inserts_tokens_as_a_plain_forward_does(tiny):
    method = make("mmrl", tiny, tokens=3)
    tokens = tiny.tokenize(SPACE.texts())
    with torch.no_grad():
        learned = method.learner()[0][0]
        found = encode_text(tiny, tokens, method.learner()[0], insert_at=1)[0]
        x = tiny.text.token_embedding(tokens) + tiny.text.positions(0, tokens.shape[1])
        for layer in range(2):
            if layer == 1:
                x = torch.cat([x[:, :1], learned[0].expand(len(x), -1, -1), x[:, 1:]], dim=1)
            mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
            x = tiny.text.blocks[layer](x, attn_mask=mask)
        expected = tiny.text.read(x[torch.arange(len(x)), tokens.argmax(-1) + 3])
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_mmrl_decides_otherwise_for_classes_that_were_not_learned(tiny):
    method = make("mmrl", tiny)
    home = method.classifier(SPACE, SPACE)
    part = method.classifier(LabelSpace(SPACE.names[:2]), SPACE)
    other = method.classifier(SPACE, LabelSpace(("dog", "cat")))
    assert home.alpha == part.alpha == 0.7 and other.alpha == 1
    image = encode_image(tiny, pixels(), other.vision_prompts, other.first_layer)
    torch.testing.assert_close(other.logits(pixels()), tiny.logits(image, other.text))
    assert (home.logits(pixels()) - other.logits(pixels())).abs().max() > 0.1


def test_lora_leaves_the_backbone_as_it_is_and_is_merged(tiny):
    method = make("clip-lora", tiny, rank=3, alpha=2)
    plain = make("zero-shot", tiny).classifier(SPACE).logits(pixels())
    torch.testing.assert_close(method.classifier(SPACE).logits(pixels()), plain)
    with torch.no_grad():
        for tower in (method.text, method.vision):
            tower.up.copy_(torch.randn(tower.up.shape, generator=torch.Generator().manual_seed(1)))
    classifier = method.classifier(SPACE)
    (merged,) = classifier.merged
    assert all(block.update is None for block in merged.vision.blocks) and classifier.backbone is tiny
    change = merged.vision.blocks[1].attn.in_proj_weight - tiny.vision.blocks[1].attn.in_proj_weight
    value = 2 / 3**0.5 * method.vision.up[0, 1, 2] @ method.vision.down[0, 1, 2]
    torch.testing.assert_close(change[2 * 64 :], value.detach(), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(block, AdaptedBlock) for block in tiny.vision.blocks)
    torch.testing.assert_close(make("zero-shot", tiny).classifier(SPACE).logits(pixels()), plain)
    assert (classifier.logits(pixels()) - plain).abs().max() > 0.1
    loss = method.eval()(pixels(), LABELS, method.texts(SPACE), 0)
    expected = torch.nn.functional.cross_entropy(classifier.logits(pixels())[0], LABELS)
    torch.testing.assert_close(loss, expected)


def test_drop_out_is_a_function_of_seed_and_epoch(tiny):
    def losses(seed, epoch, mode=True):
        method = build_method(make_settings("clip-lora", dropout=0.5), tiny, 1)
        method.seed = seed
        with torch.no_grad():
            method.vision.up.fill_(0.1)
        method.train(mode)
        return [method(pixels(), LABELS, method.texts(SPACE), epoch).item() for _ in range(2)]

    first, second = losses(1, 0)
    assert losses(1, 0) == [first, second] and first != second
    assert first not in (*losses(2, 0), *losses(1, 1)) and len(set(losses(1, 0, mode=False))) == 1


def test_what_learns_nothing_by_steps_says_so(tiny):
    for name in ("zero-shot", "tip-adapter", "linear-probe"):
        if name != "tip-adapter":
            method = make(name, tiny)
            with pytest.raises(PromptPrismError, match=f"'{name}' learns nothing by steps"):
                method(pixels(), LABELS, method.texts(SPACE), 0)
        with pytest.raises(PromptPrismError, match=f"epochs=1 of method '{name}' is refused"):
            make_settings(name, epochs=1)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("clip-lora", {"rank": 49}, "rank=49 of method 'clip-lora' is above the width 48.*48 or less"),
        ("promptsrc", {"epochs": 1}, "epochs=1 leaves nothing to average.*2 or more, or aggregate=False"),
        ("mmrl", {"first_layer": 3}, "first_layer=3 of method 'mmrl' is above the 2 layers"),
    ],
)
def test_what_a_backbone_or_a_method_cannot_have_is_refused(tiny, name, settings, words):
    with pytest.raises(PromptPrismError, match=words):
        make(name, tiny, **settings)


def test_towers_that_are_no_plain_ones_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny.vision, "blocks", ())
    monkeypatch.setattr(tiny, "vision_layers", 0)
    for name in ("clip-lora", "ivlp", "vpt", "promptsrc"):
        with pytest.raises(PromptPrismError, match="image tower"):
            make(name, tiny)
    monkeypatch.undo()
    monkeypatch.setattr(tiny.text, "causal", False)
    with pytest.raises(PromptPrismError, match="'mmrl' needs a causal text tower"):
        make("mmrl", tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_one_prediction_of_every_method_can_be_explained(tiny, name):
    from promptprism.inference.explain import explain

    found = explain(make(name, tiny).classifier(SPACE), DATA.test[0].source)
    assert found.method == name and len(found.templates) == (4 if name == "cdc" else 1)
    assert len(found.templates[0].map) == 4 and any(any(row) for row in found.templates[0].map)


#: Of ViT-B/16, for 100 classes with 16 shots.
TRAINABLE = {
    "zero-shot": 0,
    "linear-probe": 100 * 513,
    "tip-adapter": 0,
    "tip-adapter-f": 1600 * 512,
    "coop": 2048,
    "kgcoop": 2048,
    "prograd": 8192,
    "cocoop": 35_360,
    "vpt": 9 * 4 * 768,
    "ivlp": 9 * 4 * (768 + 512),
    "maple": 3_555_072,
    "promptsrc": 9 * 4 * (768 + 512),
    "mmrl": 5 * 512 + 7 * (512 * 512 + 512 + 512 * 768 + 768) + 768 * 512,
    "clip-lora": 12 * 3 * 2 * 2 * (512 + 768),
    "cdc": 14_220_288 + 4 * 100 * 512,
}


@pytest.mark.slow
def test_trainable_parameters_of_vit_b_16():
    import open_clip

    from promptprism.backbones import Backbone

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    backbone = Backbone(model.to_empty(device="cpu"), open_clip.get_tokenizer("ViT-B-16"), fingerprint="none")
    found = {}
    for name in METHODS:
        method = make(name, backbone)
        method.allot(100, 1600)
        found[name] = sum(value.numel() for value in method.parameters())
    assert found == TRAINABLE
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \| [\w ]+ \|$", TABLE.read_text(), re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in rows} == TRAINABLE


def test_a_class_without_an_offset_gets_that_of_those_whose_names_are_near():
    centre, along, across, mean, offset = torch.randn(5, 2, 1, 8).unbind()
    along = torch.nn.functional.normalize(along, dim=-1)
    across = across - (across * along).sum(-1, keepdim=True) * along
    near = torch.cat([centre + along, centre - along], 1)
    offsets = torch.cat([mean + offset, mean - offset], 1)
    # The kernel's one eigenvalue is 2: what differs is held by the ridge, what is far has the mean.
    text = torch.cat([centre + 0.5 * along, centre - 3 * along, centre + across], 1)
    expected = torch.cat([mean + offset / (2 + RIDGE), mean - 6 * offset / (2 + RIDGE), mean], 1)
    torch.testing.assert_close(predicted(near, offsets, text), expected)
    # Neither the length of text features nor where they lie together counts.
    torch.testing.assert_close(predicted(3 * near + 5, offsets, 3 * text + 5), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["coop", "cdc"])
def test_offsets_start_at_the_means_of_the_classes_and_leave_others_alone(tiny, name):
    method, plain = make(name, tiny, class_offsets=True), make(name, tiny, class_offsets=False)
    method.allot(len(SPACE), len(DATA.train))
    method.prepare(method.texts(SPACE), DATA.train)
    images = frozen_features(tiny, DATA.train)
    means = torch.stack(
        [
            torch.nn.functional.normalize(images[[r.label == k for r in DATA.train]], dim=-1).mean(0)
            for k in range(len(SPACE))
        ]
    )
    text = method.classifier(SPACE).text
    expected = torch.nn.functional.normalize(means, dim=-1).expand_as(text)
    torch.testing.assert_close(text, expected, atol=1e-5, rtol=0)
    some = LabelSpace((SPACE.names[2], SPACE.names[0]), SPACE.phrase)
    torch.testing.assert_close(method.classifier(some, SPACE).text, text[:, [2, 0]], atol=1e-5, rtol=0)
    # Beside classes that were not learned those that were keep a part of what is their own.
    other = LabelSpace((SPACE.names[2], "tulip"), SPACE.phrase)
    found, without = method.classifier(other, SPACE).text, plain.classifier(other, SPACE).text
    offsets = method.offsets.detach()
    own = OWN * offsets[:, 2] + (1 - OWN) * offsets.mean(1)
    near = plain.classifier(SPACE).text
    given = predicted(near, offsets, without[:, 1:])[:, 0]
    moved = torch.nn.functional.normalize(without + torch.stack([own, given], 1), dim=-1)
    torch.testing.assert_close(found, moved, atol=1e-5, rtol=0)
    new = LabelSpace(("tulip", "rose"), SPACE.phrase)
    torch.testing.assert_close(method.classifier(new, SPACE).text, plain.classifier(new, SPACE).text)
    assert method.separable(SPACE, SPACE) and not method.separable(other, SPACE)
    by_distance = name == "cdc" and method.settings.distance_aware
    assert method.separable(new, SPACE) != by_distance
