"""Sort a heap of photos: learn from a few, answer all, look at some, learn again; what was that worth?

    python examples/sort_flowers.py DATA/flowers12 --json benchmarks/results/sort_flowers.json

The data is a folder with a folder per class, inside train/ and test/ or not; without one it is flowers12
below PROMPTPRISM_DATA. A few photos of each class are labelled, many lie in a heap without labels, a broken
file among them, and the rest is kept to score on. Who looks at the photos that the adapter asks about is the
data, which knows their labels.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from fastapi.testclient import TestClient

from promptprism import load_data, load_model
from promptprism.cli import app
from promptprism.data.records import Record
from promptprism.data.splits import few_shot
from promptprism.serving.review import Review, review_app


def promptprism(*arguments: object, code: int = 0) -> None:
    """Run a command as on a terminal."""
    print("\n$ promptprism", *arguments, flush=True)
    try:
        app([*map(str, arguments)])
    except SystemExit as ended:
        if ended.code != code:
            raise


def lay_out(data: Path, place: Path, shots: int, heaped: int) -> dict[Path, str]:
    """Copy photos into labelled/, heap/ and rest/; gives the classes of those in the heap."""
    dataset = load_data(data)
    records = (*dataset.train, *dataset.val, *dataset.test)
    first = few_shot(records, shots, seed=1)
    others = random.Random(1).sample([of for of in records if of not in first], len(records) - len(first))

    def copy(record: Record, folder: Path, number: int) -> Path:
        source = Path(str(record.source))
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(source, folder / f"{number:05}{source.suffix}"))

    truth = {}
    for name, part in (("labelled", first), ("rest", others[heaped:])):
        for number, record in enumerate(part):
            copy(record, place / name / dataset.class_names[record.label], number)
    for number, record in enumerate(others[:heaped]):
        truth[copy(record, place / "heap", number)] = dataset.class_names[record.label]
    (place / "heap" / "broken.jpg").write_bytes(b"no photo")
    return truth


def review(adapter: Path, heap: Path, asked: Path, truth: dict[Path, str], corrections: Path) -> None:
    """Say of each photo asked for what it is, as the page of `promptprism review` does."""
    names = {Path(line.split(",")[0]).name for line in asked.read_text().splitlines()[1:]}
    looked_at = Review(load_model(adapter), heap, corrections)
    looked_at.answer()
    client = TestClient(review_app(looked_at, "token", ("testserver",)), headers={"X-Token": "token"})
    for photo in client.get("/api/state").json()["photos"]:
        if photo["name"] in names:
            label = {"number": photo["id"], "label": truth[heap / photo["name"]]}
            client.post("/api/label", json=label).raise_for_status()


def main(
    data: Annotated[Path | None, typer.Argument(help="Folder with train/ and test/.")] = None,
    shots: Annotated[int, typer.Option(help="Labelled photos per class to begin with.")] = 8,
    heaped: Annotated[int, typer.Option("--heap", help="Photos in the heap.")] = 660,
    asked: Annotated[int, typer.Option("--review", help="Photos that somebody looks at.")] = 60,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Settings of the method.")] = None,
    backbone: Annotated[str, typer.Option(help="See promptprism fit.")] = "auto",
    method: Annotated[str, typer.Option(help="See promptprism fit.")] = "cdc",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what came of it here.")] = None,
) -> None:
    """Go the whole way, and print the accuracy before and after."""
    data = data or Path(os.environ.get("PROMPTPRISM_DATA", ".")) / "flowers12"
    options = ["--shots", "all", "--backbone", backbone, "--method", method]
    options += [word for one in settings or () for word in ("--set", one)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        truth = lay_out(data, work, shots, heaped)
        asked_for, corrections, accuracy = work / "next.csv", work / "review.csv", {}
        promptprism("fit", work / "labelled", *options, "--out", work / "before")
        promptprism("predict", work / "before", work / "heap", "--out", work / "answers.csv", code=1)
        promptprism("suggest", work / "before", work / "heap", "--next", asked, "--out", asked_for, code=1)
        review(work / "before", work / "heap", asked_for, truth, corrections)
        corrected = ["--corrections", corrections, "--out", work / "after"]
        promptprism("fit", work / "labelled", *options, *corrected)
        for name in ("before", "after"):
            found = work / f"{name}.json"
            promptprism("evaluate", work / name, work / "rest", "--json", found)
            accuracy[name] = json.loads(found.read_text())["accuracy"]
    if json_file:
        facts = {"data": data.name, "method": method, "shots": shots, "photos": len(truth), "reviewed": asked}
        json_file.write_text(json.dumps(facts | accuracy, indent=2) + "\n")
    print(
        f"\n{len(truth)} photos answered, {asked} looked at. Accuracy on other photos: "
        f"{accuracy['before']:.1%} before, {accuracy['after']:.1%} after"
    )


if __name__ == "__main__":
    typer.run(main)
