"""Tables that grow line by line, and go on where a run that was killed has stopped."""

import csv
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from promptprism.errors import PromptPrismError, needs
from promptprism.files import check_place, is_there, locked, remove, temporary

#: Kinds of tables by the ending of the file.
KINDS = (".csv", ".parquet")
Line = dict[str, Any]

# The last column: what the lines depend on.
_RUN = "run"
# As names that are no UTF-8 are written.
_ENCODING: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}


def text_of(name: object) -> str:
    """A name as it is written and read again: bytes that are no UTF-8 are written out."""
    return str(name).encode("utf-8", "backslashreplace").decode()


class GrowingTable:
    """A CSV, or a Parquet file, to which lines are added; one process at a time.

    A CSV is there from the first line on. A Parquet file is made of a CSV beside it when all is done.

    Args:
        path: ends in .csv or .parquet.
        columns: names and types.
        run: what the lines depend on; it is the last column, and a table of another run is refused.
        again: is given each line that is there already, as text; what it returns is kept, unless None.

    Raises:
        PromptPrismError: the ending is another, pyarrow is missing, the place cannot be written, or what is
            there is another table.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, type], run: str, again: Callable[[Line], Line | None]
    ) -> None:
        if path.suffix.lower() not in KINDS:
            raise PromptPrismError(f"cannot write table '{path}': its name must end in {' or '.join(KINDS)}")
        self.path, self.run, self._again = path, run, again
        self._types = {**columns, _RUN: str}
        self._parquet = path.suffix.lower() == ".parquet"
        self._csv = path.with_name(f".{path.name}.csv") if self._parquet else path
        if self._parquet:
            arrow()
        check_place(path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        with ExitStack() as held:
            if not held.enter_context(locked(lock)):
                raise PromptPrismError(f"another run is writing '{self.path}': wait for it, or name another")
            held.callback(remove, lock)
            if self._parquet and is_there(self.path) and not is_there(self._csv):
                self._unpack()
            with temporary(self._csv) as partial:
                with partial.open("w", **_ENCODING) as file:
                    writer = csv.DictWriter(file, self._types, lineterminator="\n")
                    writer.writeheader()
                    if is_there(self._csv):
                        writer.writerows(filter(None, map(self._again, self._earlier())))
                partial.replace(self._csv)
            self._file: TextIO = held.enter_context(self._csv.open("a", **_ENCODING))
            self._writer = csv.DictWriter(self._file, self._types, lineterminator="\n")
            self._held = held.pop_all()
        return self

    def add(self, line: Line) -> None:
        """Write a line; it is safe from the end of this process when this returns."""
        try:
            self._writer.writerow(line | {_RUN: self.run})
            self._file.flush()
        except OSError as error:
            raise PromptPrismError(
                f"cannot write '{self._csv}' ({error.strerror}): what is there is kept, and the same call "
                "goes on when there is room"
            ) from error

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # What could not be written cannot be either when the file is closed, and is told of already.
        with suppress(OSError) if failed else nullcontext(), self._held:
            if failed is None and self._parquet:
                self._file.flush()
                self._pack()

    def _earlier(self) -> Iterator[Line]:
        with self._csv.open(encoding="utf-8", newline="") as file:
            try:
                lines = csv.reader(file)
                header = next(lines, [])
                if header and header != list(self._types):
                    raise PromptPrismError(
                        f"'{self._csv}' is another table (with columns {', '.join(header)[:200]}): name "
                        "another file, or remove it"
                    )
                for fields in lines:
                    # The last line of a run that was killed may be cut short.
                    torn = fields[-1] != self.run and self.run.startswith(fields[-1])
                    if len(fields) < len(header) or torn:
                        continue
                    if fields[-1] != self.run:
                        raise PromptPrismError(
                            f"'{self.path}' holds answers of another adapter, or with other classes or "
                            f"settings (run {fields[-1][:20]}, this is {self.run}): name another file, or "
                            "remove it"
                        )
                    yield dict(zip(header, fields, strict=False))
            except (csv.Error, UnicodeDecodeError) as error:
                raise PromptPrismError(
                    f"'{self._csv}' is damaged ({error}): name another file, or remove it"
                ) from error

    def _pack(self) -> None:
        """Make the Parquet file of the CSV, a block at a time."""
        from_text, parquet = (importlib.import_module(f"pyarrow.{name}") for name in ("csv", "parquet"))
        schema = schema_of(self._types)
        options = from_text.ConvertOptions(
            column_types=schema, strings_can_be_null=True, null_values=[""], quoted_strings_can_be_null=True
        )
        lines = from_text.open_csv(
            self._csv, parse_options=from_text.ParseOptions(newlines_in_values=True), convert_options=options
        )
        with temporary(self.path) as partial:
            with parquet.ParquetWriter(partial, schema) as writer:
                for batch in lines:
                    writer.write_batch(batch)
            partial.replace(self.path)
        remove(self._csv)

    def _unpack(self) -> None:
        """Make the CSV of a Parquet file that is whole, to go on from."""
        parquet = importlib.import_module("pyarrow.parquet")
        try:
            with temporary(self._csv) as partial, parquet.ParquetFile(self.path) as file:
                with partial.open("w", **_ENCODING) as text:
                    writer = csv.DictWriter(text, file.schema_arrow.names, lineterminator="\n")
                    writer.writeheader()
                    for batch in file.iter_batches():
                        writer.writerows(batch.to_pylist())
                partial.replace(self._csv)
        except (OSError, ValueError) as error:
            raise PromptPrismError(
                f"'{self.path}' is no Parquet file that can be read ({error}): name another, or remove it"
            ) from error


def schema_of(columns: Mapping[str, type]) -> Any:
    """Arrow's schema of names and types.

    Raises:
        PromptPrismError: pyarrow is missing.
    """
    kinds = {str: arrow().string(), float: arrow().float64(), bool: arrow().bool_()}
    return arrow().schema([(name, kinds[kind]) for name, kind in columns.items()])


def arrow() -> Any:
    """The module that writes Parquet.

    Raises:
        PromptPrismError: it is missing.
    """
    with needs("Parquet", "parquet", ", or name a file that ends in .csv"):
        return importlib.import_module("pyarrow")
