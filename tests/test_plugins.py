"""Methods, backbones, data sets and rules of fusion of other packages, found by their entry points."""

import json
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from promptprism import load_backbone, load_data
from promptprism.backbones.catalog import entries as backbones
from promptprism.backbones.loading import SHIPPED
from promptprism.cli import app
from promptprism.data import registry
from promptprism.errors import PromptPrismError, PromptPrismWarning
from promptprism.evidence import FUSIONS, Opinion
from promptprism.methods import METHODS, make_settings

EXAMPLE = Path(__file__).parents[1] / "examples" / "own-method"
ADDED = '''
import torch
from dataclasses import replace
from promptprism.backbones.loading import SHIPPED
from promptprism.data.registry import Entry, load_data
from promptprism.evidence import Fusion
from promptprism.methods import Method


class Nameless(Method):
    """Its name is not that of its entry."""

    name = "other"


class Unnamed(Method):
    """Its settings forget the name."""

    class Settings(Method.Settings):
        pass


def small():
    return SHIPPED["mini"]()


def broken():
    raise FileNotFoundError("weights.pt")


def empty():
    return None


birds = Entry("birds", "food renamed", 8, {}, lambda _: replace(load_data("mini/food"), name="birds"))
nothing = Entry("nothing", "gives none", 8, {}, lambda _: None)
rootless = Entry("rootless", "takes no folder", 8, {}, lambda: None)
flat = Fusion(lambda opinions: opinions.weight.sum(0)[..., 0], "?", lambda one: one.weight, "?")
lowest = Fusion(lambda opinions: opinions.weight.amin(0), "log(1 + e/K)", lambda one: one.weight, "max")
'''


def package(folder, name, entries, **modules):
    """What pip would leave of a package in a folder of sys.path."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "\n".join(points) for group, points in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder for packages, and registries that look anew, before and after."""

    def forget():
        registry.registered.cache_clear()
        for kind in (METHODS, FUSIONS, SHIPPED):
            vars(kind).pop("added", None)

    forget()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("added_things", "broken_things", "taskres"):
        sys.modules.pop(module, None)
    forget()


def add_example(folder, monkeypatch):
    """The example's package, as if pip had installed it."""
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    entries = {group: [f"{name} = {value}" for name, value in of.items()] for group, of in points.items()}
    package(folder, "promptprism-taskres", entries)
    monkeypatch.syspath_prepend(EXAMPLE / "src")


def add(folder):
    entries = {
        "promptprism.datasets": ["birds = added_things:birds"],
        "promptprism.backbones": ["small = added_things:small"],
        "promptprism.fusion_rules": ["lowest = added_things:lowest"],
    }
    package(folder, "added", entries, added_things=ADDED)


@pytest.mark.slow
def test_plugin_of_data_backbone_and_fusion(installed):
    add(installed)
    data = load_data("birds")
    assert (data.name, data.class_names) == ("birds", load_data("mini/food").class_names)
    backbone, mini = load_backbone("small", device="cpu"), load_backbone("mini", device="cpu")
    assert (backbone.name, backbone.fingerprint) == ("small", mini.fingerprint)
    opinions = Opinion(torch.tensor([[[1.0, 3.0]], [[2.0, 0.0]]]))
    assert opinions.fuse("lowest").weight.tolist() == [[1.0, 0.0]]
    assert make_settings("cdc", fusion="lowest").fusion == "lowest"


def test_plugin_that_is_not_there_is_refused_by_name():
    with pytest.raises(PromptPrismError, match=r"Unknown method 'taskres': choose .* or install its package"):
        make_settings("taskres")
    with pytest.raises(PromptPrismError, match=r"fusion='lowest'.*choose one of dempster"):
        make_settings("cdc", fusion="lowest")


@pytest.mark.parametrize(
    ("entry", "module", "said"),
    [
        ("cdc = added_things:Nameless", ADDED, "'cdc' of package 'bad' .* its name is taken"),
        ("mine = added_things:Nameless", ADDED, "added_things:Nameless is not a Method whose name"),
        ("mine = added_things:Unnamed", ADDED, "added_things:Unnamed is not a Method whose name"),
        ("mine = added_things:birds", ADDED, "added_things:birds is not a Method"),
        ("mine = added_things:Gone", ADDED, "cannot be imported .AttributeError"),
        ("mine = broken_things:Method", "", "cannot be imported .ModuleNotFoundError: .*'gone'"),
    ],
)  # fmt: skip
def test_plugin_that_cannot_be_used_is_named_and_the_rest_works(installed, entry, module, said):
    own = tuple(METHODS.own)
    package(
        installed, "bad", {"promptprism.methods": [entry]}, added_things=module, broken_things="import gone"
    )
    with pytest.warns(PromptPrismWarning, match=said):
        assert tuple(METHODS) == own
    assert METHODS["cdc"].name == "cdc"


def test_plugins_that_fail_when_they_are_used_are_named(installed):
    entries = {
        "promptprism.datasets": ["nothing = added_things:nothing", "rootless = added_things:rootless"],
        "promptprism.backbones": [
            *("broken = added_things:broken", "empty = added_things:empty", "ViT-B-16 = added_things:small")
        ],
        "promptprism.fusion_rules": ["flat = added_things:flat"],
    }
    package(installed, "bad", entries, added_things=ADDED)
    with pytest.warns(
        PromptPrismWarning, match=r"'ViT-B-16' of package 'bad' .* a name that open_clip has not"
    ):
        assert "ViT-B-16" not in SHIPPED
    with pytest.raises(
        PromptPrismError, match=r"backbone 'broken', of a package.*FileNotFoundError: weights"
    ):
        load_backbone("broken", device="cpu")
    with pytest.raises(
        PromptPrismError, match=r"'empty', .* must give a module and a tokenizer, not NoneType"
    ):
        load_backbone("empty", device="cpu")
    with pytest.warns(PromptPrismWarning, match="left out: backbone 'broken'"):
        assert not backbones("broken")
    for name, why in (("nothing", "must be a Dataset, not NoneType"), ("rootless", "cannot be made: ")):
        with pytest.raises(PromptPrismError, match=f"data set '{name}' {why}"):
            load_data(name)
    with pytest.raises(ValueError, match=r"fusion 'flat' makes weights \[1\] of opinions \[2, 1, 2\]"):
        Opinion(torch.ones(2, 1, 2)).fuse("flat")


def test_two_plugins_of_one_name_keep_the_first(installed):
    for name in ("first", "second"):
        package(installed, name, {"promptprism.fusion_rules": ["lowest = added_things:lowest"]})
    (installed / "added_things.py").write_text(ADDED)
    with pytest.warns(PromptPrismWarning, match="'lowest' of package '.*' .* its name is taken"):
        assert tuple(FUSIONS)[-1] == "lowest"


@pytest.mark.slow
def test_plugin_method_works_in_every_command(installed, monkeypatch):
    add_example(installed, monkeypatch)
    monkeypatch.chdir(installed)

    def promptprism(*arguments):
        done = CliRunner().invoke(app, [*arguments, "--json", "-"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert "taskres" in promptprism("methods")["methods"]
    fit = ("fit", "mini/clothing", "--shots", "1", "--method", "taskres", "--set", "epochs=1", "--out", "A")
    promptprism(*fit)
    assert promptprism("info", "A")["method"] == "taskres"
    promptprism("evaluate", "A", "mini/clothing")
    (installed / "small.yaml").write_text(
        "protocol: base-to-new\nmethods:\n  zero-shot: {}\n  taskres: {epochs: 1}\n"
        "datasets: [mini/clothing]\nshots: [1]\nseeds: [1]\n"
    )
    promptprism("suite", "small.yaml", "--out", "R")
    rows = promptprism("report", "R", "--table", "base-to-new", "--against", "taskres")["rows"]
    assert [method for _, method, *_ in rows] == ["zero-shot", "taskres"]
    (hm, gain), (own, none) = ((row[4]["mean"], row[5]) for row in rows)
    assert float(gain) == pytest.approx(100 * (hm - own), abs=0.006) and none is None


@pytest.mark.slow
def test_plugin_example_is_what_its_paper_says(installed, monkeypatch):
    add_example(installed, monkeypatch)
    own = runpy.run_path(str(EXAMPLE / "tests" / "test_taskres.py"))
    for name, check in own.items():
        if name.startswith("test_"):
            check()
