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
        (task("a.jpg", ["x", "y"]), "2 choices"),
        (task("../a.jpg", ["x"]), "which is not in"),
        (task("a.jpg", ["z"]), "'z', which is none of the 2 classes"),
    ):
        file.write_text(content)
        with pytest.raises(PromptPrismError, match=words):
            read_tasks(file, tmp_path, ["x", "y"])
    file.write_text(task("/data/local-files/?d=1/a%20b.jpg", ["x"]))
    assert read_tasks(file, tmp_path, ["x"]) == [Correction(tmp_path / "1/a b.jpg", "x")]
