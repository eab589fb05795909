import json

import huggingface_hub
import open_clip
import pytest
import torch
from typer.testing import CliRunner

import promptprism.evaluation.estimate as estimate
from promptprism.backbones import sized_backbone
from promptprism.cli import app
from promptprism.cost.arithmetic import image_flops, text_flops
from promptprism.data.names import LabelSpace
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError
from promptprism.evaluation.estimate import estimate_suite, measure_gigaflops
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import Suite, load_suite
from promptprism.methods import Cdc, CdcSettings


def of(methods, datasets=("mini/food",), **fields):
    content = {
        "name": "s",
        "protocol": "base-to-new",
        "methods": methods,
        "datasets": datasets,
        "seeds": [1, 2],
    }
    return Suite.model_validate(content | fields)


@pytest.fixture
def sized(tiny, monkeypatch):
    monkeypatch.setattr(estimate, "sized_backbone", lambda *_: tiny)
    return tiny


@pytest.mark.slow
def test_vit_b_16_has_the_sizes_that_papers_print():
    backbone = sized_backbone("ViT-B-16", "openai")
    assert image_flops(backbone) == pytest.approx(35.5e9, rel=0.02)
    assert sum(p.numel() for p in backbone.model.parameters()) == 149_620_737
    method = Cdc(backbone)
    assert sum(p.numel() for p in method.parameters()) == 14_220_288


@pytest.mark.slow
def test_learned_numbers_and_steps_are_those_of_a_run(sized, tmp_path):
    suite = of({"cdc": {"epochs": 2, "templates": 2}, "zero-shot": {}}, shots=[1], seeds=[1])
    found = {one.row: one for one in estimate_suite(suite, gigaflops=100).cells}
    result = run_suite(suite.only(methods=["cdc"]), tmp_path, sized).results[0].training
    cdc, plain = found["cdc"], found["zero-shot"]
    assert (cdc.trainable, cdc.images, cdc.steps) == (result.trainable, result.images, result.steps)
    assert (plain.trainable, plain.steps, plain.train_flops) == (0, 0, 0) and plain.test_flops > 0
    assert cdc.hours == pytest.approx((cdc.train_flops + cdc.test_flops) / 100e9 / 3600)


@pytest.mark.slow
def test_operations_follow_what_a_step_does(sized):
    rows = {
        "one": {"method": "cdc", "templates": 1, "class_offsets": False},
        "four": {"method": "cdc", "templates": 4, "class_offsets": False},
        "coop": {"epochs": 5},
        "cocoop": {"epochs": 5, "batch_size": 1},
    }  # fmt: skip
    found = {one.row: one for one in estimate_suite(of(rows, shots=[4]), gigaflops=1).cells}
    assert found["four"].train_flops == pytest.approx(4 * found["one"].train_flops)
    assert found["coop"].train_flops > found["coop"].steps * 16 * image_flops(sized)
    tokens = Cdc(sized, CdcSettings(templates=1)).texts(LabelSpace(("cat", "dog"))).tokens
    step = 2 * (4 * image_flops(sized, 2) + text_flops(sized, tokens, 2))
    names = estimate_suite(
        of({"cdc": {"templates": 1}}, datasets=["mini/food"], shots=[1]), gigaflops=1
    ).cells[0]
    assert names.train_flops / names.steps > step  # more classes
    assert found["four"].memory_mb > found["one"].memory_mb > 900


@pytest.mark.slow
def test_a_paper_suite_is_told_without_its_data(tmp_path, sized, monkeypatch):
    monkeypatch.setattr(estimate, "measure_gigaflops", lambda *_: 50.0)
    suite = load_suite("paper/cross-domain")
    shallow = {
        row: given | {"depth": 2} if "depth" in given else given for row, given in suite.methods.items()
    }
    suite = suite.model_copy(update={"methods": shallow}).only(methods=["zero-shot", "cdc"])
    found = estimate_suite(suite, tmp_path)
    assert {one.state for one in found.data} == {"missing"} and len(found.cells) == 4
    assert [(one.data, one.classes, one.test) for one in found.data][-2:] == [
        ("imagenet_a", 200, 7500), ("imagenet_r", 200, 30000)
    ]  # fmt: skip
    assert found.cells[0].trainable == 0 and found.cells[-1].images == 16000


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "measure_gigaflops", lambda *_: 50.0)
    args = ["suite", "paper/base-to-new", "--root", str(tmp_path), "--dry-run"]
    few = [*args, "--methods", "coop,cdc", "--datasets", "dtd,eurosat"]
    dry = CliRunner().invoke(app, few)
    assert dry.exit_code == 0, dry.output
    assert "12 cells" in dry.stdout and "✗ dtd missing: no folder" in dry.stdout
    assert "14,220,288" in dry.stdout and "50 GFLOP/s in float32 (measured on this cpu)" in dry.stdout
    some = [*few, "--methods", "cdc", "--datasets", "dtd", "--gigaflops", "1000", "--json", "-"]
    content = json.loads(CliRunner().invoke(app, some).stdout)
    assert content["gigaflops_per_second"] == 1000 and len(content["cells"]) == 3
    assert content["cells"][0]["trainable"] == 14_220_288 and content["data"][0]["state"] == "missing"
    assert content["hours"] == pytest.approx(sum(cell["hours"] for cell in content["cells"]))


def test_the_command_refuses(tmp_path, monkeypatch):
    args = ["suite", "photos/base-to-new", "--dry-run", "--root", str(tmp_path)]
    refused = CliRunner().invoke(app, [*args, "--device", "foo"])
    assert refused.exit_code == 2 and "device 'foo' cannot be used" in refused.stderr

    def offline(_name):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(open_clip, "get_model_config", offline)
    with pytest.raises(
        PromptPrismError, match=r"sizes of backbone 'hf-hub:a/b' are not to be had \(no network"
    ):
        sized_backbone("hf-hub:a/b")


@pytest.mark.slow
def test_no_hub_is_asked(tmp_path, monkeypatch):
    asked = []

    def load(name, _):
        asked.append((name, huggingface_hub.constants.HF_HUB_OFFLINE))
        return load_data("mini/food")

    monkeypatch.setattr(estimate, "load_data", load)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    estimate_suite(of({"zero-shot": {}}, ("hf:owner/name",)), gigaflops=50)
    assert asked == [("hf:owner/name", True)] and not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.slow
def test_rates_are_measured():
    assert torch.isfinite(torch.tensor(measure_gigaflops("float32", seconds=0.05)))
    assert measure_gigaflops("bfloat16", seconds=0.05) > 0
