"""What tables are made of: results grouped by row and data set, sound seeds apart from the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptprism.errors import PromptPrismError, warn
from promptprism.evaluation.protocols import PROTOCOLS
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Cell, Suite
from promptprism.methods import METHODS

#: The method that the others are compared with as baselines.
OURS = "cdc"


@dataclass(frozen=True)
class Row:
    """A row of a suite's grid, or a method with certain settings.

    Attributes:
        name: of the suite's row, or the method's.
        label: what tells it from the others.
        method: a name of `METHODS`.
        learns: whether seeds and shots mean anything to it.
    """

    name: str
    label: str
    method: str
    learns: bool = field(compare=False)

    @property
    def ours(self) -> bool:
        """Whether it is compared with the others as its baselines."""
        return self.method == OURS


@dataclass(frozen=True)
class Run:
    """Results of one row on one data set.

    Attributes:
        sound: results by seed.
        collapsed: results that no mean may take in, by seed.
        missing: seeds that others have.
        repeated: seeds with several results, of which the latest is taken.
    """

    sound: Mapping[int, CellResult]
    collapsed: Mapping[int, CellResult]
    missing: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()

    def part(self, part: str) -> list[float]:
        """Accuracy on a part, of every sound seed that has it."""
        return [r.scores[part].accuracy for r in self.sound.values() if part in r.scores]

    @property
    def mark(self) -> str:
        """What a reader must know of the figures."""
        said = (
            (sorted(self.collapsed), "collapsed"),
            (self.missing, "missing"),
            (self.repeated, "there several times, the latest counts"),
        )
        return "; ".join(f"seed {', '.join(map(str, seeds))} {what}" for seeds, what in said if seeds)

    def only(self, seed: int) -> Run:
        """One seed, shown even if it collapsed."""
        there = {s: r for s, r in {**self.sound, **self.collapsed}.items() if s == seed}
        collapsed = {s: r for s, r in self.collapsed.items() if s == seed}
        return Run(there, collapsed, missing=() if there else (seed,))


@dataclass(frozen=True)
class Runs:
    """Results of one protocol.

    Attributes:
        by_row: by row, then by data set and shots.
        datasets: names in the order of the suite, or sorted.
        seeds: of what learns.
    """

    by_row: Mapping[Row, Mapping[tuple[str, int], Run]]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]

    def at(self, data: str, shots: int | None = None) -> dict[Row, Run]:
        """The runs of each row on a data set; a number of shots means nothing to rows that do not learn."""
        return {
            row: run
            for row, runs in self.by_row.items()
            for (name, number), run in runs.items()
            if name == data and (shots in (None, number) or not row.learns)
        }

    def only(self, seed: int) -> Runs:
        """The same with one seed, of the rows that learn."""
        chosen = {}
        for row, runs in self.by_row.items():
            if row.learns:
                chosen[row] = {place: run.only(seed) for place, run in runs.items()}
        return Runs(chosen, self.datasets, (seed,))


def results_of(results: Iterable[CellResult], protocol: str) -> list[CellResult]:
    """The results of a protocol.

    Raises:
        PromptPrismError: there are none.
    """
    results = list(results)
    chosen = [result for result in results if result.cell.protocol == protocol]
    if not chosen:
        there = sorted({result.cell.protocol for result in results}) or ["none"]
        raise PromptPrismError(f"no results of protocol {protocol!r}: there are those of {', '.join(there)}")
    return chosen


def usual_protocol(results: Iterable[CellResult], suite: Suite | None) -> str:
    """The suite's protocol; without one base-to-new, or the first that there are results of."""
    there = {result.cell.protocol for result in results}
    return suite.protocol if suite else next((name for name in PROTOCOLS if name in there), "base-to-new")


def group(results: Sequence[CellResult], suite: Suite | None = None) -> Runs:
    """Group results of one protocol.

    Args:
        results: not empty.
        suite: take its cells only, call rows as it does, and miss whatever it has and the results have not.

    Raises:
        PromptPrismError: none of the results belongs to the suite.
    """
    named = _named(results, suite)
    results = [result for _, result in named]
    if suite is not None and not results:
        raise PromptPrismError(f"none of the results is a cell of suite '{suite.name}': run it first")
    if suite and (silent := [row for row in suite.methods if row not in {name for name, _ in named}]):
        warn(f"suite '{suite.name}' has rows without a result, which are left out: {', '.join(silent)}")
    rows = _rows(named, settings=suite is None)
    learning = [result for result in results if result.cell.settings.learns]
    seeds = {result.cell.seed for result in learning} | set(suite.seeds if suite else ())
    cells: dict[Row, dict[tuple[str, int], list[CellResult]]] = {}
    for name, result in sorted(named, key=lambda pair: pair[1].finished):
        place = result.cell.data, result.cell.shots
        cells.setdefault(rows[name, result.key], {}).setdefault(place, []).append(result)
    order = list(suite.methods) if suite else list(METHODS)

    def rank(row: Row) -> tuple[int, list[str | int]]:
        natural = [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", row.label)]
        return order.index(row.name), natural

    by_row = {
        row: {place: _run(found, seeds) for place, found in cells[row].items()}
        for row in sorted(cells, key=rank)
    }
    there = {result.cell.data for result in results}
    datasets = suite.datasets if suite else tuple(sorted(there))
    return Runs(by_row, datasets, tuple(sorted(seeds)))


def _run(results: Sequence[CellResult], seeds: set[int]) -> Run:
    learns = results[0].cell.settings.learns
    if not learns:  # whatever the seed, it is the same
        results = results[-1:]
    by_seed = {result.cell.seed: result for result in sorted(results, key=lambda r: r.cell.seed)}
    counts = [result.cell.seed for result in results]
    return Run(
        sound={seed: result for seed, result in by_seed.items() if result.training.collapsed is None},
        collapsed={seed: result for seed, result in by_seed.items() if result.training.collapsed is not None},
        missing=tuple(sorted(seeds - set(by_seed))) if learns else (),
        repeated=tuple(seed for seed in by_seed if counts.count(seed) > 1),
    )


def _named(results: Sequence[CellResult], suite: Suite | None) -> list[tuple[str, CellResult]]:
    """Each result with its row's name, once for each row of the suite that it is of; others are left out."""
    if suite is None:
        return [(result.cell.method, result) for result in results]

    def whatever_seed(cell: Cell) -> Cell:
        return cell.model_copy(update={"seed": 0})

    rows: dict[Cell, dict[str, None]] = {}
    for row, cell in suite.grid():
        rows.setdefault(whatever_seed(cell), {})[row] = None  # once for all seeds
    return [(row, result) for result in results for row in rows.get(whatever_seed(result.cell), ())]


def _rows(named: Sequence[tuple[str, CellResult]], settings: bool) -> dict[tuple[str, str], Row]:
    """The row of each name and key: the name, and what tells it from the row of that name with the defaults.

    A suite's rows are told apart by their names: settings may differ between data sets.
    """

    def facts(result: CellResult) -> dict[str, Any]:
        cell, backbone = result.cell, result.backbone
        return {
            **(cell.settings.differing() if settings else {}),
            **({"shots": cell.shots} if cell.settings.learns and cell.protocol != "few-shot" else {}),
            "version": cell.version,
            "backbone": f"{backbone.name} {backbone.fingerprint[:6]}",
            "precision": backbone.precision,
        }

    rows = {}
    for name in {name for name, _ in named}:
        own = {result.key: (facts(result), result.cell) for of, result in named if of == name}
        facts_there = {fact for found, _ in own.values() for fact in found}
        values = {fact: _values(fact, own.values()) for fact in facts_there}
        differing = {fact for fact, each in values.items() if len(set[str]().union(*each.values())) > 1}
        # A setting that each data set has a value of its own for, as by a suite's `per_data`: it is one row.
        chosen = {fact for _, cell in own.values() for fact in cell.settings.differing()}
        by_data = {fact for fact in differing & chosen if max(map(len, values[fact].values())) == 1}
        for key, (found, cell) in own.items():
            told = [f"{fact}={value}" for fact, value in found.items() if fact in differing - by_data]
            text = ", ".join((*told, *(f"{fact} by data set" for fact in sorted(by_data))))
            label = f"{name} ({text})" if text else name
            rows[name, key] = Row(name, label, cell.method, cell.settings.learns)
    return rows


def _values(fact: str, own: Iterable[tuple[Mapping[str, Any], Cell]]) -> dict[str, set[str]]:
    """What a fact is on each data set."""
    found: dict[str, set[str]] = {}
    for facts, cell in own:
        found.setdefault(cell.data, set()).add(repr(facts.get(fact)))
    return found
