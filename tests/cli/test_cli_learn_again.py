"""Suggest, fit with corrections, evaluate with mistakes, as users call them."""

import json
import re

import pytest
from called import HEAD, documented, run
from PIL import Image
from toys import picture

from promptprism import PromptPrism
from promptprism.adapter import read_card


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of three colours, photos beside it, and an adapter `a`."""
    folder = tmp_path_factory.mktemp("again")
    for part, numbers in (("data/train", range(4)), ("data/test", range(4, 7)), ("other", range(20, 23))):
        names = ("yellow", "black") if part == "other" else ("red", "green", "blue")
        for colour in names:
            for number in numbers:
                path = folder / part / colour / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(colour, number)).save(path)
    PromptPrism("cdc", "mini", templates=2, shots=2, epochs=1).fit(folder / "data").save(folder / "a")
    return folder


@pytest.mark.slow
def test_suggest_writes_what_fit_reads(place, tmp_path):
    (place / "data" / "test" / "red" / "broken.png").write_bytes(b"none")
    out = tmp_path / "the next.csv"
    told = tmp_path / "told.json"
    result = run("suggest", place / "a", place / "data", "--next", 4, "--out", out, "--json", told, code=1)
    content = json.loads(told.read_text())
    assert content.keys() == documented("suggest") | HEAD
    assert len(content["suggestions"]) == 4 and content["learned_from"] == 6 and content["images"] == 22
    assert len(content["unread"]) == 1 and "broken.png" in content["unread"][0]
    (place / "data" / "test" / "red" / "broken.png").unlink()
    learnt = f"promptprism fit --from {place / 'a'} --corrections '{out}' --out NEW"
    assert "".join(learnt.split()) in "".join(result.stdout.split())
    head, *lines = out.read_text().splitlines()
    assert head == "path,label,predicted,probability,at" and len(lines) == 4
    run("suggest", place / "a", place / "data", "--out", out, code=2)
    filled = [re.sub(r"^([^,]*/(red|green|blue)/[^,]*),,", r"\1,\2,", line) for line in lines]
    out.write_text("\n".join([head, *filled]) + "\n")
    result = run("fit", "--from", place / "a", "--corrections", out, "--out", tmp_path / "b", "--json", "-")
    assert json.loads(result.stdout)["data"]["corrections"] == 4
    for packed in (["wds:red"], ["--labelled", "red.tar"]):
        result = run("suggest", place / "a", *packed, "--out", tmp_path / "other.csv", code=2)
        assert "photos in shards are none: unpack the shards" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_suggest_finds_labels_that_look_wrong(place):
    content = json.loads(run("suggest", place / "a", "--labelled", place / "data", "--json", "-").stdout)
    assert content["images"] == 21 and content["learned_from"] == 6
    assert all(row["truth"] != row["class"] for row in content["suggestions"])
    assert "give PHOTOS to choose from" in run("suggest", place / "a", code=2).output


@pytest.mark.slow
def test_evaluate_tells_apart_what_was_learned_from(place, tmp_path):
    content = json.loads(run("evaluate", place / "a", place / "data" / "train", "--json", "-").stdout)
    assert content["images"] == 12 and content["learned_from"] == 6 and content["held_out"]["images"] == 6
    page = tmp_path / "mistakes.html"
    arguments = ["--others", place / "other", "--html", page]
    content = json.loads(run("evaluate", place / "a", place / "data", *arguments, "--json", "-").stdout)
    assert content["learned_from"] == 0 and content["held_out"] is None
    assert sum(map(sum, content["confusion"])) == 9 == sum(row["images"] for row in content["by_class"])
    wrong = round(9 * (1 - content["accuracy"]))
    assert len(content["mistakes"]) == wrong == sum(pair["images"] for pair in content["confused"])
    assert 0 <= content["metrics"]["ood/auroc_max_prob"] <= 1
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == wrong and "http" not in text
    found = read_card(place / "a").evaluations
    assert [(one.split, one.images, one.learned_from) for one in found] == [("all", 12, 6), ("test", 9, 0)]
    assert found[1].accuracy == pytest.approx(content["accuracy"])
    run("evaluate", place / "a", place / "data")
    assert len(read_card(place / "a").evaluations) == 2
    shown = " ".join(run("info", place / "a").output.split())
    assert re.search(r"evaluated .*all: [\d.]+ % of 12 images right, .*; learned from 6 of them", shown)


@pytest.mark.slow
def test_scores_that_cannot_be_kept_are_still_told(place, monkeypatch):
    from promptprism import adapter
    from promptprism.errors import PromptPrismError

    def refuse(path, card):
        raise PromptPrismError("cannot write 'card.json' (Read-only file system)")

    before = (place / "a" / "card.json").read_bytes()
    monkeypatch.setattr(adapter, "write_card", refuse)
    shown = run("evaluate", place / "a", place / "data")
    assert "not in the adapter's card" in shown.output and (place / "a" / "card.json").read_bytes() == before
    assert sorted(path.name for path in (place / "a").iterdir()) == ["adapter.safetensors", "card.json"]


@pytest.mark.slow
def test_others_of_the_same_classes_are_refused(place):
    result = run("evaluate", place / "a", place / "data", "--others", place / "data", code=2)
    assert "give photos of other classes" in " ".join(result.output.split())


@pytest.mark.slow
def test_labels_come_from_label_studio(place, tmp_path):
    photos, review, tasks = place / "data" / "test", tmp_path / "review.csv", tmp_path / "tasks.json"
    options = ("review", place / "a", photos, "--corrections", review)
    assert "9 tasks are in" in run(*options, "--export-label-studio", tasks).output
    assert not review.exists()
    content = json.loads(tasks.read_text())
    for task in content:  # as people answer there, and as it writes addresses of local files
        (predicted,) = task["predictions"]
        assert 0 < predicted["score"] <= 1
        name = task["data"]["image"]
        (result,) = predicted["result"]
        task["annotations"] = [{"result": [{**result, "value": {"choices": [name.split("/")[0].title()]}}]}]
        task["data"]["image"] = f"/data/local-files/?d={name}"
    tasks.write_text(json.dumps(content))
    again = tmp_path / "again.json"
    run(*options, "--import-label-studio", tasks, "--export-label-studio", again)
    labels = [
        task["annotations"][0]["result"][0]["value"]["choices"] for task in json.loads(again.read_text())
    ]
    assert labels == [[colour] for colour in ("blue", "green", "red") for _ in range(3)]
    arguments = ("--from", place / "a", "--corrections", review, "--set", "epochs=1", "--out", tmp_path / "b")
    assert json.loads(run("fit", *arguments, "--json", "-").stdout)["data"]["corrections"] == 9
