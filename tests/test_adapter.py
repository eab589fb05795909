import json

import pytest
import safetensors.torch
import torch
from toys import colours, quick
from typer.testing import CliRunner

from promptprism import PromptPrism, load_model
from promptprism.adapter import CARD, TENSORS, read_card
from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.methods import METHODS

DATA = colours()
pytestmark = [
    pytest.mark.filterwarnings("ignore:the run collapsed"),
    pytest.mark.filterwarnings("ignore:.* has no validation images"),
]


def fitted(backbone, name="maple", **settings):
    return PromptPrism(name, backbone, **quick(name, epochs=1, batch_size=8), **settings).fit(DATA)


def edit(adapter, **changes):
    """Change a card on purpose: without its checksum, and so without that of the tensors."""
    card = json.loads((adapter / CARD).read_text()) | changes
    del card["checksum"], card["tensors"]
    (adapter / CARD).write_text(json.dumps(card))


@pytest.fixture
def adapter(tiny, tmp_path):
    return fitted(tiny).save(tmp_path / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_an_adapter_holds_what_was_learned_and_nothing_else(tiny, tmp_path, name):
    model = fitted(tiny, name)
    path = model.save(tmp_path / "adapter")
    assert sorted(file.name for file in path.iterdir()) == [TENSORS, CARD]
    tensors = safetensors.torch.load_file(path / TENSORS)
    learned = model.method_.state_dict()
    assert tensors.keys() == learned.keys()
    assert all(torch.equal(tensors[key], learned[key]) for key in learned)
    loaded = load_model(path, backbone=tiny)
    source = DATA.test[0].source
    assert (loaded.predict_proba(source) == model.predict_proba(source)).all()
    assert loaded.method_.name == name


def test_the_card_tells_all_the_rest(tiny, adapter):
    card = read_card(adapter)
    assert (card.method, card.class_names, card.phrase) == ("maple", DATA.class_names, DATA.phrase)
    assert card.backbone.fingerprint == tiny.fingerprint and card.backbone.precision == "float32"
    assert card.data.images == dict.fromkeys(DATA.class_names, 4)
    assert card.settings["epochs"] == 1 and "torch" in card.training.cost.versions
    assert json.loads((adapter / CARD).read_text())["format"] == 1


def test_an_existing_folder_is_left_alone(tiny, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "precious").write_text("data")
    with pytest.raises(PromptPrismError, match="adapter' exists"):
        fitted(tiny).save(tmp_path / "adapter")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["precious"]


def test_a_place_that_cannot_be_written_is_named_and_left_clean(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptPrismError, match="cannot write"):
        fitted(tiny).save(tmp_path / "file" / "adapter")

    def full(*_):
        raise PromptPrismError("cannot write: no space")

    monkeypatch.setattr("promptprism.adapter.write_text", full)
    with pytest.raises(PromptPrismError, match="no space"):
        fitted(tiny).save(tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_adapter_is_said(tiny, tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.json").write_text("{}")
    for path, word in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "it has no card.json"),
        (tmp_path / "exported", "was made by export: give it to serve"),
    ):
        with pytest.raises(PromptPrismError, match=word):
            load_model(path, backbone=tiny)
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptPrismError, match="is a file"):
        load_model(tmp_path / "file", backbone=tiny)


@pytest.mark.slow
def test_another_backbone_is_refused(tiny_factory, adapter):
    other = tiny_factory(vision_cfg={"layers": 3})
    with pytest.raises(PromptPrismError, match=f"fingerprint.*{other.fingerprint}: the weights differ"):
        load_model(adapter, backbone=other)


def test_the_backbone_may_be_named(tiny, adapter, monkeypatch):
    asked = []
    monkeypatch.setattr("promptprism.adapter.load_backbone", lambda *a, **_: asked.append(a) or tiny)
    load_model(adapter)
    load_model(adapter, backbone="local-dir:here")
    assert asked == [("tiny", None), ("local-dir:here", None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pretrained"), [("local-dir:/etc", None), ("hf-hub:a/b", None), ("ViT-B-32", "/etc/passwd")]
)
def test_a_card_opens_nothing_that_its_reader_did_not_name(tiny, adapter, monkeypatch, name, pretrained):
    card = json.loads((adapter / CARD).read_text())
    edit(adapter, backbone=card["backbone"] | {"name": name, "pretrained": pretrained})
    asked = []
    monkeypatch.setattr("promptprism.adapter.load_backbone", lambda *a, **_: asked.append(a) or tiny)
    with pytest.raises(
        PromptPrismError, match=f"names a backbone that you did not: {name}.*--trust-backbone"
    ):
        load_model(adapter)
    refused = CliRunner().invoke(app, ["predict", str(adapter), "x.png"])
    assert refused.exit_code == 2 and "--trust-backbone" in refused.stderr and not asked
    load_model(adapter, trust_backbone=True)
    load_model(adapter, backbone="mini")
    assert asked == [(name, pretrained), ("mini", None)]
    if pretrained:
        load_model(adapter, pretrained="mine.safetensors")
        assert asked[-1] == (name, "mine.safetensors")


@pytest.mark.slow
def test_the_precision_it_was_learned_in_does_not_bind(tiny_factory, adapter, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "promptprism.adapter.load_backbone", lambda *a, **k: asked.append(k) or tiny_factory()
    )
    load_model(adapter)
    assert load_model(adapter, precision="bfloat16").precision == "bfloat16"
    assert [one["precision"] for one in asked] == ["auto", "bfloat16"]


def test_a_device_that_is_not_there_is_no_matter_of_weights(adapter):
    with pytest.raises(PromptPrismError, match=r"^device 'tpu' cannot be used: (?!.*with these weights)"):
        load_model(adapter, device="tpu")


def test_weights_that_moved_are_asked_for(adapter):
    card = json.loads((adapter / CARD).read_text())
    del card["checksum"]
    card["backbone"] |= {"name": "ViT-B-32", "pretrained": "gone.safetensors"}
    (adapter / CARD).write_text(json.dumps(card))
    with pytest.raises(
        PromptPrismError, match=r"'gone\.safetensors'.*say where: pretrained=FILE or backbone="
    ):
        load_model(adapter, trust_backbone=True)
    card["backbone"] |= {"name": "local-dir:gone", "pretrained": None}
    (adapter / CARD).write_text(json.dumps(card))
    with pytest.raises(PromptPrismError, match=r"folder gone has no open_clip_config.json.*say where"):
        load_model(adapter, trust_backbone=True)
    with pytest.raises(PromptPrismError, match=r"folder away has no [^']*$"):
        load_model(adapter, backbone="local-dir:away")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 2}, "format 2, .*reads format 1"),
        ({"unknown": 1}, "'unknown' is unknown"),
        ({"method": None}, "method"),
        ({"class_names": ["a", "A"]}, "read the same"),
        ({"settings": {"epochs": 1, "wings": 2}}, "wings"),
        ({"settings": {"depth": 1}}, "need"),
        (
            {"method": "cdc", "settings": {"templates": 1, "coupled": False}},
            "unknown tensor 'learner.to_vision_bias'",
        ),
        ({"method": "cocoop", "settings": {}}, "tensor"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tiny, adapter, change, word):
    edit(adapter, **change)
    with pytest.raises(PromptPrismError, match=word):
        load_model(adapter, backbone=tiny)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"'])
def test_a_damaged_card_is_named(tiny, adapter, content):
    (adapter / CARD).write_text(content)
    with pytest.raises(PromptPrismError, match=r"card\.json"):
        load_model(adapter, backbone=tiny)


def test_damaged_tensors_are_named(tiny, adapter):
    edit(adapter)
    file = adapter / TENSORS
    tensors = safetensors.torch.load_file(file)
    whole = file.read_bytes()
    broken = {
        "cut short": whole[:-100],
        "no safetensors": b"PK\x03\x04 a pickle, perhaps",
        "lacks tensor": safetensors.torch.save({k: v for k, v in tensors.items() if "bias" not in k}),
        r"is \(3,\)": safetensors.torch.save(tensors | {"learner.context": torch.zeros(3)}),
        "float16": safetensors.torch.save({k: v.half() for k, v in tensors.items()}),
        "not finite": safetensors.torch.save({k: v * torch.nan for k, v in tensors.items()}),
    }
    for word, content in broken.items():
        file.write_bytes(content)
        with pytest.raises(PromptPrismError, match=word):
            load_model(adapter, backbone=tiny)
    file.unlink()
    with pytest.raises(PromptPrismError, match="no such file"):
        load_model(adapter, backbone=tiny)
