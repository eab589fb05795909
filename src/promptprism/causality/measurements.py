"""Measurements beside a suite's results: one JSON file a piece, shared by processes, safe to kill."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from promptprism.errors import PromptPrismError
from promptprism.evaluation.store import Store
from promptprism.files import write_text


def measure(
    store: Store,
    kind: str,
    works: Mapping[str, Callable[[], BaseModel]],
    show: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Do each piece of work that has no file ``FOLDER/KIND/NAME.json`` yet, and write it there.

    What another process is doing is waited for.

    Args:
        store: the results folder.
        kind: names the subfolder.
        works: by name, which says what decides the numbers (`Cell.file_name`); what they return is written.
        show: told of what is going on.

    Returns:
        The files by name, and the errors of those that failed. They are tried again by the next run.
    """
    files = {name: store.folder / kind / f"{name}.json" for name in works}
    failed: dict[str, str] = {}
    waiting = [name for name, file in files.items() if not file.exists()]
    while waiting:
        elsewhere = []
        for name in waiting:
            with store.claim(f"{kind}-{name}") as mine:
                if not mine:
                    elsewhere.append(name)
                elif not files[name].exists():
                    done = sum(file.exists() for file in files.values())
                    show(f"{kind}: {done} of {len(files)} done")
                    try:
                        write_text(files[name], works[name]().model_dump_json(indent=1) + "\n")
                    except PromptPrismError as error:
                        failed[name] = str(error)
        if elsewhere and len(elsewhere) == len(waiting):
            show(f"{kind}: waiting for {len(elsewhere)} that run elsewhere")
            time.sleep(1)
        waiting = elsewhere
    return {name: file for name, file in files.items() if name not in failed}, failed
