import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from toys import colours, picture, quick

from promptprism import PromptPrism
from promptprism.adapter import Card, read_card
from promptprism.errors import PromptPrismError
from promptprism.export import export_onnx
from promptprism.inference.outputs import Outputs
from promptprism.runtime import Runtime

pytestmark = [
    pytest.mark.filterwarnings("ignore:the run collapsed"),  # random weights see little
    pytest.mark.filterwarnings("ignore:.*has no validation images"),
    pytest.mark.filterwarnings("ignore:products in float32"),
]
METHODS = (
    "cdc",
    "maple",
    "coop",
    "zero-shot",
    "linear-probe",
    "ivlp",
    "mmrl",
    "clip-lora",
    "tip-adapter",
    "vpt",
    ("cdc", "lora"),
    ("cdc", "mmrl"),
)
SRC = Path(__file__).parents[1] / "src"


def fitted(backbone, method="cdc", **settings):
    return PromptPrism(method, backbone, **quick(method, epochs=1), **settings).fit(colours())


def export(model, folder, **options):
    card = Card.of(model.trained_, model.classifier_.space, model.data_)
    return export_onnx(model.classifier_, folder, card, **options)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A model, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    model = fitted(tiny)
    export(model, folder)
    return model, folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_onnx_gives_what_torch_gives_for_batches_of_any_size(tiny, tmp_path, method):
    method, *learner = [method] if isinstance(method, str) else method
    model = fitted(tiny, method, **dict.fromkeys(["learner"][: len(learner)], *learner))
    export(model, tmp_path / "model")
    runtime, module = Runtime(tmp_path / "model"), Outputs(model.classifier_)
    for count in (1, 3, 32):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        with torch.no_grad():
            ours = module(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        theirs = [part for part in runtime.run(pixels) if part is not None]
        assert len(ours) == len(theirs) == (7 if method == "cdc" else 2)
        for mine, other in zip(ours, theirs, strict=True):
            assert np.allclose(mine.numpy(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_onnx_of_the_model_for_photos(tmp_path):
    # Its stem takes some images at a time, which the graph must not do by the number that was traced.
    model = PromptPrism("zero-shot", "photo", precision="float32", device="cpu").fit(colours())
    assert export(model, tmp_path / "model")["difference"] < 1e-4
    sources = [record.source for record in colours().test[:7]]
    rows = Runtime(tmp_path / "model").predict(sources)
    assert [row["class"] for row in rows] == list(model.predict(sources))


@pytest.mark.slow
def test_onnx_answers_are_those_of_the_estimator_for_files_of_all_kinds(exported, tmp_path):
    model, folder = exported
    images = []
    for number, (mode, size, suffix) in enumerate(
        [
            ("RGB", (70, 50), "jpg"),
            ("L", (31, 400), "png"),
            ("RGBA", (32, 32), "png"),
            ("P", (900, 700), "gif"),
        ]
    ):
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(picture("green", number)).resize(size).convert(mode).save(path)
        images.append(path)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture("red", 7)).resize((300, 200)).save(tmp_path / "turned.jpg", exif=turned)
    images.append(tmp_path / "turned.jpg")
    ours, fused = model.predict_proba(images), model.opinions(images).fused
    for i, row in enumerate(Runtime(folder).predict(images)):
        assert row["class"] == model.classes_[ours[i].argmax()]
        assert row["probability"] == pytest.approx(ours[i].max(), abs=1e-4)
        assert row["uncertainty"] == pytest.approx(fused.uncertainty[i].item(), abs=1e-4)
        assert row["belief"] == pytest.approx(fused.belief[i].max().item(), abs=1e-4)


@pytest.mark.slow
def test_onnx_graph_says_what_it_is(exported):
    model, folder = exported
    facts = json.loads((folder / "model.json").read_text())
    assert facts["format"] == 1 and facts["method"] == "cdc" and facts["difference"] < 1e-4
    assert facts["class_names"] == list(model.classes_)
    assert facts["preprocessing"]["size"] == 32 and facts["preprocessing"]["interpolation"] == "bicubic"
    assert facts["preprocessing"]["mean"] == pytest.approx(model.backbone_.mean)
    graph = onnx.load(folder / "model.onnx")
    told = {prop.key: json.loads(prop.value) for prop in graph.metadata_props}
    assert told == {name: value for name, value in facts.items() if name != "graph"}
    axes = [axis.dim_param or axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, 32, 32]
    assert [output.name for output in graph.graph.output] == list(facts["outputs"])


@pytest.mark.slow
def test_onnx_with_8_bits_says_what_it_costs(tiny, tmp_path):
    model, check = fitted(tiny), colours(test=8)
    told = dataclasses.replace(check, class_names=tuple(name.upper() for name in check.class_names))
    cost = export(model, tmp_path / "model", int8=True, check=told)["int8"]
    assert cost["images"] == 32 and cost["data"] == "colours"
    assert 0.9 <= cost["agreement"] <= 1 and 0 < cost["largest_difference"] < 0.1
    assert abs(cost["accuracy"] - cost["accuracy_float32"]) <= 1 - cost["agreement"]
    assert cost["accuracy_float32"] == pytest.approx(model.score(check))
    others = dataclasses.replace(check, class_names=("red", "green", "blue", "cat"))
    with pytest.raises(PromptPrismError, match="1 classes that the model does not know, first: 'cat'"):
        export(model, tmp_path / "other", int8=True, check=others)


@pytest.mark.slow
def test_onnx_export_refuses_what_cannot_be(tiny, tiny_factory, tmp_path):
    with pytest.raises(PromptPrismError, match="method 'cocoop' cannot be exported: it makes the texts"):
        export(fitted(tiny, "cocoop"), tmp_path / "model")
    with pytest.raises(PromptPrismError, match="precision='float32'"):
        export(PromptPrism("zero-shot", tiny_factory("bfloat16")).fit(colours()), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(PromptPrismError, match="exists: choose another folder"):
        export(fitted(tiny, "zero-shot"), tmp_path / "there")


@pytest.mark.slow
def test_onnx_export_names_the_part_that_has_no_counterpart(tiny_factory, tmp_path, monkeypatch):
    backbone = tiny_factory()
    model = PromptPrism("zero-shot", backbone).fit(colours())
    stem = type(backbone.vision).stem
    monkeypatch.setattr(
        type(backbone.vision), "stem", lambda self, images: torch.special.bessel_j0(stem(self, images))
    )
    with pytest.raises(
        PromptPrismError, match=r"the image tower of backbone 'tiny' cannot be exported.*bessel"
    ):
        export(model, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda facts: facts | {"format": 2},
            "has format 2, this promptprism .* reads format 1: export it again",
        ),
        (lambda facts: facts | {"graph": "0" * 64}, "its SHA-256 is another"),
        (lambda facts: {"format": 1}, "is damaged"),
        (lambda facts: [], "is damaged"),
    ],
)
def test_onnx_runtime_refuses_another_format_and_damage(exported, tmp_path, change, told):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((exported[1] / "model.onnx").read_bytes())
    facts = json.loads((exported[1] / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(change(facts)))
    with pytest.raises(PromptPrismError, match=told):
        Runtime(folder)
    with pytest.raises(PromptPrismError, match=r"is no exported model, it has no model\.json"):
        Runtime(tmp_path)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "torch torchvision open_clip timm safetensors pydantic rich".split():
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Block())
from promptprism.runtime import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_onnx_runtime_needs_no_torch(exported, tmp_path):
    model, folder = exported
    Image.fromarray(picture("green", 1)).save(tmp_path / "green.png")
    (tmp_path / "bad.jpg").write_text("no image")
    images = [str(tmp_path / "green.png"), str(tmp_path / "bad.jpg")]
    made = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder), *images, "--json", "--templates"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )
    assert made.returncode == 1, made.stderr  # one cannot be read
    answer = json.loads(made.stdout)
    assert answer["schema"] == "promptprism/predict"
    (row,), (unread,) = answer["predictions"], answer["unread"]
    assert row["class"] == model.predict(images[:1])[0] and len(row["templates"]) == 4
    assert unread["image"] == images[1] and "is not an image" in unread["reason"]


@pytest.mark.slow
def test_a_card_keeps_answers_about_photos_that_were_not_learned_from(tiny, tmp_path):
    data = colours(train=12)
    PromptPrism("zero-shot", tiny).fit(data).save(tmp_path / "zero-shot")
    reference = read_card(tmp_path / "zero-shot").reference
    assert reference is not None and len(reference.probability) == 48 and reference.uncertainty is None
    model = PromptPrism("cdc", tiny, epochs=1, shots=2).fit(data)
    model.save(tmp_path / "cdc")
    reference = read_card(tmp_path / "cdc").reference
    assert reference.photos == "training photos that were not drawn" and len(reference.uncertainty) == 40
    shift = reference.shift(model.predict_proba([r.source for r in data.train]).max(-1), None)
    assert not shift["shifted"]
    PromptPrism("cdc", tiny, epochs=1).fit(data).save(tmp_path / "all")
    assert read_card(tmp_path / "all").reference is None


def test_onnx_image_of_docker_installs_what_the_extras_ask_for():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    serve = project["optional-dependencies"]["serve"]
    asked = {*project["dependencies"], *project["optional-dependencies"]["onnx"], *serve}
    installed = set(re.findall(r'"([\w-]+>=[\d.]+)"', (root / "docker/Dockerfile").read_text()))
    assert installed <= asked and set(serve) <= installed and "onnxruntime>=1.19" in installed
