"""What a table is made of: figures, and lines that know what they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

#: What follows the name of a method whose figures are those of its paper.
OF_PAPER = " (published)"


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
class Line:
    """A line of a table.

    Attributes:
        data: the data set that it is about; None is the average over all of them.
        label: of the row of results, or a method of others.
        values: one for each column of values.
        note: what a reader must know of them.
        seed: the one that it shows; None is all of them.
        published: whether the figures are those of a paper.
    """

    data: str | None
    label: str
    values: tuple[Value, ...]
    note: str | None = None
    seed: int | None = None
    published: bool = False


@dataclass(frozen=True)
class ResultTable:
    """A table of results.

    Attributes:
        names: of the columns of values.
        lines: of these values.
        notes: what must be said below.
        noted: whether lines have notes of their own.
        data: name of the column of data sets.
    """

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    noted: bool = True
    data: str = "data"

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line.values) != len(self.names):
                raise ValueError(f"line '{line.label}' has {len(line.values)} values for {self.names}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns: what a line is about, its values, its note."""
        return (self.data, "method", *self.names, *(["note"] if self.noted else []))

    @property
    def rows(self) -> tuple[tuple[Value, ...], ...]:
        """The lines as people read them, a value for each of the columns."""
        return tuple(
            (
                "average" if line.data is None else line.data,
                line.label
                + (OF_PAPER if line.published else "")
                + ("" if line.seed is None else f", seed {line.seed}"),
                *line.values,
                *([line.note] if self.noted else []),
            )
            for line in self.lines
        )
