"""A folder of results that many processes may fill at once, and any of them may be killed.

``results/NAME.json`` is the truth: one immutable file per finished cell, renamed into place when it is
whole; see `Cell.file_name`. ``adapters/NAME`` is what was learned, ``failures/NAME.json`` says why a cell has
no result, ``locks/`` who works at what: the operating system takes a lock from a process that dies.

Results also travel as one file of JSON lines, a line per cell: `write_results` and `read_results`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, ModelWrapValidatorHandler, ValidationError, model_validator

import promptprism
from promptprism.errors import PromptPrismError, first_problem
from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.suites import Cell, digest_of, keys
from promptprism.files import check_regular, is_there, locked, remove, write_text
from promptprism.methods import METHODS
from promptprism.provenance import BackboneFacts, Facts
from promptprism.training.loop import TrainResult

_AGAIN = "Move it away: the next run of its suite makes it again from what was learned"
_WITHOUT = "Take the line out, or export the results again"


class CellResult(Facts):
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
        images_learned: fingerprint of the images learned from; with it the keys can be made again.
        training: what training was and cost.
        scores: by part, such as base and new.
        images: number of test images of each class, by part.
        summary: the figures that papers print; None if the run collapsed.
        extra: what else is known of the cell; it is no part of the key, and tables do without it.
    """

    format: Literal[2, 3] = 3
    key: str
    learned: str
    promptprism: str = promptprism.__version__
    revision: str | None
    finished: str
    cell: Cell
    phrase: str
    backbone: BackboneFacts
    fingerprints: dict[str, str]
    images_learned: str | None = None
    training: TrainResult
    scores: dict[str, Evaluation]
    images: dict[str, dict[str, int]]
    summary: dict[str, float] | None
    extra: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keyed_as_now(cls, given: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Of an earlier version of its method: with the keys that it would have now."""
        result = make(given)
        cell = given.get("cell") if isinstance(given, Mapping) else None
        if not isinstance(cell, Mapping) or cell.get("version", 1) == result.cell.version:
            return result
        if result.images_learned is None:
            return result
        learned, key = keys(result.cell, result.backbone, result.fingerprints, result.images_learned)
        return result.model_copy(update={"learned": learned, "key": key})


class _Failure(BaseModel):
    """Why a cell has no result; it has one if ``key``, known by then, has."""

    cell: Cell
    key: str
    error: str
    time: str


class Store:
    """A results folder; made if it is not there. One that is finished is only read.

    Raises:
        PromptPrismError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("results", "adapters", "failures", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not (folder / "results").is_dir():
                raise PromptPrismError(
                    f"cannot write results to '{folder}' ({error.strerror}): choose another folder"
                ) from error

    def adapter(self, cell: Cell, learned: str) -> Path:
        """Where what a cell has learned is, or goes."""
        return self.folder / "adapters" / cell.file_name(learned)

    def result(self, cell: Cell, key: str) -> Path:
        """Where the result of a cell is, or goes."""
        return _result(self.folder, cell, key)

    @contextmanager
    def claim(self, name: str, wait: float = 0.0) -> Iterator[bool]:
        """Hold a name for this process, unless another holds it for longer than ``wait`` seconds.

        What the last holder left half-done is removed.

        Raises:
            PromptPrismError: the lock cannot be used, for instance one that belongs to another user.
        """
        with locked(self.folder / "locks" / f"{name}.lock", wait) as mine:
            if mine:
                for place in ("results", "adapters"):
                    for rest in (self.folder / place).glob(f".{name}*.partial"):
                        remove(rest)
            yield mine

    def finish(self, result: CellResult) -> None:
        """Write the result of a cell."""
        write_text(self.result(result.cell, result.key), result.model_dump_json(indent=1) + "\n")
        remove(self._failure(result.cell))

    def add(self, result: CellResult) -> bool:
        """Write the result of a cell that was run elsewhere, if there is none; whether it was written."""
        path = self.result(result.cell, result.key)
        with self.claim(path.stem) as mine:
            new = mine and not path.exists()
            if new:
                self.finish(result)
            return new

    def fail(self, key: str, cell: Cell, error: str) -> None:
        """Record why a cell has no result, if that can be written; it is tried again by the next run."""
        failure = _Failure(
            cell=cell, key=key, error=error, time=datetime.now(UTC).isoformat(timespec="seconds")
        )
        with suppress(PromptPrismError):
            write_text(self._failure(cell), failure.model_dump_json(indent=1) + "\n")

    def _failure(self, cell: Cell) -> Path:
        # By the cell alone: it may have failed before its key was known.
        return self.folder / "failures" / f"{cell.file_name(digest_of(cell=cell.differing()))}.json"


def read_failures(folder: Path) -> list[tuple[Cell, str]]:
    """Cell and error of every cell of a results folder whose last attempt failed; nothing is written.

    A note that is damaged is none: it says nothing that the next run would not find out.
    """
    found = []
    for path in sorted((folder / "failures").glob("*.json")):
        with suppress(ValidationError, PromptPrismError):
            found.append(_Failure.model_validate_json(_content(path)))
    failed = [one for one in found if not _result(folder, one.cell, one.key).exists()]
    return [(one.cell, one.error) for one in sorted(failed, key=lambda one: one.time)]


def _result(folder: Path, cell: Cell, key: str) -> Path:
    return folder / "results" / f"{cell.file_name(key)}.json"


def read_result(path: Path) -> CellResult:
    """Read one result.

    Raises:
        PromptPrismError: it is damaged or of another version.
    """
    return _parsed(_content(path), f"'{path}'", _AGAIN)


def read_results(place: Path, needed: bool = True) -> list[CellResult]:
    """Read all results of a folder that suites were run into, or of a file of `write_results`, in its order.

    Args:
        place: the folder or file.
        needed: refuse a place that has none.

    Raises:
        PromptPrismError: it is no such place; see `read_result`.
    """
    if place.is_file():
        lines = enumerate(_content(place).splitlines(), 1)
        results = [
            _parsed(line, f"line {number} of '{place}'", _WITHOUT) for number, line in lines if line.strip()
        ]
    else:
        results = [read_result(path) for path in (place / "results").glob("*.json")]
    if needed and not is_there(place):
        raise PromptPrismError(f"no such results: '{place}'. Check the path and its spelling")
    if needed and not results:
        raise PromptPrismError(
            f"'{place}' holds no results: give the folder of `promptprism suite --out`, or the file of "
            "`promptprism results export`"
        )
    return sorted(results, key=_order)


def write_results(path: Path, results: Iterable[CellResult]) -> int:
    """Write results as JSON lines, a line per cell, in the same order whatever theirs is.

    Returns:
        How many there are now: of several results of one key the latest is kept.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    latest = {result.key: result for result in sorted(results, key=lambda result: result.finished)}
    lines = [f"{result.model_dump_json()}\n" for result in sorted(latest.values(), key=_order)]
    write_text(path, "".join(lines))
    return len(lines)


def _order(result: CellResult) -> tuple[str | int, ...]:
    cell = result.cell
    return cell.protocol, cell.data, cell.method, cell.shots, cell.seed, result.key


def _content(path: Path) -> bytes:
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise PromptPrismError(f"cannot read result '{path}' ({error.strerror})") from error


def _parsed(text: bytes, place: str, remedy: str) -> CellResult:
    try:
        return CellResult.model_validate_json(text)
    except ValidationError as error:
        first, reader = error.errors()[0], f"this promptprism ({promptprism.__version__})"
        what = f"is no result that {reader} reads: {first_problem(error.errors())}"
        if first["type"] == "json_invalid":
            what = f"is damaged or cut short ({first['msg']})"
        elif first["loc"] == ("cell", "settings") and json.loads(text)["cell"]["method"] not in METHODS:
            what, remedy = f"is of a method that is not here: {first_problem(error.errors())}", ""
        elif first["loc"] == ("format",):
            reads = CellResult.model_fields["format"].default
            what = f"has format {first['input']!r}, {reader} reads {reads}"
        raise PromptPrismError(f"{place} {what.rstrip('.')}. {remedy}".strip()) from error
