"""A folder of results that many processes may fill at once, and any of them may be killed.

``results/KEY.json`` is the truth: one immutable file per finished cell, renamed into place when it is
whole. ``adapters/KEY`` is what was learned, ``index.sqlite`` says what failed, ``locks/`` who works at what:
the operating system takes a lock from a process that dies.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

import promptprism
from promptprism.errors import PromptPrismError
from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.suites import Cell
from promptprism.files import write_bytes
from promptprism.provenance import BackboneFacts
from promptprism.training.loop import TrainResult

_TABLE = """CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, state TEXT NOT NULL, cell TEXT NOT NULL, error TEXT, time TEXT NOT NULL)"""


class CellResult(BaseModel):
    """Result of one finished cell.

    Attributes:
        format: version of this layout.
        key: see `promptprism.evaluation.suites.keys`.
        learned: key of the adapter that was scored.
        promptprism: version that wrote it.
        revision: git revision of the code, None if it is not known.
        finished: time, UTC.
        cell: what was run.
        phrase: hand-crafted text of the data learned from.
        backbone: the frozen model.
        fingerprints: of the data set and the targets.
        training: what training was and cost.
        scores: by part, such as base and new.
        images: number of test images of each class, by part.
        summary: the figures that papers print; None if the run collapsed.
        extra: what else is known of the cell; it is no part of the key, and tables do without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    key: str
    learned: str
    promptprism: str = promptprism.__version__
    revision: str | None
    finished: str
    cell: Cell
    phrase: str
    backbone: BackboneFacts
    fingerprints: dict[str, str]
    training: TrainResult
    scores: dict[str, Evaluation]
    images: dict[str, dict[str, int]]
    summary: dict[str, float] | None
    extra: dict[str, JsonValue] = Field(default_factory=dict)


class Store:
    """A results folder; made if it is not there.

    Raises:
        PromptPrismError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("results", "adapters", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PromptPrismError(
                f"cannot write results to '{folder}' ({error.strerror}): choose another folder"
            ) from error
        with self._index() as index:
            index.execute(_TABLE)

    def adapter(self, key: str) -> Path:
        """Where what was learned under this key is, or goes."""
        return self.folder / "adapters" / key

    def result(self, key: str) -> Path:
        """Where the result of a cell is, or goes."""
        return self.folder / "results" / f"{key}.json"

    @contextmanager
    def claim(self, key: str, wait: float = 0.0) -> Iterator[bool]:
        """Hold a key for this process, unless another holds it for longer than ``wait`` seconds.

        What the last holder left half-done is removed.

        Raises:
            PromptPrismError: the lock cannot be used, for instance one that belongs to another user.
        """
        path = self.folder / "locks" / f"{key}.lock"
        if path.exists() and not os.access(path, os.W_OK):  # where SQLite would let everybody in
            raise PromptPrismError(_unusable(path, "it is another user's, or read-only"))
        with closing(sqlite3.connect(path, timeout=wait, isolation_level=None)) as lock:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise PromptPrismError(_unusable(path, error)) from error
                yield False
                return
            for place in ("results", "adapters"):
                for rest in (self.folder / place).glob(f".{key}*.partial"):
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            yield True

    def finish(self, result: CellResult) -> None:
        """Write the result of a cell."""
        write_bytes(self.result(result.key), (result.model_dump_json(indent=1) + "\n").encode())
        self._note(result.key, "done", result.cell, None)

    def fail(self, key: str, cell: Cell, error: str) -> None:
        """Record why a cell has no result; it is tried again by the next run."""
        self._note(key, "failed", cell, error)

    def _note(self, key: str, state: str, cell: Cell, error: str | None) -> None:
        time, text = datetime.now(UTC).isoformat(timespec="seconds"), cell.model_dump_json()
        with self._index() as index:
            # Attempts that failed before the key was known, or with other data, are over.
            index.execute("DELETE FROM cells WHERE cell = ? AND state = 'failed'", (text,))
            index.execute("REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", (key, state, text, error, time))

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "index.sqlite"
        try:
            with closing(sqlite3.connect(path, timeout=60)) as index, index:
                yield index
        except sqlite3.Error as error:
            raise PromptPrismError(_unusable(path, error)) from error


def read_failures(folder: Path) -> list[tuple[Cell, str]]:
    """Cell and error of every cell of a results folder whose last attempt failed; nothing is written.

    Raises:
        PromptPrismError: the index is damaged.
    """
    path = folder / "index.sqlite"
    if not path.is_file():  # results that were copied or committed
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as index:
            rows = index.execute("SELECT key, cell, error FROM cells WHERE state = 'failed'").fetchall()
    except sqlite3.Error as error:
        raise PromptPrismError(_unusable(path, error)) from error
    return [
        (Cell.model_validate_json(cell), error)
        for key, cell, error in rows
        if not (folder / "results" / f"{key}.json").exists()
    ]


def _unusable(path: Path, error: sqlite3.Error | str) -> str:
    return (
        f"cannot use '{path}' ({error}): check its permissions, free some space, or delete it; the results "
        "themselves are in "
        f"'{path.parent / 'results'}'"
    )


def read_result(path: Path) -> CellResult:
    """Read one result.

    Raises:
        PromptPrismError: it is damaged or of another version.
    """
    try:
        return CellResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PromptPrismError(f"cannot read result '{path}' ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = (
            f"is no result that this promptprism ({promptprism.__version__}) reads: {place}: {first['msg']}"
        )
        if first["type"] == "json_invalid":
            what = f"is damaged or cut short ({first['msg']})"
        elif place == "format":
            reads = CellResult.model_fields["format"].default
            what = (
                f"has format {first['input']!r}, this promptprism ({promptprism.__version__}) reads {reads}"
            )
        raise PromptPrismError(
            f"'{path}' {what}. Move it away: the next run of its suite makes it again from what was learned"
        ) from error


def read_results(folder: Path) -> list[CellResult]:
    """Read all results of a folder that suites were run into, in the order of their keys.

    Raises:
        PromptPrismError: it is no such folder, or holds none; see `read_result`.
    """
    paths = sorted((folder / "results").glob("*.json"))
    if not paths:
        raise PromptPrismError(f"'{folder}' holds no results: give the folder of `promptprism suite --out`")
    return [read_result(path) for path in paths]
