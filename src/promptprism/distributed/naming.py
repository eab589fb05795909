"""One shard of photos: from a tar file to two tables, answers and what cannot be read, whole or not there.

The tables of a shard have its name. That of the answers comes last, so where it is, the shard is done; it
says in its metadata what the answers depend on and how many there are. Every photo is in one table, once.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from promptprism.data.growing import Line, arrow, schema_of, text_of
from promptprism.data.images import ImageSource
from promptprism.data.shards import Member, images_of
from promptprism.data.stores import (
    absolute,
    fetched,
    is_remote,
    joined,
    local,
    names_in,
    opened,
    size_of,
    written,
)
from promptprism.errors import PromptPrismError
from promptprism.inference.answers import Row, answers
from promptprism.inference.conformal import Sets
from promptprism.inference.lines import COLUMNS, line_of
from promptprism.methods import Classifier

#: Tables by their folder.
ANSWERS, UNREAD = "answers", "unread"
_KEY = b"promptprism"
# Lines that are held before they are written.
_BLOCK = 4096
# SQLite's own limit of values in a question is higher in every version.
_ASKED = 500


@dataclass(frozen=True)
class Naming:
    """What is done with every shard.

    Attributes:
        out: folder or address that the tables go to.
        run: 12 digits of what the answers depend on.
        threshold: least probability of an answer.
        margin: see `promptprism.inference.early`.
        sets: say which classes are in the conformal set.
        once: look once at pictures with the same bytes, as far as one machine can know.
    """

    out: str
    run: str
    threshold: float | None = None
    margin: float | None = None
    sets: Sets | None = None
    once: bool = False

    @property
    def seen(self) -> Path:
        """Where a machine keeps the answers for pictures, each in a file of its own."""
        folder = Path(tempfile.gettempdir()) if is_remote(self.out) else local(self.out)
        return folder / f".seen-{self.run}-{socket.gethostname()}.sqlite"

    def table(self, kind: str, shard: str) -> str:
        """Where a shard's table goes."""
        return joined(self.out, kind, f"{stem(shard)}.parquet")


@dataclass(frozen=True)
class Named:
    """A shard that is done.

    Attributes:
        run: see `Naming`.
        shard: its file's name and that of the folder around it: data may move.
        size: in bytes.
        images: in it.
        looked: how many of them the model has looked at.
        unread: how many cannot be read.
        abstained: how many have no answer.
        counts: photos by class, those without an answer left out.
        reasons: why photos cannot be read; of the first few.
        seconds: from its tar file to its tables.
        node: the machine.
        process: number of the process there.
    """

    run: str
    shard: str
    size: int
    images: int
    looked: int
    unread: int
    abstained: int
    counts: dict[str, int]
    reasons: list[str]
    seconds: float
    node: str
    process: int


@dataclass(frozen=True)
class Failed:
    """A shard that is not done.

    Attributes:
        shard: path or address.
        node: the machine.
        reason: what is wrong, and the remedy.
    """

    shard: str
    node: str
    reason: str


def stem(shard: str) -> str:
    """Name of a shard without its ending."""
    return Path(shard.rstrip("/")).stem


def attempt(classifier: Classifier, naming: Naming, shard: str) -> Named | Failed:
    """Name a shard; whatever is wrong with it must not stop the others."""
    try:
        return name_shard(classifier, naming, shard)
    except PromptPrismError as error:
        reason = str(error)
    except MemoryError:
        reason = "there is not enough memory: take fewer --workers"
    except Exception as error:  # one bad shard of many thousands
        reason = f"{type(error).__name__}: {error}"
    return Failed(shard, socket.gethostname(), reason)


def name_shard(classifier: Classifier, naming: Naming, shard: str) -> Named:
    """Answer for every photo of a shard, and write its tables.

    Raises:
        PromptPrismError: the shard is no whole tar file, or a table cannot be written; then there is none.
    """
    began, counts, reasons = time.perf_counter(), Counter[str](), []
    columns = {name: kind for name, kind in COLUMNS.items() if name != "error"}
    if naming.sets:
        columns["set"] = str
    images = unread = abstained = 0
    with fetched(shard) as path:
        members = list(images_of(path, shard))  # to its end, before any work
        seen = _Seen(naming.seen) if naming.once else None
        lines = _Lines(classifier, naming, members, seen)
        # The last is put in its place first.
        with (
            written(naming.table(ANSWERS, shard)) as answered,
            written(naming.table(UNREAD, shard)) as wrong,
            _Table(answered, columns) as good,
            _Table(wrong, {"path": str, "error": str}) as bad,
        ):
            for line in lines:
                images += 1
                if "error" in line:
                    unread += 1
                    reasons += [line["error"]] if unread <= 5 else []
                    bad.add(line)
                    continue
                abstained += line["abstained"]
                if not line["abstained"]:
                    counts[line["class"]] += 1
                good.add(line)
            named = Named(
                naming.run, _identity(shard), path.stat().st_size, images, lines.looked, unread, abstained,
                dict(counts), reasons, time.perf_counter() - began, socket.gethostname(), os.getpid(),
            )  # fmt: skip
            good.note(named)
        if seen:
            seen.add(lines.fresh)
    return named


class _Lines:
    """The lines of a shard's photos in their order; the same bytes are looked at once, where that is asked.

    Attributes:
        looked: photos that the model was asked about.
        fresh: lines by content that were not known before.
    """

    def __init__(
        self, classifier: Classifier, naming: Naming, members: Sequence[Member], seen: _Seen | None
    ) -> None:
        self.classifier, self.naming, self.members = classifier, naming, members
        self.looked, self.fresh = 0, dict[bytes, Line]()
        self._digests = [sha256(member.content()).digest() for member in members] if seen else []
        self._known = seen.known(self._digests) if seen else {}

    def __iter__(self) -> Iterator[Line]:
        naming = self.naming
        rows = answers(self.classifier, self._asked(), margin=naming.margin, sets=naming.sets)
        if not self._digests:
            yield from map(self._line, rows)
            return
        for member, digest in zip(self.members, self._digests, strict=True):
            if (line := self._known.get(digest)) is None:
                line = self._known[digest] = self._line(next(rows))
                if "error" not in line:
                    self.fresh[digest] = line
            yield line | {"path": text_of(member)}

    def _asked(self) -> Iterator[ImageSource]:
        asked = set(self._known)
        for place, member in enumerate(self.members):
            if self._digests:
                if self._digests[place] in asked:
                    continue
                asked.add(self._digests[place])
            self.looked += 1
            yield member

    def _line(self, row: Row) -> Line:
        threshold = self.naming.threshold
        abstained = threshold is not None and "reason" not in row and row["probability"] < threshold
        line = line_of(row, abstained)
        return line | {"path": text_of(line["path"])}


class _Table:
    """A Parquet file that is written a block of lines at a time."""

    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        self._schema, self._lines = schema_of(columns), list[Line]()
        self._writer = importlib.import_module("pyarrow.parquet").ParquetWriter(path, self._schema)

    def __enter__(self) -> _Table:
        return self

    def add(self, line: Line) -> None:
        """Write a line."""
        self._lines.append(line)
        if len(self._lines) == _BLOCK:
            self._flush()

    def note(self, named: Named) -> None:
        """Say in the metadata what this is."""
        self._writer.add_key_value_metadata({_KEY: json.dumps(asdict(named))})

    def _flush(self) -> None:
        self._writer.write_batch(arrow().RecordBatch.from_pylist(self._lines, schema=self._schema))
        self._lines.clear()

    def __exit__(self, *_: object) -> None:
        with self._writer:
            if self._lines:
                self._flush()


class _Seen:
    """Answers for pictures by the SHA-256 of their files, for all processes of a machine.

    It only saves work: two that look at the same picture at once both answer, and say the same.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ask("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, line TEXT) WITHOUT ROWID")

    def known(self, digests: Sequence[bytes]) -> dict[bytes, Line]:
        """Lines of those that were answered before."""
        found: dict[bytes, Any] = {}
        for at in range(0, len(digests), _ASKED):
            some = digests[at : at + _ASKED]
            places = ", ".join("?" * len(some))
            found |= self._ask(f"SELECT digest, line FROM seen WHERE digest IN ({places})", some)
        return {digest: json.loads(line) for digest, line in found.items()}

    def add(self, lines: Mapping[bytes, Line]) -> None:
        """Keep lines for other shards."""
        values = [(digest, json.dumps(line)) for digest, line in lines.items()]
        self._ask("INSERT OR IGNORE INTO seen VALUES (?, ?)", values, many=True)

    def _ask(self, question: str, values: Sequence[Any] = (), many: bool = False) -> dict[bytes, Any]:
        try:
            with closing(sqlite3.connect(self.place, timeout=600)) as base, base:
                if many:
                    base.executemany(question, values)
                    return {}
                return dict(base.execute(question, values).fetchall())
        except sqlite3.Error as error:
            raise PromptPrismError(
                f"cannot use '{self.place}', the answers by picture ({error}): free some space there, or "
                "remove it; it only saves work"
            ) from error


def finished(naming: Naming, shards: Sequence[str]) -> dict[str, Named]:
    """What is said of the shards that are done.

    Raises:
        PromptPrismError: a table is of another run or another shard, or none of ours.
    """
    there = set(names_in(joined(naming.out, ANSWERS)))
    done = [shard for shard in shards if f"{stem(shard)}.parquet" in there]
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(done, pool.map(lambda shard: _read(naming, shard), done), strict=True))


def _read(naming: Naming, shard: str) -> Named:
    place = naming.table(ANSWERS, shard)
    other = "name another folder, or remove that one"
    try:
        with opened(place) as file:
            metadata = importlib.import_module("pyarrow.parquet").read_metadata(file).metadata or {}
        named = Named(**json.loads(metadata[_KEY]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptPrismError(
            f"'{place}' is no table of answers for a shard ({error!r}): {other}"
        ) from error
    if named.run != naming.run:
        raise PromptPrismError(
            f"'{place}' holds answers of another adapter, or with other classes or settings (run "
            f"{named.run[:20]}, this is {naming.run}): {other}"
        )
    if (named.shard, named.size) != (_identity(shard), size_of(shard)):
        raise PromptPrismError(
            f"'{place}' holds answers for another shard, '{named.shard}' of {named.size:,} bytes, not for "
            f"'{shard}' of {size_of(shard):,}: {other}"
        )
    return named


def _identity(shard: str) -> str:
    return "/".join(absolute(shard).split("/")[-2:])
