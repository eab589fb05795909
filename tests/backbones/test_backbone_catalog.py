import json
import re
from pathlib import Path

import open_clip
import pytest
from typer.testing import CliRunner

from promptprism.backbones import sized_backbone
from promptprism.backbones.catalog import CATALOG, describe, entries
from promptprism.backbones.loading import SHIPPED
from promptprism.cli import app
from promptprism.errors import PromptPrismError

DOCS = Path(__file__).parents[2] / "docs"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["backbones", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_all_of_open_clips_names_can_be_used():
    found = {entry.name: entry for entry in entries()}
    assert found.keys() == {*SHIPPED, *open_clip.list_models()}
    assert found.keys() == json.loads(CATALOG.read_text()).keys()
    assert sum(entry.vision_prompts for entry in found.values()) == 118
    assert found["ViT-B-16"].parameters == 149_620_737 and "openai" in found["ViT-B-16"].tags
    assert found["ViT-B-16-SigLIP"].context_length == 64 and not found["ViT-B-16-SigLIP"].causal
    assert found["roberta-ViT-B-32"].needs == "transformers" and not found["RN50"].vision_prompts


@pytest.mark.parametrize(
    "name", [*SHIPPED, "ViT-B-16", "RN50", "ViT-B-16-SigLIP2", "PE-Core-T-16-384", "coca_ViT-B-32"]
)
def test_the_catalog_is_what_the_models_are(name):
    (known,) = [entry for entry in entries(name) if entry.name == name]
    assert describe(name) == known


@pytest.mark.parametrize("name", SHIPPED)
def test_sizes_are_those_of_the_loaded_backbone(name):
    (known,) = entries(name)
    mini = sized_backbone(name)
    assert (mini.image_size, mini.vision.tokens, mini.context_length) == (
        known.image_size,
        known.image_tokens,
        known.context_length,
    )
    assert sum(value.numel() for value in mini.parameters()) == known.parameters


def test_command():
    content = json.loads(run("--like", "VITAMIN-s", "--json", "-").stdout)
    names = [row["name"] for row in content["backbones"]]
    assert names == ["ViTamin-S", "ViTamin-S-LTT"]
    section = (DOCS / "reference/cli-json.md").read_text().partition("## backbones")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert list(content["backbones"][0]) == documented[1:] and documented[0] == "backbones"
    shown = run("--like", "RN50x4").output
    assert "RN50x4" in shown and "text" in shown and "openai" in shown
    assert "shipped" in run("--like", "mini").output


@pytest.mark.parametrize(("word", "near"), [("vit_b_16", "ViT-B-16"), ("siglp2", "SigLIP2")])
def test_case_and_dashes_do_not_matter_and_near_names_are_shown(word, near):
    try:
        assert near in [entry.name for entry in entries(word)]
    except PromptPrismError as error:
        assert f"No backbone's name has '{word}' in it." in str(error) and near in str(error)


def test_the_table_in_the_documentation_is_the_catalogs():
    text = (DOCS / "how-to/backbones.md").read_text()
    rows = re.findall(
        r"^\| `([^`]+)` \| ([\d,]+) \| (\d+) \| (\d+|–) \| (\d+) \| (.+?) \|", text, re.MULTILINE
    )
    found = {entry.name: entry for entry in entries()}
    assert len(rows) >= 12
    for name, millions, pixels, tokens, context, prompts in rows:
        entry = found[name]
        assert millions == f"{entry.parameters / 1e6:,.0f}" and int(pixels) == entry.image_size
        assert tokens == str(entry.image_tokens or "–") and int(context) == entry.context_length
        assert prompts == ("text, image" if entry.vision_prompts else "text")
