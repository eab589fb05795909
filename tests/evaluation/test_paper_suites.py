"""The paper's suites end to end, with a random model of ViT-B/16's shape that has 2 layers, on miniatures."""

import dataclasses

import open_clip
import pytest
import torch
from miniatures import miniature
from toys import quick as less_training

from promptprism.backbones import Backbone
from promptprism.data import registry
from promptprism.data.catalog import CATALOG
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import load_suite
from promptprism.reports.report import make_table

BASE_TO_NEW = [
    "paper/base-to-new", "paper/ablation", "paper/augmentation", "paper/templates", "paper/per-semantic"
]  # fmt: skip


@pytest.fixture(scope="module")
def shallow():
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = 2
    config["vision_cfg"]["image_size"] = 48  # a twentieth of the tokens; the widths are what settings meet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    return Backbone(model, open_clip.get_tokenizer("ViT-B-16"), name="ViT-B-16", pretrained="openai")


def quick(name, rows=(), **changes):
    """The suite with one epoch and two layers of prompts; else as it is."""
    suite = load_suite(name)
    methods = {}
    for row, given in suite.methods.items():
        less = less_training(given.get("method", row), epochs=1)
        methods[row] = given | less | ({"depth": 2} if "depth" in given else {})
    changes |= {"methods": methods, "per_data": {}, "allow_fewer": True}
    return suite.model_copy(update=changes).only(methods=rows, seeds=[1])


@pytest.mark.slow
def test_base_to_new_and_few_shot(shallow, tmp_path):
    miniature(tmp_path, "eurosat")
    suite = quick("paper/base-to-new", datasets=("eurosat",))
    outcome = run_suite(suite, tmp_path / "R", shallow, root=tmp_path)
    assert not outcome.failures and [result.cell.method for result in outcome.results] == list(suite.methods)
    assert {result.phrase for result in outcome.results} == {"a centered satellite photo of {}."}
    trainable = {result.cell.method: result.training.trainable for result in outcome.results}
    one = 2 * (512 * 768 + 768) + 2 * 2 * 512
    apart = 2 * 4 * (768 + 512)
    assert trainable == {
        "zero-shot": 0, "coop": 2048, "cocoop": 35360, "maple": one, "cdc": 4 * one, "tip-adapter": 0,
        "linear-probe": 5 * 513, "tip-adapter-f": outcome.results[1].training.images * 512, "kgcoop": 2048,
        "prograd": 16 * 512, "vpt": 2 * 4 * 768, "ivlp": apart, "promptsrc": apart,
        "mmrl": 5 * 512 + 513 * (512 + 768) + 768 * 512, "clip-lora": 2 * 3 * 2 * 2 * (512 + 768),
    }  # fmt: skip
    assert all(
        result.images["new"].keys() == {f"class {i}" for i in range(5, 10)} for result in outcome.results
    )
    table = make_table(outcome.results, "base-to-new", suite)
    assert any("published" in str(row[1]) for row in table.rows)  # the backbone says that it is theirs
    few = run_suite(
        quick("paper/few-shot", ["coop"], datasets=("eurosat",), shots=(1, 2)), tmp_path / "R", shallow,
        root=tmp_path,
    )  # fmt: skip
    assert not few.failures and [result.training.images for result in few.results] == [10, 20]
    assert few.results[0].cell.settings.context_length == 16


@pytest.mark.parametrize("name", BASE_TO_NEW[1:])
def test_every_row_of_the_other_tables_can_be_built(name):
    """What their rows do is tested with the methods; here, that each is what its name says."""
    rows = {
        row: {"method": cell.method, **cell.settings.model_dump()} for row, cell in load_suite(name).grid()
    }
    assert all(settings["epochs"] == 5 and settings["lr"] == 0.0035 for settings in rows.values())
    if name == "paper/ablation":
        templates, vsd, dstc, cdc = (rows[row] for row in ("templates", "vsd", "dstc", "cdc"))
        assert rows["maple"]["method"] == "maple" and templates["head"] == vsd["head"] == "softmax"
        assert templates["views"] == dstc["views"] == "maple" and vsd["views"] == cdc["views"] == "set1"
        assert dstc["fusion"] == cdc["fusion"] == "dempster"
        assert templates["diversity_weight"] == dstc["consistency_weight"] == 0 < vsd["diversity_weight"]
    elif name == "paper/templates":
        assert [settings["templates"] for settings in rows.values()] == [1, 2, 4, 6, 8]
    elif name == "paper/augmentation":
        assert [settings["views"] for settings in rows.values()] == ["maple", "set1", "set2"]
    else:
        cells, others = (list(load_suite(other).cells()) for other in (name, "paper/base-to-new"))
        assert all(cell in others for cell in cells) and len(cells) == 33


@pytest.mark.slow
def test_from_imagenet_to_its_shifts(shallow, tmp_path, monkeypatch, imagenets):
    for name, entry in CATALOG.items():
        if name.startswith("imagenet"):
            small = dataclasses.replace(entry, classes=2 if name[-2:] in ("_a", "_r") else 4)
            monkeypatch.setitem(CATALOG, name, small)
    registry.registered.cache_clear()
    try:
        outcome = run_suite(
            quick("paper/cross-domain", ["maple", "cdc"]), tmp_path / "R", shallow, root=imagenets
        )
    finally:
        monkeypatch.undo()
        registry.registered.cache_clear()
    assert not outcome.failures
    for result in outcome.results:
        sizes = {part: scores.classes for part, scores in result.scores.items()}
        assert sizes == {"source": 4, "imagenetv2": 4, "imagenet_sketch": 4, "imagenet_a": 2, "imagenet_r": 2}
        assert result.cell.settings.lr == 0.0026
