"""The table of each protocol: mean and standard deviation over seeds, averages as the field computes them."""

import csv
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.protocols import PROTOCOLS
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.interval import interval_notes
from promptprism.reports.results import Row, Run, Runs, group, results_of
from promptprism.reports.table import OF_PAPER, Figure, Line, ResultTable

PUBLISHED = Path(__file__).with_name("published.csv")

Published = Mapping[str, Mapping[str, Mapping[str, float]]]
Made = tuple[tuple[str, ...], list[Line]]


def protocol_table(
    results: Iterable[CellResult],
    protocol: str,
    suite: Suite | None = None,
    per_seed: bool = False,
    against: str | None = None,
) -> ResultTable:
    """Make the table of a protocol: rows of methods, and of published figures if the backbone is theirs.

    Collapsed seeds are left out of every mean and marked; so are missing ones.

    Args:
        results: of any protocols.
        protocol: a name of `PROTOCOLS`.
        suite: see `group`.
        per_seed: follow every row with those of its seeds, collapsed ones too.
        against: the row that all others are compared with; None compares ours with the best baseline re-run.

    Raises:
        PromptPrismError: there are no such results, no such row, or no gains in this table.
    """
    chosen = results_of(results, protocol)
    runs = group(chosen, suite)
    published = read_published(protocol) if _as_published(chosen) else {}
    make, about, said = _TABLES[protocol]
    if against is not None:
        if _BEST not in said:
            raise PromptPrismError(f"table '{protocol}' has no gains: leave out against (--against)")
        against = row_named(against, runs, published)
        said = said.replace(_BEST, against)
    names, lines = make(runs, published, against)
    if per_seed:
        lines = _with_seeds(lines, {seed: make(runs.only(seed), {}, against)[1] for seed in runs.seeds})
    notes = ["accuracy in %, mean ± standard deviation over seeds", said]
    if versions := sorted({result.promptprism for result in chosen})[1:]:
        notes.append(f"results of several versions of promptprism: also {', '.join(versions)}")
    if published:
        notes.append("published: figures of the methods' papers, same backbone, not re-run")
    if PROTOCOLS[protocol].halves:
        notes += interval_notes(runs, against)
    return ResultTable(names, tuple(lines), tuple(notes), data=about)


def base_new_hm(runs: Sequence[Run]) -> tuple[Figure, Figure, Figure]:
    """Averages over data sets of base, new, and the HM of these averages.

    The deviation is that of the averages over the seeds that all data sets have.
    """
    seeds = set.intersection(*(set(run.sound) for run in runs))

    def average(part: str) -> tuple[float, list[float]]:
        by_seed = [fmean(run.sound[seed].scores[part].accuracy for run in runs) for seed in sorted(seeds)]
        return fmean(fmean(run.part(part)) for run in runs), by_seed

    (base, bases), (new, news) = average("base"), average("new")
    hms = [harmonic_mean(b, n) for b, n in zip(bases, news, strict=True)]
    figures = (bases, base), (news, new), (hms, harmonic_mean(base, new))
    first, second, third = (Figure.of(values, mean) for values, mean in figures)
    assert first and second and third
    return first, second, third


def over_data(runs: Runs, row: Row, wanted: Sequence[str], shots: int | None = None) -> tuple[list[Run], str]:
    """A row's runs on data sets that have sound seeds, and what a reader must know of their average."""
    found = [runs.at(data, shots).get(row) for data in wanted]
    there = [run for run in found if run and run.sound]
    if len(wanted) == 1:
        return there, found[0].mark if found[0] else "no results"
    marks = [f"of {len(there)} of {len(wanted)} data sets"] if len(there) < len(wanted) else []
    if any(run and run.mark for run in found):
        marks.append("without the seeds marked below")
    return there, "; ".join(marks)


def gains(
    scored: Mapping[Row, Figure | None], against: str | None, published: Mapping[str, Figure]
) -> dict[Row, str]:
    """What our rows gain over the best baseline re-run, in points; or all others over the row of a label."""
    there = {row: figure.mean for row, figure in scored.items() if figure}
    if against is None:
        rivals = [mean for row, mean in there.items() if not row.ours]
        ours = [row for row in there if row.ours]
    else:
        rivals = [mean for row, mean in there.items() if row.label == against]
        rivals = rivals or [one.mean for method, one in published.items() if method + OF_PAPER == against]
        ours = [row for row in there if row.label != against]
    return {row: f"{100 * (there[row] - max(rivals)):+.2f}" for row in ours} if rivals else {}


def row_named(name: str, runs: Runs, published: Published) -> str:
    """The label of the row that is meant: its label, or its name if it is the only one of that name.

    Raises:
        PromptPrismError: there is none.
    """
    labels = (*(row.label for row in runs.by_row), *(method + OF_PAPER for method in published))
    named = [row.label for row in runs.by_row if row.name == name]
    if name in labels or len(named) == 1:
        return name if name in labels else named[0]
    near = named or difflib.get_close_matches(name, labels, cutoff=0.4) or labels
    listed = ", ".join(f"'{label}'" for label in near[:8])
    raise PromptPrismError(f"no row '{name}' to compare with (--against): choose one such as {listed}")


def averaged(datasets: Sequence[str]) -> tuple[tuple[str | None, tuple[str, ...]], ...]:
    """What lines are about: all data sets together (None) if there are several, then each alone."""
    every = ((None, tuple(datasets)),) if len(datasets) > 1 else ()
    return (*every, *((data, (data,)) for data in datasets))


def _base_to_new(runs: Runs, published: Published, against: str | None) -> Made:
    lines: list[Line] = []
    for data, wanted in averaged(runs.datasets):
        scored: dict[Row, tuple[Figure, Figure, Figure] | None] = {}
        marks: dict[Row, str] = {}
        counts: list[int] = []
        for row in runs.by_row:
            there, marks[row] = over_data(runs, row, wanted)
            counts.append(len(there))
            scored[row] = base_new_hm(there) if there else None
        theirs: dict[str, tuple[Figure, Figure, Figure]] = {}
        for method, by_name in published.items():
            if all(name in by_name for name in wanted):
                base, new = (fmean(by_name[name][part] for name in wanted) / 100 for part in ("base", "new"))
                theirs[method] = Figure(base), Figure(new), Figure(harmonic_mean(base, new))
        # An average over fewer data sets is no rival, and has none.
        whole = {row: found == len(wanted) for row, found in zip(scored, counts, strict=True)}
        fair = len(wanted) == 1 or against is not None or all(whole.values())
        compared = {row: figures[2] for row, figures in scored.items() if figures and (fair and whole[row])}
        gain = gains(compared, against, {method: figures[2] for method, figures in theirs.items()})
        for row, figures in scored.items():
            values = (*(figures or (None,) * 3), gain.get(row))
            lines.append(Line(data, row.label, values, marks[row] or None))
        for method, figures in theirs.items():
            lines.append(Line(data, method, (*figures, None), published=True))
    return ("base", "new", "HM", "gain"), lines


def _transfer(runs: Runs, published: Published, against: str | None) -> Made:
    every = [
        part
        for by_place in runs.by_row.values()
        for run in by_place.values()
        for result in (*run.sound.values(), *run.collapsed.values())
        for part in result.scores
    ]
    parts = tuple(dict.fromkeys(every))
    targets = [part for part in parts if part != "source"]
    lines: list[Line] = []
    theirs: dict[str, tuple[Figure, ...]] = {}
    for method, by_name in published.items():
        known = {part: accuracies["accuracy"] / 100 for part, accuracies in by_name.items()}
        if targets and all(part in known for part in parts):
            average = fmean(known[part] for part in targets)
            theirs[method] = *(Figure(known[part]) for part in parts), Figure(average)
    for data in runs.datasets:
        averages: dict[Row, Figure | None] = {}
        found: list[tuple[Row, list[Figure | None], str | None]] = []
        for row, run in runs.at(data).items():
            figures = [Figure.of(run.part(part)) for part in parts]
            whole = [r for r in run.sound.values() if r.scores.keys() >= set(targets)]
            averages[row] = Figure.of([fmean(r.scores[t].accuracy for t in targets) for r in whole])
            found.append((row, figures, run.mark or None))
        gain = gains(averages, against, {method: figures[-1] for method, figures in theirs.items()})
        for row, figures, mark in found:
            lines.append(Line(data, row.label, (*figures, averages[row], gain.get(row)), mark))
    lines += [Line("imagenet", one, (*theirs[one], None), published=True) for one in theirs]
    return (*parts, "average", "gain"), lines


def _few_shot(runs: Runs, _: Published, __: str | None) -> Made:
    shots = sorted({number for by_place in runs.by_row.values() for _, number in by_place})
    lines: list[Line] = []
    for data, wanted in averaged(runs.datasets):
        for row in runs.by_row:
            found = {number: over_data(runs, row, wanted, number) for number in shots}
            figures = tuple(shot_average(there) if there else None for there, _ in found.values())
            marks = [f"{number} shots: {mark}" for number, (_, mark) in found.items() if mark]
            lines.append(Line(data, row.label, figures, "; ".join(marks) or None))
    return tuple(f"{number} shots" for number in shots), lines


def shot_average(runs: Sequence[Run]) -> Figure | None:
    """Average accuracy over data sets; the deviation is over the seeds that all of them have."""
    seeds = set.intersection(*(set(run.sound) for run in runs))
    by_seed = [fmean(run.sound[seed].scores["test"].accuracy for run in runs) for seed in sorted(seeds)]
    return Figure.of(by_seed, fmean(fmean(run.part("test")) for run in runs))


_Maker = Callable[[Runs, Published, str | None], Made]
_BEST = "the best baseline re-run"
_HM = f"HM: harmonic mean of the averages; gain: HM less that of {_BEST}"
_TRANSFER = f"average: of the targets; gain: average less that of {_BEST}"
#: By protocol: what makes the lines, what their data are, and what must be said of the columns.
_TABLES: dict[str, tuple[_Maker, str, str]] = {
    "base-to-new": (_base_to_new, "data", _HM),
    "base-to-all": (_base_to_new, "data", f"images of base and of new classes, told among all; {_HM}"),
    "cross-dataset": (_transfer, "source data", _TRANSFER),
    "cross-domain": (_transfer, "source data", _TRANSFER),
    "few-shot": (_few_shot, "data", "accuracy on all classes; what learns nothing needs no shots"),
}


def _with_seeds(lines: Sequence[Line], by_seed: Mapping[int, Sequence[Line]]) -> list[Line]:
    """Put the lines of each seed below the line that they belong to."""
    of_seeds: dict[tuple[str | None, str], list[Line]] = {}
    for seed, others in by_seed.items():
        for line in others:
            of_seeds.setdefault((line.data, line.label), []).append(replace(line, seed=seed))
    return [
        each
        for line in lines
        for each in (line, *([] if line.published else of_seeds.get((line.data, line.label), [])))
    ]


def _as_published(results: Sequence[CellResult]) -> bool:
    return all(
        result.backbone.name in ("ViT-B-16", "ViT-B-16-quickgelu")
        and result.backbone.pretrained == "openai"
        and result.cell.shots == 16
        for result in results
    )


def read_published(protocol: str) -> dict[str, dict[str, dict[str, float]]]:
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
