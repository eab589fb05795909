"""Bits that flip on a disk or on the way, adapters of other versions, and answers that are none."""

import json
import os
import random
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from toys import colours, picture

import promptprism
from promptprism import PromptPrism, load_data, load_model
from promptprism.adapter import CARD, TENSORS, read_card
from promptprism.errors import PromptPrismError
from promptprism.methods import METHODS, build_method, make_settings
from promptprism.training.checkpoint import Epoch, Run, load_checkpoint, save_checkpoint

DATA = colours()
FORMAT_1 = Path(__file__).with_name("adapters") / "format-1"
pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")


def fitted(backbone, name="coop", **settings):
    return PromptPrism(name, backbone, epochs=1, batch_size=8, **settings).fit(DATA)


def flipped(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def bits(size, count, seed):
    return random.Random(seed).sample(range(8 * size), count)


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    return fitted(tiny).save(tmp_path_factory.mktemp("damage") / "adapter")


@pytest.mark.parametrize("file", [CARD, TENSORS])
def test_a_flipped_bit_of_an_adapter_is_an_error(tiny, adapter, file):
    whole = (adapter / file).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little") if file == TENSORS else len(whole)
    chosen = bits(header, 50 if file == TENSORS else 80, 1)
    if file == TENSORS:
        chosen += [8 * header + bit for bit in bits(len(whole) - header, 30, 2)]
    assert len(chosen) == 80
    try:
        for bit in chosen:
            (adapter / file).write_bytes(flipped(whole, bit))
            with pytest.raises(PromptPrismError, match=re.escape(file)):
                load_model(adapter, backbone=tiny)
    finally:
        (adapter / file).write_bytes(whole)
    load_model(adapter, backbone=tiny)


def test_a_flipped_bit_of_a_checkpoint_is_an_error(tiny, tmp_path):
    method = build_method(make_settings("coop", epochs=2), tiny)
    learned = dict(method.named_parameters())
    optimizer = torch.optim.SGD(learned.values(), lr=0.1, momentum=0.9)
    for value in learned.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    run = Run.of(method, DATA.label_space, DATA.train, 1)
    history = [Epoch(epoch=0, steps=1, rate=0.1, loss=1.0, seconds=1.0)]
    place = tmp_path / "checkpoint"
    save_checkpoint(place, run, history, 1.0, method, optimizer)
    whole = place.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for bit in bits(header, 25, 1) + [8 * header + bit for bit in bits(len(whole) - header, 15, 2)]:
        place.write_bytes(flipped(whole, bit))
        with pytest.raises(PromptPrismError, match=r"'.*checkpoint' is cut short or"):
            load_checkpoint(place, run, method, optimizer)
    place.write_bytes(whole)
    assert load_checkpoint(place, run, method, optimizer) == (history, 1.0)


def test_a_card_may_be_changed_on_purpose_and_its_line_ends_on_the_way(tiny, adapter, tmp_path):
    (tmp_path / TENSORS).write_bytes((adapter / TENSORS).read_bytes())
    text = (adapter / CARD).read_text()
    (tmp_path / CARD).write_bytes(text.replace("\n", "\r\n").encode())
    assert read_card(tmp_path) == read_card(adapter)
    other = text.replace("a photo of a {}.", "a sketch of a {}.")
    (tmp_path / CARD).write_text(other)
    with pytest.raises(PromptPrismError, match=r"not as it was written.*on purpose, take out its 'checksum'"):
        load_model(tmp_path, backbone=tiny)
    (tmp_path / CARD).write_text(re.sub(r',\n *"checksum": "\w+"', "", other))
    assert load_model(tmp_path, backbone=tiny).classifier_.space.phrase == "a sketch of a {}."
    other = safetensors.torch.save({"learner.context": torch.zeros(1, 1, 4, 48)})
    (tmp_path / TENSORS).write_bytes(other)
    with pytest.raises(PromptPrismError, match=r"adapter\.safetensors' is not what its card tells of"):
        load_model(tmp_path, backbone=tiny)


@pytest.mark.slow
def test_an_adapter_of_format_1_is_read_for_ever():
    """Written by the first version, before there were checksums."""
    model = load_model(FORMAT_1, precision="float32")
    assert read_card(FORMAT_1).tensors is None and len(model.classes_) == 59
    images = [record.source for record in load_data("mini/food").test[:102:17]]
    found = model.predict_proba(images)
    assert model.classes_[found.argmax(1)].tolist() == [
        "baby bottle", "burrito", "bacon", "bread", "bread", "clinking beer mugs"
    ]  # fmt: skip
    wanted = [0.9159, 0.7731, 0.9789, 0.4587, 0.4545, 0.8706]
    np.testing.assert_allclose(found.max(1), wanted, atol=2e-3)


def newer(adapter, place, **changes):
    place.mkdir()
    card = json.loads((adapter / CARD).read_text()) | {"promptprism": "0.9.0"}
    card["settings"] |= changes.pop("settings", {})
    card["backbone"] |= changes.pop("backbone", {})
    card["training"]["history"][0] |= {"mood": "good"}
    del card["checksum"]
    (place / CARD).write_text(json.dumps(card | changes))
    (place / TENSORS).write_bytes((adapter / TENSORS).read_bytes())
    return place


def test_what_a_newer_version_adds_is_left_out_or_asks_for_that_version(tiny, adapter, tmp_path):
    card = read_card(newer(adapter, tmp_path / "neutral", licence=None))
    assert card.method == "coop" and not hasattr(card, "licence")
    here = re.escape(promptprism.__version__)
    for name, changes, word in (
        ("setting", {"settings": {"text_dropout": 0.0}}, "no setting 'text_dropout'"),
        ("backbone", {"backbone": {"resolution": 448}}, "backbone.resolution"),
        ("method", {"method": "lora"}, "Unknown method 'lora'"),
        ("format", {"format": 2}, "reads format 1"),
    ):
        place = newer(adapter, tmp_path / name, **changes)
        with pytest.raises(
            PromptPrismError, match=rf"written by 0\.9\.0, this is {here}: upgrade promptprism.*{word}"
        ):
            load_model(place, backbone=tiny)
    place = newer(adapter, tmp_path / "same", promptprism=promptprism.__version__)
    with pytest.raises(PromptPrismError, match=r"not valid: 'training\.history\.0\.mood' is unknown"):
        read_card(place)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("more", [{}, {"class_offsets": True, "learn_text": False, "coupled": False}])
def test_the_sizes_that_settings_decide_are_those_that_are_built(tiny, name, more):
    if not more.keys() <= METHODS[name].Settings.model_fields.keys():
        return
    try:
        settings = make_settings(name, **more)
    except PromptPrismError:  # a method that is none without them
        return
    method = build_method(settings, tiny)
    method.allot(3, 12)
    built, axes = method.state_dict(), METHODS[name].axes(settings, 12)
    assert axes or name in ("zero-shot", "linear-probe")
    for key, sizes in axes.items():
        assert len(sizes) == built[key].ndim
        assert all(a in (None, b) for a, b in zip(sizes, built[key].shape, strict=True))


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "cdc"])
def test_hostile_settings_are_compared_with_the_tensors_before_they_are_built(
    tiny, tmp_path, name, monkeypatch
):
    path = fitted(tiny, name).save(tmp_path / "adapter")
    card = json.loads((path / CARD).read_text())
    del card["checksum"]
    monkeypatch.setattr("promptprism.adapter.build_method", lambda *_: pytest.fail("it is being built"))
    big = "context_length" if name == "cocoop" else "templates"
    for setting in {big, "context_length"}:
        changed = card | {"settings": card["settings"] | {setting: 1_000_000_000}}
        (path / CARD).write_text(json.dumps(changed))
        with pytest.raises(
            PromptPrismError, match=r"context'.* need .*1000000000|templates=1000000000.* is refused"
        ):
            load_model(path, backbone=tiny)
    tensors = {"learner.context": torch.zeros(1_000_000_000, 1, 4, 0)}
    (path / TENSORS).write_bytes(safetensors.torch.save(tensors))
    settings = {"templates": 1_000_000_000, "depth": 1, "context_length": 4}
    del card["tensors"]
    (path / CARD).write_text(json.dumps(card | {"method": "cdc", "settings": settings}))
    with pytest.raises(PromptPrismError, match="do not belong together"):
        load_model(path, backbone=tiny)


@pytest.mark.parametrize("name", ["coop", "cdc"])
def test_an_answer_that_is_not_finite_is_an_error(tiny, name):
    model = fitted(tiny, name)
    for value in model.method_.parameters():
        value.data.fill_(torch.inf)
    model = model.with_classes(["lemon", "plum"])
    image = DATA.test[0].source
    asked = [model.predict, model.predict_proba, model.explain]
    asked += [model.opinions, lambda image: model.early_opinions(image, 1.0)] if name == "cdc" else []
    for ask in asked:
        with pytest.raises(
            PromptPrismError, match=r"answers for 1 of 1 images are not finite, first an array"
        ):
            ask(image)
    with pytest.raises(PromptPrismError, match="not finite"):
        model.with_classes(DATA.class_names).score(DATA)


@pytest.mark.slow
def test_one_broken_image_loses_no_other_answer(tiny, tmp_path):
    model = fitted(tiny, "cdc", templates=2)
    paths = []
    for number, colour in enumerate(["red", "blue", "green", "yellow"] * 10):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(colour, number)).save(paths[-1])
    whole = model.predict_proba(paths)
    broken = {3: "truncated", 39: "no such image", **dict.fromkeys(range(32, 36), "is empty")}
    paths[3].write_bytes(paths[3].read_bytes()[:-40])
    paths[39].unlink()
    for place in range(32, 36):
        paths[place].write_bytes(b"")
    rest = [place for place in range(40) if place not in broken]
    for ask in (
        model.predict_proba,
        lambda paths, unread: model.opinions(paths, unread=unread).fused.probability.numpy(),
        lambda paths, unread: model.early_opinions(paths, np.inf, unread=unread).fused.probability.numpy(),
    ):
        unread = {}
        np.testing.assert_allclose(ask(paths, unread=unread), whole[rest], atol=1e-6)
        assert unread.keys() == broken.keys()
        assert all(broken[place] in reason and f"{place}.png" in reason for place, reason in unread.items())
    assert (model.predict(paths, unread={}) == model.classes_[whole[rest].argmax(1)]).all()
    with pytest.raises(PromptPrismError, match=r"3\.png' is truncated"):
        model.predict(paths)
    with pytest.raises(PromptPrismError, match=r"none of 2 images can be read: .*32\.png.*39\.png"):
        model.predict([paths[32], paths[39]], unread={})


def test_an_adapter_has_the_rights_that_the_user_gives_to_files(tiny, tmp_path):
    before = os.umask(0o027)
    try:
        path = fitted(tiny).save(tmp_path / "adapter")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path, path / CARD)] == [0o750, 0o640]


def test_leftovers_of_a_killed_save_are_taken_away_and_a_dangling_link_is_said(tiny, tmp_path):
    gone = tmp_path / ".adapter.999999999.partial"
    gone.mkdir()
    (gone / CARD).write_text("{ha")
    model = fitted(tiny)
    model.save(tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PromptPrismError, match="link' exists"):
        model.save(tmp_path / "link")
