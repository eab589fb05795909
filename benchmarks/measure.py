"""What all benchmarks share: what the machine can do, and rows of CSV."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from promptprism.cost.speed import CPU
from promptprism.errors import PromptPrismError
from promptprism.files import write_bytes
from promptprism.provenance import Meter, revision

RESULTS = Path(__file__).with_name("results")

#: Options of several commands.
CsvFile = Annotated[
    Path | None, typer.Option("--csv", help="Write rows to this CSV file.", show_default=False)
]
BackboneName = Annotated[str, typer.Option(help="A ViT of open_clip's.")]
Templates = Annotated[int, typer.Option(min=1, help="M.")]


def machine() -> dict[str, Any]:
    """Where and with what a row was measured."""
    cost = Meter(CPU).cost()
    return {
        "revision": revision(),
        "device": cost.device,
        "threads": cost.threads,
        "torch": cost.versions["torch"],
        "open_clip": cost.versions["open_clip_torch"],
    }


def called(data: str) -> str:
    """What the rows call data: of a folder its own name."""
    return Path(data).name if Path(data).is_dir() else data


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_there(path: Path | None, key: Mapping[str, Any]) -> bool:
    """Whether a CSV file has a row with these values."""
    wanted = {name: str(value) for name, value in key.items()}
    return path is not None and any(wanted.items() <= row.items() for row in read_rows(path))


def tell(rows: list[dict[str, Any]], heads: Iterable[str], path: Path | None) -> None:
    """Say some columns of rows, and add the rows to the CSV file, if there is to be one."""
    for row in rows:
        typer.echo(", ".join(f"{head} {row[head]}" for head in heads))
    if path:
        append_rows(path, rows)


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file.

    Raises:
        PromptPrismError: the file has other columns.
    """
    old: list[dict[str, Any]] = [*read_rows(path)]
    if old and list(old[0]) != list(rows[0]):
        raise PromptPrismError(f"'{path}' has columns {list(old[0])}, not {list(rows[0])}: give another file")
    write_rows(path, old + rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
