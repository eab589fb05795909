"""Tasks of Label Studio as JSON: photos with predictions, and the choices that people made."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from promptprism.data.corrections import Correction
from promptprism.data.names import name_key
from promptprism.data.reading import read_text
from promptprism.errors import PromptPrismError
from promptprism.files import write_text


def write_tasks(path: Path, photos: Iterable[tuple[str, str, float | None, str]], model: str) -> None:
    """Write photos as tasks: name, class predicted (or none), its probability, and label (or none).

    Raises:
        PromptPrismError: the place cannot be written.
    """
    tasks = []
    for name, predicted, probability, label in photos:
        task: dict[str, Any] = {"data": {"image": name}}
        if predicted:
            task["predictions"] = [{"model_version": model, "score": probability, **_choice(predicted)}]
        if label:
            task["annotations"] = [_choice(label)]
        tasks.append(task)
    write_text(path, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")


def read_tasks(path: Path, folder: Path, class_names: Sequence[str]) -> list[Correction]:
    """Read what people chose; of several annotations of a photo the last that was not cancelled counts.

    Args:
        path: the JSON that Label Studio exports.
        folder: of the photos; names are relative to it.
        class_names: the label space; labels come back as it spells them.

    Raises:
        PromptPrismError: it is no such JSON, or a photo has several choices at once, one that is no class, or
            lies elsewhere.
    """
    names = {name_key(name): name for name in class_names}
    found = []
    try:
        tasks = json.loads(read_text(path, "Label Studio export"))
        for number, task in enumerate(tasks):
            chosen = [
                list(result["value"]["choices"])
                for annotation in task.get("annotations") or []
                if not annotation.get("was_cancelled")
                for result in annotation["result"]
                if result["type"] == "choices"
            ]
            if not chosen:
                continue
            if len(chosen[-1]) != 1:
                raise PromptPrismError(f"task {number} of '{path}' has {len(chosen[-1])} choices: leave one")
            if (label := names.get(name_key(str(chosen[-1][0])))) is None:
                raise PromptPrismError(
                    f"task {number} of '{path}' has label '{chosen[-1][0]}', which is none of the "
                    f"{len(names)} classes: name it with --classes, or change it there"
                )
            photo = Path(folder, _name(str(next(iter(task["data"].values())))))
            if not photo.resolve().is_relative_to(folder.resolve()):
                raise PromptPrismError(f"task {number} of '{path}' has '{photo}', which is not in '{folder}'")
            found.append(Correction(photo, label))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise PromptPrismError(
            f"'{path}' is no JSON of Label Studio's tasks ({type(error).__name__}: {error}): export as JSON"
        ) from error
    return found


def _choice(name: str) -> dict[str, Any]:
    return {
        "result": [
            {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
        ]
    }


def _name(address: str) -> str:
    """The file that Label Studio's address of local files (``?d=``) or of an upload means."""
    parts = urlsplit(address)
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    return unquote(parts.path) if parts.scheme in ("http", "https", "file") else address
