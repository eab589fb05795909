"""Heaps of photos: tables, folders, abstention, and going on."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from toys import COLOURS, picture
from typer.testing import CliRunner

from promptprism import adapter
from promptprism.backbones import load_backbone
from promptprism.cli import app
from promptprism.inference import lines as lines_module

FORMAT_1 = Path(__file__).parents[1] / "adapters" / "format-1"
CLASSES = ("--classes", "red,blue,green")


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini")


@pytest.fixture(autouse=True)
def backbone(mini, monkeypatch):
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: mini)


@pytest.fixture
def heap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        folder = tmp_path / "heap" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture([*COLOURS][number % 3], number)).save(folder / f"{number // 2}.png")
    (tmp_path / "heap" / "0" / "broken.png").write_bytes(b"GIF89a")
    (tmp_path / "heap" / "notes.txt").write_text("no photo")
    return tmp_path / "heap"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "100"})
    assert result.exit_code == code, result.output + result.stderr
    return result


def lines(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_heap_is_summed_up_and_the_most_doubtful_are_shown(heap):
    run(FORMAT_1, "heap", *CLASSES, "--out", "a.csv", code=1)
    least = sorted(float(line["probability"] or 2) for line in lines("a.csv"))[5]
    options = ("--abstain-below", least, "--json", "a.json")
    done = run(FORMAT_1, "heap", *CLASSES, "--out", "a.csv", *options, code=1)
    content, table = json.loads(Path("a.json").read_text()), lines("a.csv")
    rows = content["predictions"]
    assert len(rows) == 24 and [row["image"] for row in content["unread"]] == ["heap/0/broken.png"]
    answered = [line for line in table if line["abstained"] == "False"]
    assert len(table) == 25 and sum(content["counts"].values()) == len(answered) == 24 - content["abstained"]
    assert content["abstained"] == 5 and content["threshold"] == least
    for row, line in zip(rows, [line for line in table if not line["error"]], strict=True):
        assert (line["path"], line["class"]) == (row["image"], row["class"])
        assert float(line["probability"]) == row["probability"] == row["top"][0]["probability"]
        assert line["runner_up"] == row["top"][1]["class"] and float(line["disagreement"]) == 0
        assert (line["abstained"] == "True") == (row["probability"] < least)
    assert [line["path"] for line in table if line["error"]] == ["heap/0/broken.png"]
    shown = re.findall(r"heap/\d/\d+\.png", done.output.split("The 20 most doubtful")[1])
    assert shown[:20] == [row["image"] for row in sorted(rows, key=lambda row: row["probability"])[:20]]
    assert "1 files are no images" in done.output and "no answer (below" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_run_that_was_stopped_is_gone_on_with(heap, monkeypatch, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    options = (FORMAT_1, "heap", *CLASSES, "--sort-into", "sorted")
    added, lines_of = [], lines_module.line_of

    def stopped(row, abstained):
        if len(added) == 7:
            raise KeyboardInterrupt
        added.append(row["image"])
        return lines_of(row, abstained)

    monkeypatch.setattr(lines_module, "line_of", stopped)
    out = f"a.{ending}"
    said = run(*options, "--out", out, code=130)
    assert f"'{out}' and 'sorted': the same command goes on from here" in said.stderr.replace("\n    ", " ")
    assert len(lines("sorted/sorted.csv")) == 8  # sorted before the answer is written
    monkeypatch.setattr(lines_module, "line_of", lambda *of: added.append(of[0]["image"]) or lines_of(*of))
    (heap / "0" / "broken.png").unlink()
    content = json.loads(run(*options, "--out", out, "--json", "-").stdout)
    assert content["answered_before"] == 7 and len(content["predictions"]) == 24
    assert len(added) == len(set(added)) == 24 == len(lines("sorted/sorted.csv"))
    assert len(list(Path("sorted").rglob("*.png"))) == 24
    Image.fromarray(picture("red", 9)).save(heap / "new.png")
    added.clear()
    assert "24 were answered before" in run(*options, "--out", out).output and added == ["heap/new.png"]
    refused = run(FORMAT_1, "heap", "--classes", "red,blue", "--out", out, code=2)
    assert "holds answers of another adapter" in refused.stderr.replace("\n    ", " ")


@pytest.mark.slow
def test_sorting_alone_goes_on_too(heap):
    options = (FORMAT_1, "heap", *CLASSES, "--sort-into", "sorted", "--abstain-below", 1, "--move")
    run(*options, code=1)
    assert not list(heap.rglob("[0-9].png")) and len(list(Path("sorted/_abstained").iterdir())) == 24
    assert "none of" not in run(FORMAT_1, "heap", *CLASSES, code=2).stderr  # one that is broken
    Image.fromarray(picture("red", 9)).save(heap / "new.png")
    run(*options, code=1)
    assert Path("sorted/_abstained/new.png").exists()
    refused = run(*options[:-1], code=2)
    assert "another adapter" in refused.stderr


@pytest.mark.slow
def test_a_heap_that_was_sorted_all_but_what_is_broken_ends_as_before(heap):
    for _ in range(2):
        run(FORMAT_1, "heap", *CLASSES, "--sort-into", "sorted", code=1)


@pytest.mark.slow
def test_what_cannot_be_meant_is_refused_before_anything_is_looked_at(heap):
    for options, words in (
        (("--link", "--move", "--sort-into", "x"), "leave out --link or --move"),
        (("--move",), "add --sort-into"),
        (("--abstain-below", "1.5"), "no probability"),
        (("--abstain-below", "nan"), "no probability"),
        (("--abstain-below", "calibrated"), "no calibrated threshold"),
        (("--out", "a.txt"), "must end in .csv or .parquet"),
        (("--sort-into", "heap/sorted"), "into itself"),
        (("--sort-into", "."), "holds other files"),
        (("--templates",), "'coop' has no opinions"),
    ):
        said = " ".join(run(FORMAT_1, "heap", *CLASSES, *options, code=2).stderr.split())
        assert words in said, options
    assert sorted(path.name for path in Path().iterdir()) == ["heap"]
    assert "nothing is like" in run(FORMAT_1, "none/*.png", code=2).stderr
