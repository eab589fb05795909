"""What a table is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation (of a sample; None for one seed) in 0..1."""

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], mean: float | None = None) -> Figure | None:
        """Of one value per seed; the mean may be another one's, such as the HM of the averages."""
        if not values and mean is None:
            return None
        return cls(fmean(values) if mean is None else mean, stdev(values) if len(values) > 1 else None)


Value = Figure | str | int | float | None


@dataclass(frozen=True)
class ResultTable:
    """A table: names of the columns, rows of text, figures and numbers, and what must be said below."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...]
