import json
import random
import shutil
from pathlib import Path

import pytest
from made_results import result, two
from pydantic import ValidationError, create_model
from toys import colours
from typer.testing import CliRunner

import promptprism
from promptprism.backbones import load_backbone
from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.evaluation import run_suite as running
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.store import CellResult, Store, read_failures, read_results, write_results
from promptprism.evaluation.suites import Cell, images_fingerprint, keys, load_suite
from promptprism.methods import METHODS, make_settings
from promptprism.provenance import BackboneFacts

COMMITTED = Path(__file__).parents[2] / "results"
FILES = ["mini", "study", "photos", "photos-v1", "photos-study"]


def cell(method="cdc", data="mini/food", **settings):
    made = make_settings(method, **settings)
    facts = {"data": data, "shots": 16, "seed": 1, "version": made.version}
    return Cell(protocol="base-to-new", method=method, settings=made, **facts)


def command(*arguments, code=0):
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == code, ran.output
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_new_setting_with_a_neutral_default_finds_all_committed_cells_again(name, monkeypatch):
    for method in METHODS.values():
        more = create_model("More", __base__=method.Settings, wings=(int, 0))
        monkeypatch.setattr(method, "Settings", more)
    for one in read_results(COMMITTED / f"{name}.jsonl"):
        cell, facts = one.cell, (one.backbone, one.fingerprints, one.images_learned)
        assert cell.settings.wings == 0 and keys(cell, *facts) == (one.learned, one.key)
        settings = cell.settings.model_copy(update={"wings": 2})
        learned, key = keys(cell.model_copy(update={"settings": settings}), *facts)
        assert learned != one.learned and key != one.key


@pytest.mark.slow
def test_a_suite_goes_on_from_committed_results(tmp_path):
    suite = load_suite("mini/fusion").only(seeds=[1])
    wanted = set(suite.cells())
    some = [one for one in read_results(COMMITTED / "study.jsonl") if one.cell in wanted]
    write_results(tmp_path / "some.jsonl", some)
    assert (
        f"{len(some)} results new"
        in command("results", "import", tmp_path / "some.jsonl", "--out", tmp_path).output
    )
    backbone = load_backbone(suite.backbone.name, precision=suite.backbone.precision)
    outcome = run_suite(suite, tmp_path, backbone, stage="test")
    assert outcome.ran == 0 and not outcome.failures and len(outcome.results) == len(wanted) == 21
    assert {one.key: one for one in outcome.results} == {one.key: one for one in some}


_SCHEDULE = {"batch_size": 4, "lr": 0.0035, "momentum": 0.9, "weight_decay": 5e-4, "warmup_lr": 1e-5}
_PROMPTS = {"context_length": 2, "initial_phrase": "a photo of a {}.", "phrase_init": True, "vision_from": 0}
_MAPLE = {**_SCHEDULE, **_PROMPTS, "epochs": 5, "views": "maple", "depth": None, "coupled": True}
_CDC = {
    "templates": 4, "views": "set1", "head": "evidential", "evidence": "exp_centered", "temperature": None,
    "fusion": "averaging", "distance_aware": False, "loss_on": "both", "kl_weight": 0.0, "anneal": 5,
    "diversity_weight": 0.1, "diversity_form": "squared_cosine", "diversity_level": "text_centered",
    "diversity_margin": 0.5, "consistency_weight": 1.0, "consistency_form": "cosine",
}  # fmt: skip
#: The defaults of version 1. A line of it has only what differs from them.
DEFAULTS = {
    "zero-shot": {"epochs": 0, "ensemble": False},
    "coop": {
        **_SCHEDULE, **_PROMPTS, "epochs": 200, "batch_size": 32, "lr": 0.002, "views": "maple",
        "templates": 1, "depth": 1, "coupled": False, "context_length": 4,
    },
    "cocoop": {
        **_SCHEDULE, "epochs": 10, "batch_size": 1, "lr": 0.002, "views": "maple", "context_length": 4,
        "initial_phrase": "a photo of a {}.", "reduction": 16,
    },
    "maple": {**_MAPLE, "templates": 1},
    "cdc": {**_MAPLE, **_CDC, "class_offsets": None},
}  # fmt: skip
#: What version 2 has instead.
NOW = {
    "coop": {"epochs": 10, "batch_size": 16, "lr": 0.01},
    "cocoop": {"epochs": 4, "batch_size": 4, "lr": 0.004},
    "maple": {"epochs": 10, "batch_size": 16, "lr": 0.004},
    "cdc": {"epochs": 10, "batch_size": 16, "lr": 0.004, "distance_aware": True, "class_offsets": True},
}

_NOW = {"epochs": 10, "batch_size": 16, "momentum": 0.9, "weight_decay": 5e-4, "warmup_lr": 1e-5}
_PLAIN = {
    "templates": 1, "initial_phrase": "a photo of a {}.", "phrase_init": True, "vision_from": 0,
    "pool_prompts": False, "coupled": False, "vision_depth": None,
}  # fmt: skip
#: The defaults of today of all others.
OTHERS = {
    "linear-probe": {
        "epochs": 0, "batch_size": 4, "optimizer": "sgd", "lr": 0.0035, "momentum": 0.9, "weight_decay":
        0.0005, "warmup_lr": 1e-05, "views": "maple", "strength": None,
    },
    "tip-adapter": {
        "epochs": 0, "batch_size": 4, "optimizer": "sgd", "lr": 0.0035, "momentum": 0.9, "weight_decay":
        0.0005, "warmup_lr": 1e-05, "views": "half", "passes": 10, "alpha": 1.17, "beta": 1.0, "alpha_most":
        3.0, "beta_most": 7.0,
    },
    "tip-adapter-f": {
        "epochs": 10, "batch_size": 16, "optimizer": "adamw", "lr": 0.001, "momentum": 0.9, "weight_decay":
        0.01, "warmup_lr": 1e-05, "views": "half", "passes": 10, "alpha": 1.17, "beta": 1.0, "alpha_most":
        3.0, "beta_most": 7.0,
    },
    "kgcoop": {
        **_NOW, **_PLAIN, "optimizer": "sgd", "lr": 0.02, "views": "maple", "depth": 1, "vision_tokens": 0,
        "learn_text": True, "context_length": 4, "class_offsets": None, "knowledge_weight": 8.0,
    },
    "prograd": {
        **_NOW, **_PLAIN, "optimizer": "sgd", "lr": 0.02, "views": "maple", "depth": 1, "vision_tokens": 0,
        "learn_text": True, "context_length": 16, "class_offsets": False, "conflict_weight": 1.0,
        "teacher_temperature": 1.0,
    },
    "vpt": {
        **_NOW, **_PLAIN, "optimizer": "sgd", "lr": 0.004, "views": "maple", "depth": None, "vision_tokens":
        4, "learn_text": False, "context_length": 2, "class_offsets": None,
    },
    "ivlp": {
        **_NOW, **_PLAIN, "optimizer": "sgd", "lr": 0.004, "views": "maple", "depth": None, "vision_tokens":
        4, "learn_text": True, "context_length": 4, "class_offsets": None,
    },
    "promptsrc": {
        **_NOW, **_PLAIN, "optimizer": "sgd", "lr": 0.004, "views": "maple", "depth": None, "vision_tokens":
        4, "learn_text": True, "context_length": 4, "class_offsets": False, "text_weight": 25.0,
        "image_weight": 10.0, "logit_weight": 1.0, "aggregate": True, "aggregation_mean": None,
        "aggregation_std": 1.0,
    },
    "mmrl": {
        **_NOW, "optimizer": "adamw", "lr": 0.002, "views": "half", "tokens": 5, "width": 512,
        "first_layer": None, "alpha": 0.7, "regularisation": 0.5,
    },
    "clip-lora": {
        "epochs": 10, "batch_size": 16, "optimizer": "adamw", "lr": 0.0004, "momentum": 0.9, "weight_decay":
        0.01, "warmup_lr": 1e-05, "views": "maple", "rank": 2, "alpha": 1.0, "dropout": 0.25,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_another_default_needs_another_version(name):
    settings, first = METHODS[name].Settings(), make_settings(name, **{"preset": 1} if name in NOW else {})
    assert first.model_dump(include=set(DEFAULTS[name])) == DEFAULTS[name]
    assert settings.version == (2 if name in NOW else 1)
    assert settings == make_settings(name, **DEFAULTS[name] | NOW.get(name, {}))


def test_no_default_of_any_other_method_changes_unnoticed():
    assert {*OTHERS, *DEFAULTS} == {*METHODS.own}
    for name, defaults in OTHERS.items():
        settings = METHODS[name].Settings()
        assert settings.model_dump(mode="json", include=set(defaults)) == defaults, "raise the version"
        assert settings.version == (1 if name in ("linear-probe", "tip-adapter") else 2), name


def test_a_result_of_a_method_that_is_not_here_is_not_called_damaged(tmp_path):
    line = result("cdc", "a", 1, two(0.8, 0.6)).model_dump_json().replace('"method":"cdc"', '"method":"own"')
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(PromptPrismError, match=r"of a method that is not here: .*install its package\.$"):
        read_results(tmp_path / "r.jsonl")


def test_protocols_that_learn_the_same_share_it(tiny):
    def of(protocol):
        here = cell().model_copy(update={"protocol": protocol})
        return keys(here, BackboneFacts.of(tiny), {"mini/food": "f"}, "i")

    halves, wholes = (("base-to-new", "base-to-all"), ("few-shot", "cross-dataset", "cross-domain"))
    assert len({of(name)[0] for name in halves}) == len({of(name)[0] for name in wholes}) == 1
    assert (
        len({of(name)[1] for name in (*halves, *wholes)}) == 5 and of("few-shot")[0] != of("base-to-new")[0]
    )


def test_a_line_of_an_earlier_version_is_what_it_was_then():
    now = result("cdc", "a", 1, two(0.8, 0.6), epochs=7).model_copy(update={"images_learned": "i"})
    content = now.model_dump(mode="json")
    content["fingerprints"] = {"a": "f"}
    then = content | {"cell": content["cell"] | {"version": 1, "settings": {"epochs": 7, "lr": 0.01}}}
    read = CellResult.model_validate_json(json.dumps(then))
    settings = make_settings("cdc", preset=1, epochs=7, lr=0.01)
    assert (read.cell.settings, read.cell.version) == (settings, 2) and settings.batch_size == 4
    assert (read.learned, read.key) == keys(read.cell, read.backbone, {"a": "f"}, "i")
    assert CellResult.model_validate_json(read.model_dump_json()) == read
    assert CellResult.model_validate(content).key == now.key  # of now: as it is written
    for version in ([1], {}, "1x"):
        with pytest.raises(ValidationError, match=r"cell\.version"):
            CellResult.model_validate_json(json.dumps(then | {"cell": then["cell"] | {"version": version}}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("mini/food", "mini-food"),
        ("mini/food@0.9", "mini-food@0.9"),
        ("/somewhere/my flowers/", "my-flowers"),
        ("hf:owner/name", "hf-owner-name"),
        ("x" * 500, "x" * 40),
    ],
)
def test_names_can_be_read(data, said):
    assert cell(data=data).file_name("0123456789") == f"cdc--{said}--16-shots--seed-1--01234567"


def test_json_has_what_is_no_default_and_reads_what_had_all():
    one = cell(templates=2, lr=0.004)
    text = one.model_dump_json()
    assert json.loads(text)["settings"] == {"templates": 2} and Cell.model_validate_json(text) == one
    whole = json.loads(text) | {"settings": one.settings.model_dump(mode="json")}
    assert len(whole["settings"]) > 20 and Cell.model_validate(whole) == one


@pytest.mark.slow
def test_folders_and_files_hold_the_same(tmp_path):
    made = [
        result(method, data, seed, two(0.8, 0.1 * seed), **settings)
        for method, settings in (("cdc", {"templates": 2}), ("zero-shot", {}))
        for data in ("a", "b") for seed in (1, 2)
    ]  # fmt: skip
    made = [one.model_copy(update={"key": f"{place:08}"}) for place, one in enumerate(made)]
    older = made[0].model_copy(update={"finished": "2025", "phrase": "older {}."})
    store, lines = Store(tmp_path / "R"), tmp_path / "r.jsonl"
    for one in random.Random(1).sample(made, len(made)):
        store.finish(one)
    assert len(list((tmp_path / "R/results").glob("cdc--a--16-shots--seed-*--0000000*.json"))) == 2
    said = command("results", "export", tmp_path / "R", "--out", lines, "--json", "-").stdout
    assert json.loads(said)["results"] == 8 and json.loads(said)["schema"] == "promptprism/results-export"
    text = lines.read_text()
    assert read_results(lines) == read_results(tmp_path / "R") and text.count("\n") == 8
    assert [json.loads(line)["cell"]["data"] for line in text.splitlines()] == ["a"] * 4 + ["b"] * 4
    lines.write_text(text.replace("\n", "\n\n"))
    assert read_results(lines) == read_results(tmp_path / "R")
    lines.write_text(text)
    report = ["--table", "base-to-new"]
    assert command("report", lines, *report).stdout == command("report", tmp_path / "R", *report).stdout
    assert write_results(lines, [older, *made[::-1]]) == 8 and lines.read_text() == text  # the latest counts
    store.result(made[0].cell, made[0].key).unlink()
    imported = command("results", "import", lines, "--out", tmp_path / "R", "--json", "-").stdout
    assert (json.loads(imported)["results"], json.loads(imported)["added"]) == (8, 1)
    command("results", "export", lines, tmp_path / "R", "--out", lines)
    assert lines.read_text() == text and not list(tmp_path.rglob("*.partial"))


def test_results_of_format_2_are_read(tmp_path):
    one = result("cdc", "a", 1, two(0.8, 0.6), templates=2)
    content = one.model_dump(mode="json") | {"format": 2}
    content["cell"]["settings"] = one.cell.settings.model_dump(mode="json")
    del content["images_learned"], content["cell"]["version"]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0123456789abcdef.json").write_text(json.dumps(content))
    assert read_results(tmp_path) == [one.model_copy(update={"format": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"format": 3', r"line 2 of '.*r.jsonl' is damaged or cut short .*\. Take the line out, or export"),
        ("UNKNOWN", "line 2 of .* reads: cell.settings: .*'cdc' has no setting 'wings'. Did you mean"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    good = result("cdc", "a", 1, two(0.8, 0.6)).model_dump_json()
    bad = good.replace('"settings":{}', '"settings":{"wings":2}') if line == "UNKNOWN" else line
    (tmp_path / "r.jsonl").write_text(f"{good}\n{bad}\n")
    with pytest.raises(PromptPrismError, match=words):
        read_results(tmp_path / "r.jsonl")
    assert (
        "cannot write results to"
        in command(
            "results", "import", COMMITTED / "photos.jsonl", "--out", tmp_path / "r.jsonl", code=2
        ).stderr
    )


@pytest.mark.slow
def test_a_dry_run_leaves_out_what_is_there(tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text("{protocol: base-to-new, methods: {cdc: {}}, datasets: [mini/food], seeds: [1, 2]}")
    dry = ["suite", suite, "--dry-run", "--gigaflops", 50, "--json", "-", "--out"]
    assert len(json.loads(command(*dry, tmp_path / "none").stdout)["cells"]) == 2
    there, other = (result("cdc", "mini/food", seed, two(0.8, 0.6)) for seed in (1, 2))
    facts = other.backbone.model_copy(update={"precision": "bfloat16"})
    write_results(tmp_path / "r.jsonl", [there, other.model_copy(update={"backbone": facts})])
    assert [one["seed"] for one in json.loads(command(*dry, tmp_path / "r.jsonl").stdout)["cells"]] == [2]
    store = Store(tmp_path / "R")
    store.finish(there)
    store.finish(result("cdc", "mini/food", 2, two(0.8, 0.6)))
    said = " ".join(command(*dry[:-3], "--out", tmp_path / "R").stdout.split())
    assert "0 cells of protocol" in said and "are left out" in said


def test_a_note_of_a_failure_is_no_truth(tmp_path):
    store = Store(tmp_path)
    store.fail("k", cell(), "no luck")
    store.fail("l", cell(), "no luck again")
    store.fail("m", cell(data="mini/birds"), "nor here")
    assert set(read_failures(tmp_path)) == {(cell(), "no luck again"), (cell(data="mini/birds"), "nor here")}
    notes = sorted((tmp_path / "failures").iterdir())
    notes[0].write_text(notes[0].read_text().replace('"settings":{}', '"settings":{"wings":2}')[:-9])
    assert len(notes) == 2 and len(read_failures(tmp_path)) == 1
    shutil.rmtree(tmp_path / "failures")
    (tmp_path / "failures").write_text("in the way")
    store.fail("k", cell(), "no luck")
    assert read_failures(tmp_path) == []


def test_keys_follow_settings_data_and_precision_and_no_version(tiny, tiny_factory, monkeypatch):
    images, one = colours().train, cell(epochs=6)

    def of(cell=one, backbone=tiny, prints="f", images=images):
        return keys(cell, BackboneFacts.of(backbone), {cell.data: prints}, images_fingerprint(images))

    first = of()
    for learned, key in (
        of(backbone=tiny_factory("bfloat16")),
        of(prints="g"),
        of(images=images[1:]),
        of(one.model_copy(update={"seed": 2})),
        of(cell(epochs=6, lr=0.1)),
        of(one.model_copy(update={"version": 3})),
    ):
        assert learned != first[0] and key != first[1]
    assert of(cell(epochs=6, lr=0.004)) == of(images=images[::-1]) == first  # the default; in any order
    monkeypatch.setattr(promptprism, "__version__", "9")
    monkeypatch.setattr(running, "revision", lambda: "9")
    assert of() == first


def test_a_claim_is_for_one(tmp_path):
    one, two = Store(tmp_path), Store(tmp_path)
    with one.claim("k") as first, two.claim("k") as second, two.claim("other") as third:
        assert (first, second, third) == (True, False, True)
    with two.claim("k") as later:
        assert later


def test_a_lock_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    store = Store(tmp_path)
    (tmp_path / "locks" / "k.lock").write_text("this is no lock at all, but another file of that name" * 20)
    with (
        pytest.raises(PromptPrismError, match=r"cannot use the lock '.*k.lock' .*not a database"),
        store.claim("k"),
    ):
        pass
    with store.claim("o"):
        pass
    monkeypatch.setattr("os.access", lambda path, _mode: not str(path).endswith("o.lock"))
    with (
        pytest.raises(PromptPrismError, match=r"cannot use the lock '.*o.lock' .*another user's"),
        store.claim("o"),
    ):
        pass
