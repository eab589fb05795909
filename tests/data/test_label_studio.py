import json

import pytest

from promptprism.data.corrections import Correction
from promptprism.data.label_studio import read_tasks, write_tasks
from promptprism.errors import PromptPrismError


def test_tasks_come_back_as_they_were_written(tmp_path):
    file = tmp_path / "tasks.json"
    write_tasks(
        file, [("a.jpg", "rose", 0.5, "iris"), ("b.jpg", "rose", 0.9, ""), ("c", "", None, "")], "cdc"
    )
    tasks = json.loads(file.read_text())
    assert tasks[1] == {
        "data": {"image": "b.jpg"},
        "predictions": [
            {
                "model_version": "cdc",
                "score": 0.9,
                "result": [
                    {
                        "from_name": "label",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": ["rose"]},
                    }
                ],
            }
        ],
    }
    assert read_tasks(file, tmp_path, ["Iris"]) == [Correction(tmp_path / "a.jpg", "Iris")]


def test_what_is_no_export_is_refused(tmp_path):
    file = tmp_path / "tasks.json"

    def task(image, choices):
        result = [{"type": "choices", "value": {"choices": choices}}]
        return json.dumps([{"data": {"image": image}, "annotations": [{"result": result}]}])

    for content, words in (
        ("{", "export as JSON"),
        ("[1]", "export as JSON"),
        (json.dumps([{"image": "a.jpg", "label": "x"}]), "not as JSON-MIN"),
        (task("a.jpg", ["x", "y"]), "2 choices"),
        (task("../a.jpg", ["x"]), "which is not in"),
        (task("a.jpg", ["z"]), "'z', which is none of the 2 classes"),
    ):
        file.write_text(content)
        with pytest.raises(PromptPrismError, match=words):
            read_tasks(file, tmp_path, ["x", "y"])


def test_every_address_that_label_studio_gives_a_photo_is_understood(tmp_path):
    heap = tmp_path / "around" / "heap"
    (heap / "1").mkdir(parents=True)
    for name in ("1/a b.jpg", "c.jpg"):
        (heap / name).touch()
    for data, meant in (
        ({"image": "/data/local-files/?d=1/a%20b.jpg"}, "1/a b.jpg"),
        ({"image": "/data/local-files/?d=heap/1/a%20b.jpg"}, "1/a b.jpg"),
        ({"id": 7, "image": "/data/local-files/?d=around/heap/c.jpg"}, "c.jpg"),
        ({"photo": "https://here/data/upload/12/0a1b2c3d-c.jpg"}, "c.jpg"),
        ({"image": "/data/upload/12/0a1b2c3d-c.jpg"}, "c.jpg"),
        ({"image": "/data/local-files/?d=other/c.jpg"}, "other/c.jpg"),
    ):
        result = [{"type": "choices", "value": {"choices": ["x"]}}]
        file = tmp_path / "tasks.json"
        file.write_text(json.dumps([{"data": data, "annotations": [{"result": result}]}]))
        assert read_tasks(file, heap, ["x"]) == [Correction(heap / meant, "x")], data
