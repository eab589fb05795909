import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from typer.testing import CliRunner

from promptprism import backbones
from promptprism.backbones import loading
from promptprism.cli import app
from promptprism.cost import speed
from promptprism.cost.arithmetic import image_flops, text_flops
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods import Cdc, CdcSettings

pytestmark = pytest.mark.slow

DOCUMENTED = Path(__file__).parents[2] / "docs" / "reference" / "cli-json.md"
QUICK = ["--classes", "6", "--templates", "2,1", "--batch", "2", "--predict-batch", "3", "--seconds", "0"]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["benchmark", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def documented(table):
    section = DOCUMENTED.read_text().split("\n## benchmark\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section.split("|---|---|\n")[table + 1], re.MULTILINE))


@pytest.fixture(autouse=True)
def backbone(tiny, monkeypatch):
    monkeypatch.setattr(backbones, "load_backbone", lambda *_, **__: tiny)


def test_rows_are_the_arithmetic_and_the_measurement(tiny):
    zero, one, two = speed.measure(
        tiny,
        6,
        [2, 1],
        CdcSettings(vision_from=1, class_offsets=False),
        batch=2,
        predict_batch=3,
        seconds=0,
        repeats=2,
    )
    assert [row.templates for row in (zero, one, two)] == [0, 1, 2]
    assert (zero.trainable, zero.step_seconds, zero.step_gflops) == (0, None, None)
    assert two.trainable == 2 * one.trainable == 2 * (2 * 2 * 48 + 48 * 64 + 64)
    tokens = Cdc(tiny).texts(LabelSpace(speed.class_names(6))).tokens
    own, text = image_flops(tiny, 2, 1) / 1e9, text_flops(tiny, tokens, 2) / 1e9
    shared = (image_flops(tiny) - image_flops(tiny, 0, 1)) / 1e9  # no gradient goes back through it
    assert two.step_gflops == pytest.approx(2 * (2 * (shared + 2 * own) + 2 * text))
    assert two.image_gflops == pytest.approx(shared + 2 * own) and zero.image_gflops < shared + own
    assert one.steps_per_second == pytest.approx(1 / one.step_seconds)
    assert all(row.images_per_second > 0 < row.text_seconds and row.repeats == 2 for row in (zero, one, two))


def test_work_is_measured_in_rounds():
    order = []
    samples = speed.interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and len(samples["a"].seconds) == samples["b"].row()["repeats"] == 3
    samples["b"].measure_memory(lambda: torch.ones(30 * 2**18).sum())
    assert len(samples["b"].seconds) == 3 and 25 < samples["b"].memory_mb < 60


def test_rounds_go_on_for_the_seconds_asked():
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        speed.interleave({"a": work}, 1, seconds=1e9)


def test_command():
    content = json.loads(run(*QUICK, "--json", "-").stdout)
    assert content.keys() == documented(0) | {"schema", "schema_version", "promptprism"}
    assert [row["templates"] for row in content["rows"]] == [0, 1, 2]
    assert all(row.keys() == documented(1) for row in content["rows"])
    assert content["backbone"]["random"] is False and content["classes"] == 6
    output = run(*QUICK).output
    assert re.search(r"\n +0 +– +– ", output) and "Cached: " in output and "6 classes, 2 images" in output


def test_an_architecture_without_weights_is_drawn_at_random(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "random_backbone", lambda *arguments: asked.append(arguments) or tiny)
    result = run("--backbone", "ViT-B-16", "--device", "cpu", *QUICK)
    assert asked == [("ViT-B-16", "auto", "cpu")]
    assert "random weights: speed does not depend on them" in result.output


def test_random_backbone_is_always_the_same(tiny_factory, monkeypatch):
    made = []

    def create_model(name, **_):
        made.append(torch.rand(1).item())
        return tiny_factory().model

    monkeypatch.setattr(open_clip, "create_model", create_model)
    backbones = [loading.random_backbone("ViT-B-16", "float32") for _ in range(2)]
    assert made[0] == made[1] and backbones[0].fingerprint == backbones[1].fingerprint


def test_refusals():
    assert "templates '0' is no number from 1" in run("--templates", "1,0", code=2).stderr
    assert "vision_from=2 leaves no layer" in run(*QUICK, "--vision-from", "2", code=2).stderr
    with pytest.raises(PromptPrismError, match="10075 class names to measure with, not 20000"):
        speed.class_names(20_000)
