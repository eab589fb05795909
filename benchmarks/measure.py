"""What all benchmarks share: what the machine can do, and rows of CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptprism.backbones.backbone import Precision
from promptprism.errors import PromptPrismError
from promptprism.files import write_bytes
from promptprism.speed import CPU
from promptprism.training.cost import Meter

RESULTS = Path(__file__).with_name("results")


def gigaflops_per_second(precision: Precision) -> float:
    """The best of large square matrix products: what the machine can do."""
    size = 2048
    a = torch.randn(size, size).to(getattr(torch, precision))
    b = a.T.contiguous()
    samples = []
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        samples.append(time.perf_counter() - start)
    return 2 * size**3 / min(samples) / 1e9


def machine() -> dict[str, Any]:
    """Where and with what a row was measured."""
    cost = Meter(CPU).cost()
    return {
        "device": cost.device,
        "threads": cost.threads,
        "torch": cost.versions["torch"],
        "open_clip": cost.versions["open_clip_torch"],
    }


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
