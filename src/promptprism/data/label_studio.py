"""Tasks of Label Studio as JSON: photos with predictions, and the choices that people made."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from promptprism.data.corrections import Correction
from promptprism.data.names import name_key
from promptprism.data.reading import read_text
from promptprism.errors import PromptPrismError
from promptprism.files import is_there, write_text


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
        folder: of the photos; names are relative to it, or to a folder around it that Label Studio serves.
            The photo is what ``data`` calls ``image``, or else its first entry.
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
            data = task["data"]
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
            photo = _photo(folder, str(data["image"] if "image" in data else next(iter(data.values()))))
            if not photo.resolve().is_relative_to(folder.resolve()):
                raise PromptPrismError(f"task {number} of '{path}' has '{photo}', which is not in '{folder}'")
            found.append(Correction(photo, label))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise PromptPrismError(
            f"'{path}' is no JSON of Label Studio's tasks ({type(error).__name__}: {error}): export as JSON, "
            "not as JSON-MIN"
        ) from error
    return found


def _choice(name: str) -> dict[str, Any]:
    return {
        "result": [
            {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
        ]
    }


def _photo(folder: Path, address: str) -> Path:
    """The photo that Label Studio's address of a local file (``?d=``), of an upload or of the web means."""
    parts = urlsplit(address)
    if local := parse_qs(parts.query).get("d"):
        name = local[0]
    else:
        name = unquote(parts.path) if parts.scheme in ("http", "https", "file") else address
    # It puts uploads into a folder per project, under a name of its own in front of theirs.
    named = [name, re.sub(r"^.*/upload/\d+/[0-9a-f]{8}-", "", name)]
    here, there = folder.resolve().parts, Path(name).parts
    named += [str(Path(*there[n:])) for n in range(1, len(there)) if here[-n:] == there[:n]]
    return next((path for one in named if is_there(path := folder / one)), folder / name)
