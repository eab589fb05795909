import json
import pickle
import shutil
import textwrap

import pytest
from miniatures import miniature
from PIL import Image
from typer.testing import CliRunner

from promptprism.cli import app
from promptprism.data.catalog import CATALOG
from promptprism.data.lists import read_list, write_list
from promptprism.data.registry import load_data
from promptprism.data.splits import few_shot
from promptprism.errors import PromptPrismError


@pytest.fixture
def data(tmp_path):
    for split, count in (("train", 4), ("test", 1)):
        for shade, name in enumerate(("red_fox", "wolf")):
            for i in range(count):
                path = tmp_path / "data" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (i, shade, count)).save(path)
    return load_data(tmp_path / "data")


def test_a_list_brings_back_the_very_images(data, tmp_path):
    drawn = few_shot(data.train, 2, seed=1)
    write_list(tmp_path / "list.jsonl", data, drawn)
    rows = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[0].keys() == {"path", "label", "classname"}
    assert rows[0]["classname"] == "red_fox" and rows[0]["path"].startswith("train/red_fox/")
    assert read_list(tmp_path / "list.jsonl", data) == drawn
    run = CliRunner().invoke(
        app, ["data", "split", str(tmp_path / "data"), "-o", str(tmp_path / "b"), "--shots", "2"]
    )
    assert run.exit_code == 0 and (tmp_path / "b").read_text() == (tmp_path / "list.jsonl").read_text()


GOOD = {"path": "train/wolf/0.png", "label": 1, "classname": "wolf"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "is empty"),
        ([GOOD, GOOD], "line 2 of .*: 'train/wolf/0.png' is listed twice"),
        ([GOOD | {"path": "test/wolf/0.png"}], r"is a test image of .*: never train on it"),
        ([GOOD | {"path": "train/wolf/9.png"}], r"1 of 1 images of .* are not among the training images"),
        ([GOOD | {"classname": "dog"}], "label 1 is 'dog', but 'wolf'"),
        ([GOOD | {"label": 2}], "label 2 is 'wolf', but 'no class'"),
        ([GOOD | {"label": 0, "classname": "red fox"}], "has label 1 in"),
        ([{"path": "x"}], "line 1 of .* is not"),
        ([True], "line 1 of .* is not"),
        ([8], "line 1 of .* no training image 8 in .*, which has 8: the list is of other data"),
        ([GOOD | {"path": "/elsewhere/data/test/wolf/0.png"}], "'test/wolf/0.png' is a test image"),
    ],
)
def test_lists_that_do_not_fit(data, tmp_path, rows, words):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PromptPrismError, match=words):
        read_list(path, data)


ROWS = [["train/red_fox/1.png", 0, "red fox"], ["train/wolf/3.png", 1, "wolf"]]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        {"train": ROWS, "val": []},
        [{"path": path, "label": label, "classname": name} for path, label, name in ROWS],
        [[f"/home/someone/data/data/{path}", label, name] for path, label, name in ROWS],
        [["C:\\data\\" + path.replace("/", "\\"), label, name] for path, label, name in ROWS],
        [1, 7],
    ],
)
def test_other_forms_of_lists(data, tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content, indent=1))
    assert read_list(tmp_path / "list.json", data) == (data.train[1], data.train[7])
    args = ["data", "split", str(tmp_path / "data"), "--from", str(tmp_path / "list.json"), "-o"]
    run = CliRunner().invoke(app, [*args, str(tmp_path / "portable.jsonl")])
    assert run.exit_code == 0 and "2 images of 2 classes" in run.stdout
    rows = [json.loads(line) for line in (tmp_path / "portable.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [path for path, _, _ in ROWS]


class Datum:
    """What Dassl pickles."""

    def __init__(self, impath, label, classname):
        self.impath, self.label, self.classname = impath, label, classname


def test_pickles_are_never_read_but_a_recipe_turns_them_into_lists(data, tmp_path):
    path = tmp_path / "shot_1-seed_1.pkl"
    items = [Datum(f"/home/x/data/{image}", label, name) for image, label, name in ROWS]
    path.write_bytes(pickle.dumps({"train": items, "val": []}))
    with pytest.raises(PromptPrismError, match="is a pickle: reading one may run any code") as error:
        read_list(path, data)
    recipe = textwrap.dedent(str(error.value).partition("\n\n")[2])
    exec(recipe.replace('"shot_1-seed_1.jsonl"', repr(str(tmp_path / "shot_1-seed_1.jsonl"))))
    assert read_list(tmp_path / "shot_1-seed_1.jsonl", data) == (data.train[1], data.train[7])


def test_scenes_have_no_paths(tmp_path):
    data = load_data("mini/clothing")
    with pytest.raises(PromptPrismError, match="images of 'mini/clothing' are no files"):
        write_list(tmp_path / "x", data, data.train[:1])


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_published_lists(real_data, name, seed):
    data = load_data(name, root=real_data(CATALOG[name].folder).parent)
    records = read_list(real_data(f"metadata/fewshot/{name}-16shot-seed{seed}.jsonl"), data)
    assert set(data.counts(records).values()) == {16}


def check(*args):
    run = CliRunner().invoke(app, ["data", "check", *map(str, args), "--json", "-"])
    return run, json.loads(run.stdout) if run.stdout else None


@pytest.mark.slow
def test_check(tmp_path):
    lists = miniature(tmp_path, "eurosat")
    folder = tmp_path / "eurosat" / "2750"
    Image.new("CMYK", (4, 4)).save(folder / "c0" / "train0.jpg", "JPEG")
    Image.new("L", (4, 4)).save(folder / "c0" / "train1.jpg", "GIF")
    Image.new("1", (4, 4)).save(folder / "c1" / "train0.jpg", "PNG")
    (folder / "c1" / "notes.mat").write_bytes(b"MATLAB 5.0")
    run, report = check("eurosat", "--root", tmp_path)
    assert run.exit_code == 0 and report["usable"] and report["other_files"] == 1
    assert report["splits"]["train"] == {"listed": 20, "present": 20, "expected": 13500}
    assert report["notes"] and not report["unreadable"] and not report["faults"]
    (folder / "c1" / "train0.jpg").write_bytes(b"half")
    run, report = check("eurosat", "--root", tmp_path)
    assert run.exit_code == 1 and not report["usable"] and "c1/train0.jpg" in report["unreadable"][0]
    for row in lists["train"][:10]:
        (folder / row[0]).unlink()
    run, report = check("eurosat", "--root", tmp_path, "--quick")
    assert run.exit_code == 1 and report["splits"]["train"]["present"] == 10
    assert "10 of 60 listed images are not in" in report["faults"][0] and len(report["faults"]) == 1
    for path in (folder / "c9").iterdir():
        path.unlink()
    _, report = check("eurosat", "--root", tmp_path, "--quick")
    assert report["faults"][1] == "1 classes have none of their images, first: 'class 9'"
    run, _ = check("euro", "--root", tmp_path)
    assert run.exit_code == 2 and "no data 'euro': there is no such folder, CSV" in run.stderr


def test_list(tmp_path):
    (tmp_path / "dtd").mkdir()
    run = CliRunner().invoke(app, ["data", "list", "--root", str(tmp_path), "--json", "-"])
    rows = {row["name"]: row for row in json.loads(run.stdout)["datasets"]}
    assert len(rows) == 15 and rows["dtd"]["present"] and not rows["eurosat"]["present"]
    said = CliRunner().invoke(app, ["data", "list", "--json", "-"], env={"PROMPTPRISM_DATA": str(tmp_path)})
    assert json.loads(said.stdout)["datasets"] == list(rows.values())


@pytest.mark.slow
def test_check_real_eurosat(real_data):
    folder = real_data("eurosat")
    lists = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    run, report = check("eurosat", "--root", folder.parent)
    assert run.exit_code == 0 and report["usable"]
    assert {split: found["present"] for split, found in report["splits"].items()} == {
        split: len(rows) for split, rows in lists.items()
    }


def test_check_a_root_that_lacks_half_of_the_files(real_data, tmp_path):
    folder, real = tmp_path / "eurosat", real_data("eurosat")
    (folder / "2750").mkdir(parents=True)
    shutil.copy(real / "split_zhou_EuroSAT.json", folder)
    there = ("AnnualCrop", "Forest", "Pasture", "River", "SeaLake")
    for name in there:
        (folder / "2750" / name).symlink_to(real / "2750" / name)
    lists = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    present = [sum(path.startswith(there) for path, _, _ in rows) for rows in lists.values()]
    total = sum(map(len, lists.values()))
    run, report = check("eurosat", "--root", tmp_path, "--quick")
    assert run.exit_code == 1 and not report["usable"]
    assert [split["present"] for split in report["splits"].values()] == present
    half, classes = report["faults"]
    assert half.startswith(f"{total - sum(present)} of {total} listed images are not in")
    assert half.count(".jpg'") == 5
    assert classes.startswith(
        "5 classes have none of their images, first: 'Herbaceous Vegetation Land', 'High"
    )
