import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from toys import colours, picture

from promptprism import PromptPrism
from promptprism.adapter import read_card
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.export import export_onnx
from promptprism.runtime import Runtime
from promptprism.serving.engine import OnnxEngine, TorchEngine

SRC = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")


@pytest.fixture(scope="module")
def model(tiny):
    return PromptPrism("cdc", tiny, epochs=1).fit(colours())


def squares(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.slow
def test_serve_in_torch_answers_as_the_estimator_does_for_any_classes(model, monkeypatch):
    engine, pixels = TorchEngine(model), squares()
    assert np.allclose(engine.answer(pixels).probability, model.predict_proba([*pixels]), atol=1e-5)
    names = ("lemon", "owl", "red fox")
    assert engine.prepare(names) == names
    expected = model.with_classes(names).predict_proba([*pixels])
    assert np.allclose(engine.answer(pixels, names).probability, expected, atol=1e-5)
    beside = (engine.classes[0], "owl")
    monkeypatch.setattr(model.backbone_, "few_names", True)
    assert engine.caveat(beside) == model.trained_.caveat(LabelSpace(beside)) is not None
    assert engine.caveat(names) is None and engine.caveat(None) is None


@pytest.mark.slow
def test_serve_keeps_texts_of_few_label_spaces_and_refuses_bad_names(model):
    engine = TorchEngine(model)
    for number in range(12):
        engine.prepare((f"class {number}", "owl"))
    assert len(engine._others) == 8 and ("class 11", "owl") in engine._others
    with pytest.raises(PromptPrismError):
        engine.prepare(("owl", "owl"))


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        heavy = "torch torchvision torchmetrics open_clip timm safetensors huggingface_hub matplotlib yaml"
        if name.partition(".")[0] in heavy.split():
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Block())
from promptprism.cli import app
app(["serve", sys.argv[1], "--port", "0"])
"""


@pytest.mark.slow
def test_serve_of_an_exported_folder_needs_no_torch(model, tmp_path):
    model.save(tmp_path / "adapter")
    export_onnx(model.classifier_, tmp_path / "onnx", read_card(tmp_path / "adapter"))
    server = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "onnx")],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )
    try:
        place = re.search(r"http://[\d.]+:\d+", server.stderr.readline())[0]
        Image.fromarray(picture("green", 1)).save(tmp_path / "green.png")
        sent = [("images", ("green.png", (tmp_path / "green.png").read_bytes()))]
        (row,) = httpx.post(f"{place}/predict", files=sent, timeout=60).json()["predictions"]
        assert row["class"] == model.predict([tmp_path / "green.png"])[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()


@pytest.mark.slow
def test_serve_as_a_process_answers_16_clients_and_stops_when_all_is_answered(tmp_path):
    PromptPrism("zero-shot", "mini", precision="float32").fit("mini/mammals").save(tmp_path / "adapter")
    from promptprism import load_model

    model = load_model(tmp_path / "adapter", precision="float32", device="cpu")
    export_onnx(model.classifier_, tmp_path / "onnx", read_card(tmp_path / "adapter"))
    with pytest.raises(PromptPrismError, match="the classes that it was exported with"):
        OnnxEngine(Runtime(tmp_path / "onnx")).prepare(("owl", "lemon"))
    images = []
    for number in range(8):
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(picture("green", number)).save(images[-1])
    expected = [row["probability"] for row in Runtime(tmp_path / "onnx").predict(images)]
    server = subprocess.Popen(
        [sys.executable, "-m", "promptprism", "serve", str(tmp_path / "onnx"), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )
    try:
        place = re.search(r"http://[\d.]+:\d+", server.stderr.readline())[0]
        assert place.startswith("http://127.0.0.1:")

        def client(number):
            found = []
            with httpx.Client(base_url=place, timeout=60) as connection:
                for turn in range(4):
                    which = (number + turn) % 8
                    sent = [("images", (images[which].name, images[which].read_bytes()))]
                    found.append((which, connection.post("/predict", files=sent).json()["predictions"][0]))
            return found

        with ThreadPoolExecutor(16) as pool:
            answers = [one for part in pool.map(client, range(16)) for one in part]
        assert len(answers) == 64
        for which, row in answers:
            assert row["probability"] == pytest.approx(expected[which], abs=1e-4)
        with ThreadPoolExecutor(16) as pool:
            last = [pool.submit(client, number) for number in range(16)]
            while httpx.get(f"{place}/health").json()["waiting"] == 0 and not all(one.done() for one in last):
                time.sleep(0.001)
            server.send_signal(signal.SIGTERM)
            for one in last:  # a request that was accepted has its answer; later ones find nobody
                try:
                    assert all(row["class"] for _, row in one.result())
                except httpx.TransportError as error:
                    assert not isinstance(error, httpx.ReadTimeout)
        assert server.wait(30) == 0
    finally:
        server.kill()
