import json

import pytest
from toys import colours
from typer.testing import CliRunner

from promptprism import PromptPrism, load_data
from promptprism.adapter import read_card
from promptprism.cli import app
from promptprism.inference.doubt import doubt, evenly


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Zero-shot CLIP for MiniWorld's mammals, and answers about their validation images."""
    folder = tmp_path_factory.mktemp("adapters") / "mammals"
    PromptPrism("zero-shot", "mini", precision="float32").fit("mini/mammals").save(folder)
    return folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_onnx_export_of_the_command_line_says_what_it_made(adapter, tmp_path):
    made = run("export", adapter, "--onnx", tmp_path / "model", "--json", "-")
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found["schema"] == "promptprism/export" and found["difference"] < 1e-4
    assert found["adapter"] == read_card(adapter).checksum and len(found["reference"]["probability"]) == 256
    assert not found["int8"]
    twice = run("export", adapter, "--onnx", tmp_path / "model")
    assert twice.exit_code == 2 and "exists: choose another folder" in twice.stderr
    check = run("export", adapter, "--onnx", tmp_path / "other", "--check", "mini/mammals")
    assert check.exit_code == 2 and "add --int8" in check.stderr


@pytest.mark.slow
def test_drift_finds_the_shifts_of_mini_world_and_not_its_test_images(tmp_path):
    model = PromptPrism("zero-shot", "mini", precision="float32").fit("mini/general")
    model.save(tmp_path / "general")
    reference = read_card(tmp_path / "general").reference

    def shift(name):
        photos = evenly([record.source for record in load_data(name).test], 120)
        return reference.shift(*doubt(model.classifier_, photos))

    assert not shift("mini/general")["shifted"]
    for name in ("sketch", "adversarial", "rendition"):
        found = shift(f"mini/general-{name}")
        assert found["shifted"] and found["scores"]["probability"]["effect"] < -0.3


def test_drift_asks_for_photos_to_compare_with_if_the_card_has_none(tiny, tmp_path):
    PromptPrism("zero-shot", tiny).fit(colours(train=3)).save(tmp_path / "adapter")
    alone = run("drift", tmp_path / "adapter", tmp_path)
    assert alone.exit_code == 2 and "--reference DATA" in alone.stderr
    (tmp_path / "empty").mkdir()
    empty = run("drift", tmp_path / "adapter", tmp_path, "--reference", tmp_path / "empty")
    assert empty.exit_code == 2 and "holds no images" in empty.stderr
