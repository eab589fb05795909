"""Tables of results: mean and standard deviation over seeds, averages as the field computes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.store import CellResult

PUBLISHED = Path(__file__).with_name("published.csv")
#: The method that the others are compared with as baselines.
OURS = "cdc"
FORMATS = ("md", "csv", "latex")


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation (of a sample; None for one seed) in 0..1."""

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], mean: float | None = None) -> Figure | None:
        """Of one value per seed; the mean may be another one's, such as the HM of the averages."""
        if not values:
            return None
        return cls(fmean(values) if mean is None else mean, stdev(values) if len(values) > 1 else None)


Value = Figure | str | None


@dataclass(frozen=True)
class ResultTable:
    """A table: names of the columns, rows of text and figures, and what must be said below."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """Results of one row on one data set: sound ones by seed, and what is wrong with the others."""

    sound: dict[int, CellResult]
    collapsed: tuple[int, ...]
    missing: tuple[int, ...]

    def part(self, part: str) -> list[float]:
        return [result.scores[part].accuracy for result in self.sound.values()]

    @property
    def mark(self) -> str:
        said = [(self.collapsed, "collapsed"), (self.missing, "missing")]
        return "; ".join(f"seed {', '.join(map(str, seeds))} {what}" for seeds, what in said if seeds)


Runs = dict[str, dict[str, _Run]]  # by row, then by data set


def make_table(results: Iterable[CellResult], protocol: str) -> ResultTable:
    """Make the table of a protocol: rows of methods, and of published figures if the backbone is theirs.

    Collapsed seeds are left out of every mean and marked; so are missing ones.

    Raises:
        PromptPrismError: there are no results of the protocol.
    """
    chosen = [result for result in results if result.cell.protocol == protocol]
    if not chosen:
        there = sorted({result.cell.protocol for result in results}) or ["none"]
        raise PromptPrismError(f"no results of protocol {protocol!r}: there are those of {', '.join(there)}")
    runs = _group(chosen, with_shots=protocol != "few-shot")
    published = _published(protocol) if _as_published(chosen) else {}
    notes = ["accuracy in %, mean ± standard deviation over seeds"]
    if versions := sorted({result.promptprism for result in chosen})[1:]:
        notes.append(f"results of several versions of promptprism: also {', '.join(versions)}")
    if published:
        notes.append("published: figures of the methods' papers, same backbone, not re-run")
    if protocol == "base-to-new":
        table = _base_to_new(runs, published)
        notes.append("HM: harmonic mean of the averages; gain: HM less that of the best baseline re-run")
    elif protocol == "few-shot":
        table = _few_shot(runs)
    else:
        table = _transfer(runs, published)
        notes.append("average: of the targets")
    return ResultTable(table.columns, table.rows, tuple(notes))


def render(table: ResultTable, form: str) -> str:
    """Write a table as Markdown, CSV (mean and std in columns of their own, unrounded) or LaTeX.

    Raises:
        PromptPrismError: no such format.
    """
    if form == "csv":
        return _csv(table)
    if form not in FORMATS:
        raise PromptPrismError(f"unknown format {form!r}: choose one of {', '.join(FORMATS)}")
    latex = form == "latex"
    lines = [[_text(value, latex) for value in row] for row in table.rows]
    notes = list(table.notes)
    if latex:
        head = [_escape(column) for column in table.columns]
        body = [" & ".join(row) + r" \\" for row in lines]
        columns = "ll" + "r" * (len(head) - 2)
        comments = [f"% {note}" for note in notes]
        start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
        return "\n".join([*comments, *start, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"
    head_lines = [list(table.columns), ["---"] * len(table.columns)]
    text = "".join("| " + " | ".join(row) + " |\n" for row in [*head_lines, *lines])
    return text + "\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _group(results: Sequence[CellResult], with_shots: bool) -> Runs:
    labels = _labels(results, with_shots)
    seeds = {result.cell.seed for result in results if result.cell.settings["epochs"]}
    found: dict[str, dict[str, list[CellResult]]] = {}
    for result in results:
        data = result.cell.data if with_shots else f"{result.cell.data}\n{result.cell.shots}"
        cells = found.setdefault(labels[result.key], {}).setdefault(data, [])
        cells.append(result)
    runs: Runs = {}
    for label in sorted(found, key=lambda label: (label.split()[0] == OURS, label)):
        for data, cells in found[label].items():
            sound = {cell.cell.seed: cell for cell in cells if cell.summary is not None}
            collapsed = tuple(sorted(cell.cell.seed for cell in cells if cell.summary is None))
            learns = bool(cells[0].cell.settings["epochs"])
            missing = tuple(sorted(seeds - sound.keys() - set(collapsed))) if learns else ()
            runs.setdefault(label, {})[data] = _Run(dict(sorted(sound.items())), collapsed, missing)
    return runs


def _labels(results: Sequence[CellResult], with_shots: bool) -> dict[str, str]:
    """Name each result's row: the method, and only what tells its rows from each other."""

    def facts(result: CellResult) -> dict[str, Any]:
        shots = {"shots": result.cell.shots} if with_shots and result.cell.settings["epochs"] else {}
        backbone = {"backbone": f"{result.backbone.name} {result.backbone.fingerprint[:6]}"}
        return {**result.cell.settings, **shots, **backbone, "precision": result.backbone.precision}

    labels = {}
    for method in {result.cell.method for result in results}:
        own = [result for result in results if result.cell.method == method]
        differing = [
            name for name in facts(own[0]) if len({repr(facts(result).get(name)) for result in own}) > 1
        ]
        for result in own:
            said = ", ".join(f"{name}={facts(result)[name]}" for name in differing)
            labels[result.key] = f"{method} ({said})" if said else method
    return labels


def _base_to_new(runs: Runs, published: Mapping[str, Mapping[str, Mapping[str, float]]]) -> ResultTable:
    names = sorted({data for by_data in runs.values() for data in by_data})
    rows: list[tuple[Value, ...]] = []
    for data in ("average", *names) if len(names) > 1 else names:
        scored: dict[str, tuple[Figure, Figure, Figure] | None] = {}
        marks: dict[str, str] = {}
        for label, by_data in runs.items():
            wanted = names if data == "average" else [data]
            there = [by_data[name] for name in wanted if name in by_data and by_data[name].sound]
            scored[label] = _base_new_hm(there) if there else None
            marks[label] = "; ".join(filter(None, (by_data[n].mark for n in wanted if n in by_data)))
            if len(there) < len(wanted):
                marks[label] = f"of {len(there)} of {len(wanted)} data sets; {marks[label]}".removesuffix(
                    "; "
                )
            elif data == "average" and marks[label]:
                marks[label] = "without the seeds marked below"
        complete = {label: figures[2].mean for label, figures in scored.items() if figures}
        baselines = [hm for label, hm in complete.items() if label.split()[0] != OURS]
        for label, figures in scored.items():
            gain = None
            # An average over fewer data sets is no rival, and has none.
            fair = not any("data sets" in mark for mark in marks.values())
            if label.split()[0] == OURS and figures and baselines and fair:
                gain = f"{100 * (figures[2].mean - max(baselines)):+.2f}"
            rows.append((data, label, *(figures or (None, None, None)), gain, marks[label] or None))
        for method, by_name in published.items():
            wanted = names if data == "average" else [data]
            if all(name in by_name for name in wanted):
                base, new = (fmean(by_name[name][part] for name in wanted) / 100 for part in ("base", "new"))
                hm = Figure(harmonic_mean(base, new))
                rows.append((data, f"{method} (published)", Figure(base), Figure(new), hm, None, None))
    return ResultTable(("data", "method", "base", "new", "HM", "gain", "note"), tuple(rows), ())


def _base_new_hm(runs: Sequence[_Run]) -> tuple[Figure, Figure, Figure]:
    """Averages over data sets; the deviation is that of the average over the seeds that all of them have."""
    seeds = set.intersection(*(set(run.sound) for run in runs))

    def average(part: str) -> tuple[float, list[float]]:
        by_seed = [fmean(run.sound[seed].scores[part].accuracy for run in runs) for seed in sorted(seeds)]
        return fmean(fmean(run.part(part)) for run in runs), by_seed

    (base, bases), (new, news) = average("base"), average("new")
    hms = [harmonic_mean(b, n) for b, n in zip(bases, news, strict=True)]

    def figure(mean: float, values: list[float]) -> Figure:
        return Figure(mean, stdev(values) if len(values) > 1 else None)

    return figure(base, bases), figure(new, news), figure(harmonic_mean(base, new), hms)


def _transfer(runs: Runs, published: Mapping[str, Mapping[str, Mapping[str, float]]]) -> ResultTable:
    parts = list(
        dict.fromkeys(
            part
            for by_data in runs.values()
            for run in by_data.values()
            for result in run.sound.values()
            for part in result.scores
        )
    )
    rows: list[tuple[Value, ...]] = []
    for label, by_data in runs.items():
        for data, run in by_data.items():
            figures = [
                Figure.of([r.scores[p].accuracy for r in run.sound.values() if p in r.scores]) for p in parts
            ]
            average = Figure.of([r.summary["average"] for r in run.sound.values() if r.summary])
            rows.append((data, label, *figures, average, run.mark or None))
    targets = [part for part in parts if part != "source"]
    for method, by_name in published.items():
        values = {part: accuracies["accuracy"] / 100 for part, accuracies in by_name.items()}
        if targets and all(part in values for part in parts):
            average = Figure(fmean(values[part] for part in targets))
            row = [Figure(values[part]) for part in parts]
            rows.append(("imagenet", f"{method} (published)", *row, average, None))
    return ResultTable(("source data", "method", *parts, "average", "note"), tuple(rows), ())


def _few_shot(runs: Runs) -> ResultTable:
    places = [place.split("\n") for by_data in runs.values() for place in by_data]
    shots = sorted({int(number) for _, number in places})
    rows: list[tuple[Value, ...]] = []
    for data in sorted({name for name, _ in places}):
        for label, by_data in runs.items():
            found = {number: by_data.get(f"{data}\n{number}") for number in shots}
            figures = [Figure.of(run.part("test")) if run else None for run in found.values()]
            marks = [f"{number} shots: {run.mark}" for number, run in found.items() if run and run.mark]
            if any(found.values()):
                rows.append((data, label, *figures, "; ".join(marks) or None))
    return ResultTable(("data", "method", *(f"{number} shots" for number in shots), "note"), tuple(rows), ())


def _as_published(results: Sequence[CellResult]) -> bool:
    return all(
        result.backbone.name in ("ViT-B-16", "ViT-B-16-quickgelu")
        and result.backbone.pretrained == "openai"
        and result.cell.shots == 16
        for result in results
    )


def _published(protocol: str) -> dict[str, dict[str, dict[str, float]]]:
    """Published accuracies in %: by method, then data set and part (base-to-new) or part alone."""
    lines = [line for line in PUBLISHED.read_text().splitlines() if not line.startswith("#")]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in csv.DictReader(lines):
        if row["protocol"] == protocol:
            outer, inner = (
                (row["data"], row["part"]) if protocol == "base-to-new" else (row["part"], "accuracy")
            )
            found.setdefault(row["method"], {}).setdefault(outer, {})[inner] = float(row["accuracy"])
    return found


def _text(value: Value, latex: bool) -> str:
    if value is None:
        return "--" if latex else "–"
    if isinstance(value, str):
        return _escape(value) if latex else value.replace("|", r"\|")
    mean = f"{100 * value.mean:.2f}"
    if value.std is None:
        return mean
    return rf"${mean} \pm {100 * value.std:.2f}$" if latex else f"{mean} ± {100 * value.std:.2f}"


def _escape(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)


def _csv(table: ResultTable) -> str:
    figures = {i for row in table.rows for i, value in enumerate(row) if isinstance(value, Figure)}
    head = [name for i, c in enumerate(table.columns) for name in ([c, f"{c} std"] if i in figures else [c])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        cells: list[str | float | None] = []
        for i, value in enumerate(row):
            if i in figures:
                known = value if isinstance(value, Figure) else None
                cells.append(None if known is None else 100 * known.mean)
                cells.append(None if known is None or known.std is None else 100 * known.std)
            else:
                cells.append(value if isinstance(value, str) else None)
        writer.writerow(cells)
    return buffer.getvalue()
