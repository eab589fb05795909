import pytest
from typer.testing import CliRunner

from promptprism.cli import app
from promptprism.data.catalog import CATALOG
from promptprism.data.registry import registered
from promptprism.errors import PromptPrismError
from promptprism.evaluation.suites import load_suite, named_suites

LAUGHS = "n0: &n0 [x]\n" + "".join(f"n{i + 1}: &n{i + 1} [*n{i}, *n{i}]\n" for i in range(60))
SOUND = "protocol: base-to-new\nmethods: {zero-shot: {}}\ndatasets: [mini/food]\nnote: a\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "stand for more than 100,000 values"),
        ("a: &a [*a]", "stand for more than"),
        ("[" * 5000, "recursion"),
        ("a: 2024-13-45", "month must be in"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("? [a, b]\n: c", "unhashable key"),
        ("a: 'b", "end of stream"),
        ("a: \xff", "no YAML"),
        ("- a", "must be a mapping"),
        (SOUND + "1: 2", "not valid: 1"),
        (SOUND + "mood: good", "not valid: 'mood' is unknown$"),
    ],
)  # fmt: skip
def test_hostile_suites_are_one_clear_line(tmp_path, text, words):
    (tmp_path / "s.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(PromptPrismError, match=words) as caught:
        load_suite(str(tmp_path / "s.yaml"))
    assert "s.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", named_suites())
def test_named_suites_name_what_there_is(name):
    suite = load_suite(name)
    cells = list(suite.cells())
    named = {data for data in (*suite.datasets, *suite.targets) if not data.startswith("./")}  # else a folder
    assert cells and named <= registered().keys()
    if name.startswith("paper/"):
        assert suite.backbone.name == "ViT-B-16" and {*suite.datasets} <= CATALOG.keys()
    assert len({cell.model_dump_json() for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no YAML"),
        ("[1]", "must be a mapping"),
        ("{protocol: nope, methods: {cdc: {}}, datasets: [x]}", "protocol: unknown protocol 'nope'"),
        ("{protocol: base-to-new, methods: {cdc: {}}}", "not valid: 'datasets' is missing"),
        (f"{SOUND}seed: 1", "'seed' is unknown: did you mean 'seeds'"),
        (f"{SOUND}seeds: []", "'seeds' is empty: give at least one"),
        (f"{SOUND}shots: many", "shots is 'many': input should be a list$"),
        (f"{SOUND}shots: [1, 0]", "shots: 0 is too small: give 1 or more"),
        (f"{SOUND}seeds: [1, -1]", "seeds: -1 is too small: give 0 or more"),
        (f"{SOUND}backbone: 3", "backbone is 3: input should be a mapping$"),
        (f"{SOUND}backbone: {{nmae: mini}}", "'backbone.nmae' is unknown"),
        (
            "{protocol: base-to-new, methods: {cdc: {}}, datasets: [x], per_data: {x: {coop: {}}}}",
            "per_data: 'coop' is no data set or row",
        ),
    ],
)
def test_bad_suites(tmp_path, text, words):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(PromptPrismError, match=words):
        load_suite(str(tmp_path / "s.yaml"))


def test_a_suite_runs_in_the_precision_that_this_processor_is_fast_in(tmp_path):
    suite = load_suite("mini/cross-dataset")
    chosen = suite.only(["zero-shot"], precision="float32")
    assert (suite.backbone.precision, chosen.backbone.precision) == ("bfloat16", "float32")
    assert suite.only(["zero-shot"]).backbone == suite.backbone and chosen.backbone.name == "mini"
    asked = ["suite", "mini/cross-dataset", "--methods", "zero-shot", "--precision", "float32"]
    told = CliRunner().invoke(app, [*asked, "--dry-run", "--gigaflops", "10"])
    assert told.exit_code == 0 and "frozen numbers, float32" in told.output
    refused = CliRunner().invoke(app, [*asked[:-1], "float16", "--dry-run"])
    assert refused.exit_code == 2 and "float16" in refused.output


def test_lists_that_are_nowhere_are_refused_before_anything_runs(tmp_path):
    refused = CliRunner().invoke(
        app, ["suite", "mini/base-to-new", "--lists", str(tmp_path / "x"), "--dry-run"]
    )
    assert refused.exit_code == 2 and "Check --lists and its spelling" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("{two: {epochs: 1}}", "row 'two', data 'mini/food': Unknown method 'two'.* says method: NAME$"),
        ("{coop: {epoch: 1}}", "row 'coop', data 'mini/food': Method 'coop' has no setting 'epoch'"),
    ],
)
def test_rows_that_are_no_methods_are_named_with_their_suite(tmp_path, rows, words):
    (tmp_path / "s.yaml").write_text(f"protocol: base-to-new\nmethods: {rows}\ndatasets: [mini/food]\n")
    with pytest.raises(PromptPrismError, match=f"s.yaml', {words}"):
        list(load_suite(str(tmp_path / "s.yaml")).cells())


def test_a_backbone_can_be_given_by_its_name(tmp_path):
    (tmp_path / "s.yaml").write_text(f"{SOUND}backbone: photo")
    assert load_suite(str(tmp_path / "s.yaml")).backbone.name == "photo"
