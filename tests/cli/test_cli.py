import json
import re
import subprocess
import sys

import pytest
from called import DOCUMENTED, HEAD, documented, run
from PIL import Image
from toys import COLOURS, picture
from typer.testing import CliRunner

import promptprism
from promptprism import adapter, backbones
from promptprism.backbones import choice
from promptprism.cli import app, demo
from promptprism.estimator import load_model
from promptprism.evaluation import suites
from promptprism.evidence import Opinion
from promptprism.inference.answers import answers
from promptprism.methods import METHODS, Cdc
from promptprism.reports.formats import FORMATS
from promptprism.training import loop

QUICK = [
    x for pair in ("epochs=4", "batch_size=4", "lr=0.008", "depth=2", "templates=2") for x in ("--set", pair)
]


@pytest.fixture(autouse=True)
def backbone(tiny, monkeypatch):
    for module in (adapter, backbones, choice):
        monkeypatch.setattr(module, "load_backbone", lambda *_, **__: tiny)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    for name in list(COLOURS)[:4]:
        for split, numbers in (("train", range(4)), ("test", range(4, 7))):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                Image.fromarray(picture(name, number)).save(root / split / name / f"{number}.png")
    (root / "train" / "red" / "notes.txt").write_text("reds")
    return root


@pytest.fixture(scope="module")
def fitted(data, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapters") / "colours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "load_backbone", lambda *_, **__: tiny)
        result = run("fit", data, "--shots", 4, "--out", out, "--json", out.with_suffix(".json"), *QUICK)
    return out, result


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    code = "import sys, promptprism.cli; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert "evaluate" in run("--help").output
    assert run("--version").output.strip() == promptprism.__version__


def test_completion_knows_the_formats():
    context = {"_PROMPTPRISM_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
    context["COMP_WORDS"] = "promptprism report results --format "
    result = CliRunner().invoke(app, [], prog_name="promptprism", env=context)
    assert result.stdout.split() == list(FORMATS)


@pytest.mark.slow
def test_fit(fitted, data):
    out, result = fitted
    assert "1 files are left out, such as" in result.output
    assert re.search(r"training +16 steps in .*; loss \d", result.output)
    content = json.loads(out.with_suffix(".json").read_text())
    assert content.keys() == documented("fit") | HEAD
    assert (content["schema"], content["schema_version"]) == ("promptprism/fit", 1)
    assert content["data"]["images"] == dict.fromkeys(["blue", "green", "red", "yellow"], 4)
    assert content["settings"]["epochs"] == 4 and content["skipped"] == 1
    assert sorted(path.name for path in out.iterdir()) == ["adapter.safetensors", "card.json"]
    assert not out.with_name("colours.checkpoint").exists()


@pytest.mark.slow
def test_results(tmp_path):
    committed, lines = DOCUMENTED.parents[2] / "results" / "photos.jsonl", tmp_path / "r.jsonl"
    count = len(committed.read_text().splitlines())
    for command, out in (("export", lines), ("import", tmp_path)):
        content = json.loads(run("results", command, committed, "--out", out, "--json", "-").stdout)
        assert content.keys() == documented(f"results {command}") | HEAD and content["results"] == count
    assert lines.read_bytes() == committed.read_bytes()
    assert len(list(tmp_path.glob("results/*.json"))) == count


def test_info_on_an_adapter(fitted):
    content = json.loads(run("info", fitted[0], "--json", "-").stdout)
    assert content.keys() == documented("fit") - {"skipped"} | HEAD
    assert re.search(r"method +cdc, [\d,]+ trainable parameters", run("info", fitted[0]).output)


@pytest.mark.slow
def test_evaluate(fitted, data):
    content = json.loads(run("evaluate", fitted[0], data, "--json", "-").stdout)
    assert content.keys() == documented("evaluate") | HEAD
    assert content["split"] == "test" and content["images"] == 12 and len(content["templates"]) == 2
    assert content["accuracy"] == content["metrics"]["cls/accuracy"]
    output = run("evaluate", fitted[0], data).output
    assert "12 images of" in output and re.search(r"S2 +\d", output) and re.search(r"fused +\d", output)


@pytest.mark.slow
def test_evaluate_without_a_test_split_takes_all(fitted, data):
    result = run("evaluate", fitted[0], data / "test", "--json", "-")
    assert json.loads(result.stdout)["split"] == "all" and json.loads(result.stdout)["images"] == 12
    assert "flatter" not in result.stderr  # the card knows that it has learned from none of them
    warning = "no test split: all images are scored; those learned from, if any, flatter"
    result = run("evaluate", fitted[0], data / "train", "--json", "-")
    assert warning in result.stderr and json.loads(result.stdout)["learned_from"] == 16
    assert "no test split" not in run("evaluate", fitted[0], data).output


@pytest.mark.slow
def test_zero_shot_learns_from_no_image(data, tmp_path):
    run("fit", data / "train", "--method", "zero-shot", "--shots", 1, "--out", tmp_path / "a")
    assert "learned from" not in run("info", tmp_path / "a").output
    assert "flatter" not in run("evaluate", tmp_path / "a", data / "train").output


@pytest.mark.slow
def test_evaluate_in_another_label_space(fitted, data, tmp_path):
    for name in ("crimson", "navy"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), name).save(tmp_path / "d" / name / "1.png")
    refused = run("evaluate", fitted[0], tmp_path / "d", code=2)
    assert re.search("2 classes that the model does not know.*--data-classes", refused.stderr)
    content = json.loads(run("evaluate", fitted[0], tmp_path / "d", "--data-classes", "--json", "-").stdout)
    assert content["class_accuracy"].keys() == {"crimson", "navy"}


@pytest.mark.slow
def test_predict(fitted, data):
    images = [data / "test" / "red" / "5.png", data / "test" / "blue" / "5.png"]
    content = json.loads(run("predict", fitted[0], *images, "--templates", "--json", "-").stdout)
    assert content.keys() == documented("predict") | HEAD
    assert [row["image"] for row in content["predictions"]] == list(map(str, images))
    for row in content["predictions"]:
        assert row.keys() == documented("predict", 1) - {"templates_used", "set"}
        assert row["probability"] == pytest.approx(row["belief"] + row["uncertainty"] / 4, rel=1e-5)
        assert row["top"][0] == {"class": row["class"], "probability": row["probability"]}
        assert len(row["top"]) == 4 and len(row["templates"]) == 2
        assert all(
            each.keys() == {"class", "probability", "belief", "uncertainty"} for each in row["templates"]
        )
    plain = json.loads(run("predict", fitted[0], *images, "--json", "-").stdout)["predictions"]
    assert plain == [{k: v for k, v in row.items() if k != "templates"} for row in content["predictions"]]
    output = run("predict", fitted[0], *images, "--templates").output
    assert "uncertainty" in output and output.count(" S2 ") == 2


def test_many_images_are_asked_about_once(fitted, data, monkeypatch, tiny):
    model = load_model(fitted[0], backbone=tiny)
    images = sorted((data / "test").rglob("*.png"))
    masses, asked = Opinion._masses, []

    def rows(some):
        asked.clear()
        made = list(answers(model.classifier_, some, templates=True))
        return made, len(asked)

    monkeypatch.setattr(Opinion, "_masses", lambda self: asked.append(1) or masses(self))
    together, often = rows(images)
    alone = [rows([image]) for image in images]
    assert len(images) == 12 and {times for _, times in alone} == {often}
    for (row,), other in zip((made for made, _ in alone), together, strict=True):
        assert (row["image"], row["class"]) == (other["image"], other["class"])
        for one, same in zip([row, *row["templates"]], [other, *other["templates"]], strict=True):
            shown = ("probability", "belief", "uncertainty")
            assert [one[name] for name in shown] == pytest.approx([same[name] for name in shown], rel=1e-4)


@pytest.mark.slow
def test_predict_among_other_classes(fitted, data, tmp_path):
    image, out = data / "test" / "red" / "5.png", tmp_path / "x.svg"
    content = json.loads(
        run("predict", fitted[0], image, "--classes", "plum, navy,red", "--json", "-").stdout
    )
    assert {each["class"] for each in content["predictions"][0]["top"]} == {"plum", "navy", "red"}
    assert content["classes"] == 3
    why = run("explain", fitted[0], image, "--classes", "plum,navy", "--out", out, "--json", "-").stdout
    assert {each["class"] for each in json.loads(why)["top"]} == {"plum", "navy"}
    for names, word in (("red,Red", "Red"), (" ,", "at least one name")):
        assert word in run("predict", fitted[0], image, "--classes", names, code=2).stderr
    other = ["predict", fitted[0], image, "--classes", "plum,navy", "--json", "-"]
    plain, aware = (
        json.loads(run(*other, *more).stdout)["predictions"][0]["probability"]
        for more in ((), ("--set", "distance_aware=false"))
    )
    assert plain != aware
    for pair, word in (
        ("lr=1", "fit anew"),
        ("backbone=x", "backbone"),
        ("distance_aware=so", "valid boolean"),
    ):
        assert word in run("predict", fitted[0], image, "--set", pair, code=2).stderr


@pytest.mark.slow
def test_stopping_early(fitted, data):
    images = [data / "test" / "red" / "5.png", data / "test" / "blue" / "5.png"]
    content = json.loads(run("predict", fitted[0], *images, "--margin", 0, "--json", "-").stdout)
    rows = content["predictions"]
    assert all(row.keys() == documented("predict", 1) - {"templates", "set"} for row in rows)
    assert [row["templates_used"] for row in rows] == [1, 1]
    assert "1.00 templates per image" in run("predict", fitted[0], *images, "--margin", 0).output
    refused = run("evaluate", fitted[0], data, "--budget", "inf", code=2)
    assert "the budget is inf: give a number of templates per image" in refused.stderr
    both = run("predict", fitted[0], *images, "--margin", 1, "--templates", code=2)
    assert "with a margin not all templates are asked" in both.stderr

    def evaluated(*options):
        content = json.loads(run("evaluate", fitted[0], data, *options, "--json", "-").stdout)
        return content["early"], content["accuracy"]

    early, _ = evaluated("--budget", 1.5)
    fields = {"budget", "margin", "accuracy", "templates_used", "images_per_second"}
    assert early.keys() == fields and early["budget"] == 1.5 and 1 <= early["templates_used"] <= 2
    again, _ = evaluated("--margin", early["margin"])
    assert again["templates_used"] == early["templates_used"] and again["budget"] is None
    never, accuracy = evaluated("--budget", 2)
    assert never["margin"] is None and never["accuracy"] == accuracy
    output = run("evaluate", fitted[0], data, "--margin", 0).output
    assert re.search(r"templates used +1\.00 per image", output)
    refused = run("evaluate", fitted[0], data, "--margin", 1, "--budget", 1, code=2)
    assert "a budget finds its margin itself" in refused.stderr
    refused = run("evaluate", fitted[0], data / "test", "--budget", 1, code=2)
    assert "has only images to score on, and a budget needs others" in refused.stderr


@pytest.mark.slow
def test_predict_without_opinions(data, tmp_path):
    run("fit", data, "--method", "zero-shot", "--shots", 1, "--out", tmp_path / "a")
    image = data / "test" / "red" / "5.png"
    row = json.loads(run("predict", tmp_path / "a", image, "--json", "-").stdout)["predictions"][0]
    assert row["belief"] is None and row["uncertainty"] is None
    assert "uncertainty" not in run("predict", tmp_path / "a", image).output
    refused = run("predict", tmp_path / "a", image, "--templates", code=2)
    assert "'zero-shot' has no opinions" in refused.stderr


@pytest.mark.slow
def test_demo(data, monkeypatch, tmp_path):
    quick = {"epochs": 3, "lr": 0.002}
    trained = dict.fromkeys(("coop", "cocoop"), quick) | {n: {**quick, "depth": 2} for n in ("maple", "cdc")}
    # The suite has other rows of the same methods, too.
    methods = {"zero-shot": {}} | trained | {"cdc-other": {"method": "cdc", **quick}}
    suite = suites.Suite(name="s", protocol="base-to-new", methods=methods, datasets=("x",))
    monkeypatch.setattr(suites, "load_suite", lambda _: suite)
    monkeypatch.setattr(demo, "SHOTS", 2)
    content = json.loads(run("demo", "--full", "--data", data, "--json", "-").stdout)
    assert content.keys() == documented("demo") | HEAD
    assert list(content["methods"]) == ["zero-shot", "coop", "cocoop", "maple", "cdc"]
    for row in content["methods"].values():
        assert row.keys() == documented("demo", 1)
    assert len(content["images"]) == 6 and all(len(row["templates"]) == 4 for row in content["images"])
    assert {row["truth"] for row in content["images"]} == {"blue", "green", "red", "yellow"}
    output = run("demo", "--data", data, "--json", tmp_path / "quick.json").output
    assert len(re.findall(r"method +base +new +HM", output)) == 2 and "new image 3" in output
    assert "Left out: coop and cocoop, and most epochs" in output
    quick = json.loads((tmp_path / "quick.json").read_text())
    assert quick.keys() == content.keys()
    assert {name: row["epochs"] for name, row in quick["methods"].items()} == {
        "zero-shot": 0, "maple": 4, "cdc": 4,
    }  # fmt: skip


@pytest.mark.slow
def test_datasets_and_info():
    content = json.loads(run("datasets", "--json", "-").stdout)
    assert content.keys() == documented("datasets") | HEAD
    food = next(row for row in content["datasets"] if row["name"] == "mini/food")
    assert food["images"] == {
        split: n * food["classes"] for split, n in (("train", 40), ("val", 8), ("test", 24))
    }
    assert "mini/food" in run("datasets").output
    content = json.loads(run("info", "--json", "-").stdout)
    assert content.keys() == documented("info") | HEAD
    assert content["methods"] == list(METHODS)


@pytest.mark.slow
def test_methods():
    content = json.loads(run("methods", "--json", "-").stdout)
    assert content.keys() == documented("methods") | HEAD
    assert content["methods"]["cdc"]["settings"]["templates"]["default"] == 4
    assert all(each["meaning"] for row in content["methods"].values() for each in row["settings"].values())
    assert "Zero-shot CLIP" in run("methods").output
    assert re.search(r"templates +4 +M, the number of templates", run("methods", "cdc").output)
    assert "Unknown method 'cdd'" in run("methods", "cdd", code=2).stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["mini/fod"], r"no data 'mini/fod'.*Did you mean mini/food"),
        (["DATA", "--method", "cdd"], "Unknown method 'cdd': choose one of zero-shot, linear-probe, "),
        (["DATA", "--set", "epoch=3"], "has no setting 'epoch'. Did you mean epochs"),
        (["DATA", "--set", "epochs=many"], "Setting epochs='many' of method 'cdc' is refused"),
        (["DATA", "--set", "epochs"], "--set 'epochs' is no setting: write NAME=VALUE"),
        (["DATA", "--set", "name=x"], "Method 'cdc' has no setting 'name'"),
        (["DATA", "--shots", "5"], r"too few images for 5 shots: 'blue' has 4, .*--allow-fewer"),
        (["DATA", "--phrase", "a photo"], "Phrase 'a photo' must hold {} once"),
        (["DATA", "--phrase", "so " * 50 + "{}"], "Text too long: 'so so .*Shorten"),
    ],
)
def test_fit_refuses(arguments, says, data, tmp_path):
    arguments = [str(data) if argument == "DATA" else argument for argument in arguments]
    shots = [] if "--shots" in arguments else ["--shots", 1]
    result = run("fit", *arguments, *shots, "--out", tmp_path / "a", code=2)
    assert re.match(rf"error: .*{says}", result.stderr) and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_settings_that_are_given_as_options_are_told_how(tmp_path):
    said = " ".join(run("fit", "DATA", "--out", tmp_path / "a", "--batch-size", 3, code=2).stderr.split())
    assert "No such option: --batch-size" in said and "--set batch_size=VALUE" in said
    assert "--set" not in run("report", "R", "--batch-size", 3, code=2).stderr


def test_allow_fewer(data, tmp_path):
    run("fit", data, "--shots", 5, "--allow-fewer", "--out", tmp_path / "a", *QUICK)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["data"]["shots"] == 5 and card["data"]["images"]["blue"] == 4


@pytest.mark.slow
def test_places_that_cannot_be_written_are_found_before_the_data_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, says in (
        (["--out", tmp_path], r"exists: choose another folder for the adapter, or remove it first"),
        (
            ["--out", tmp_path / "file" / "a"],
            r"cannot write '.*a' \(Not a directory\): check the permissions",
        ),
        (
            ["--out", tmp_path / "a", "--json", tmp_path / "file" / "j"],
            r"cannot write '.*j' \(Not a directory\)",
        ),
        (["--out", tmp_path / "a", "--json", tmp_path], r"cannot write '.*': it is a folder; name a file"),
    ):
        assert re.search(says, run("fit", "no-such-data", *arguments, code=2).stderr)


@pytest.mark.slow
def test_interrupted_and_resumed(data, fitted, tmp_path, monkeypatch):
    loss, calls = Cdc.forward, []

    def stopping(self, views, labels, texts, epoch):
        calls.append(epoch)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return loss(self, views, labels, texts, epoch)

    out = tmp_path / "a"
    arguments = ["fit", data, "--shots", 4, "--out", out, *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(Cdc, "forward", stopping)
        stopped = run(*arguments, code=130)
    assert re.search(r"stopped in epoch 3 of 4\. The first 2 are kept in '.*a\.checkpoint'", stopped.stderr)
    assert not out.exists()
    assert "is left of an unfinished run: add --resume" in run(*arguments, code=2).stderr
    run(*arguments, "--resume")
    tensors = "adapter.safetensors"
    assert (out / tensors).read_bytes() == (fitted[0] / tensors).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_resuming_nothing_says_that_it_starts_from_the_beginning(data, tmp_path):
    arguments = ["--method", "zero-shot", "--shots", 1, "--out", tmp_path / "a", "--resume"]
    output = "".join(run("fit", data, *arguments).output.split())
    assert "a.checkpoint'togoonfrom:startingfromthebeginning" in output


@pytest.mark.slow
def test_a_collapsed_run_is_not_saved(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_examine", lambda *_: (0.25, "every image is taken for 'red'"))
    refused = run("fit", data, "--shots", 1, "--out", tmp_path / "a", *QUICK, code=2)
    assert "the run collapsed: every image is taken for 'red'. Nothing was saved" in refused.stderr
    assert not list(tmp_path.iterdir())
