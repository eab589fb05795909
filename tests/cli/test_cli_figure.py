import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

import promptprism.backbones
from promptprism.backbones import load_backbone
from promptprism.causality import run_interventions
from promptprism.cli import app
from promptprism.data.miniworld import worlds
from promptprism.data.registry import registered
from promptprism.training import loop

SUITE = """
protocol: base-to-new
methods:
  zero-shot: {}
  cdc: {epochs: 2, templates: 2, depth: 2, batch_size: 28, lr: 0.001}
datasets: [mini/food]
shots: [1]
seeds: [5]
"""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    (folder / "suite.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promptprism.backbones, "load_backbone", lambda *_, **__: tiny)
        # A random CLIP is no better than chance, which else counts as collapsed.
        patch.setattr(loop, "_examine", lambda *_: (0.5, None))
        patch.setattr(worlds, "PER_CLASS", {"train": 2, "val": 2, "test": 4})
        forget()
        yield folder
    forget()


def forget():
    for kept in (worlds.load, registered, run_interventions._split):
        kept.cache_clear()


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["figure", *map(str, arguments)])
    assert result.exit_code == code, result.output + result.stderr
    return result


def common(folder, name):
    places = ["--out", folder / f"{name}.svg", "--results", folder / "results"]
    which = ["--data", "mini/clothing", "--methods", "zero-shot,cdc", "--seeds", "1"]
    return [*places, "--suite", folder / "suite.yaml", *which]


def texts(path):
    """Strings that matplotlib leaves as comments beside the outlines."""
    ElementTree.parse(path)
    return "\n".join(re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL))


@pytest.mark.slow
def test_task_misalignment(tmp_path, monkeypatch):
    monkeypatch.setattr(promptprism.backbones, "load_backbone", load_backbone)
    out = tmp_path / "a.svg"
    result = run("task-misalignment", "--out", out, "--data", "mini/food", "--scenes", 30, "--json", "-")
    content = json.loads(result.stdout)
    cosine = content["cosine"]["full"]
    assert content["scenes"] == 30 and cosine["quantiles"]["0"] < cosine["mean"] < cosine["quantiles"]["1"]
    assert f"{100 * content['full_is_closer']['object']:.1f} %" in texts(out)


@pytest.mark.slow
def test_data_misalignment(folder):
    arguments = ["data-misalignment", *common(folder, "b"), "--epochs", 1, "--json"]
    content = json.loads(run(*arguments, "-").stdout)
    rows = {(row["method"], row["epoch"]) for row in content["curves"]}
    assert rows == {("zero-shot", 0), ("cdc", 0), ("cdc", 1)}
    assert content["settings"]["cdc"]["epochs"] == 1 and not content["failures"]
    assert content["collapsed"] == []
    assert "base classes" in texts(folder / "b.svg")
    files = {file: file.stat().st_mtime_ns for file in (folder / "results" / "epochs").iterdir()}
    first = (folder / "b.svg").read_bytes()
    assert json.loads(run(*arguments, "-").stdout) == content
    assert {file: file.stat().st_mtime_ns for file in (folder / "results" / "epochs").iterdir()} == files
    assert (folder / "b.svg").read_bytes() == first


@pytest.mark.slow
def test_interventions(folder, monkeypatch):
    tables = folder / "c.md"
    arguments = ["interventions", *common(folder, "c"), "--rho", "0,0.9", "--scenes", 1, "--draws", 1]
    content = json.loads(run(*arguments, "--markdown", tables, "--json", "-").stdout)
    assert (content["cells"], content["rhos"], content["data"]) == (4, [0, 0.9], ["mini/clothing"])
    assert not content["failures"] and not content["collapsed"]
    who = [(row["method"], row["rho"], row["who"]) for row in content["predictions"]]
    assert who == [("zero-shot", 0, "fused"), ("zero-shot", 0.9, "fused")] + [
        ("cdc", rho, name) for rho in (0, 0.9) for name in ("fused", "S1", "S2")
    ]
    plain, confounded = content["predictions"][:2]
    # Nothing was learned, and the scenes are the same.
    assert {**plain, "rho": None} == {**confounded, "rho": None}
    assert all(
        0 <= row["colour flips"] <= 1 and row["pixel noise variation"] >= 0 for row in content["predictions"]
    )
    assert len(content["templates"]) == 2 * (1 + 2)
    assert [row["distance"] for row in content["front_door"] if row["way"] == "front-door"] == [0] * 4
    text = tables.read_text()
    assert "| cdc | 0.9 | front-door |" in text and "| cdc | S2 |" in text and "nan" not in text
    assert "do(colour)" in texts(folder / "c.svg")
    # Nothing is measured twice.
    monkeypatch.setattr(run_interventions, "intervene", lambda *_: pytest.fail("measured twice"))
    assert json.loads(run(*arguments, "--json", "-").stdout) == content
    assert run(*arguments).stdout.startswith(text)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--data", "mini/fod"], "cannot intervene on 'mini/fod': choose from mini/mammals"),
        (["--rho", "a"], "'a' are no numbers: write --rho"),
        (["--rho", "0,2"], "rho = 2 is no probability"),
        (["--seeds", "a"], "seed 'a' is no whole number"),
        (["--methods", "cdd"], "has no method 'cdd'"),
        (["--out", "x.bmp"], "cannot draw 'x.bmp'"),
    ],
)
def test_interventions_refuse(folder, arguments, says):
    refused = run("interventions", *common(folder, "d"), *arguments, code=2)
    assert re.match(rf"error: .*{says}", refused.stderr)
