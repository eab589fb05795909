"""The table of trust: how far probabilities can be believed, and whether doubt finds errors and shifts."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.results import Row, Run, Runs, group, results_of, usual_protocol
from promptprism.reports.table import Figure, Line, ResultTable, Value

#: Columns and their metrics.
COLUMNS = {
    "accuracy": "cls/accuracy",
    "ECE": "cal/ece",
    "ECE, TS": "cal/ece_ts",
    "ECE, DAC": "cal/ece_dac",
    "ECE, TS + DAC": "cal/ece_ts_dac",
    "NLL": "cal/nll",
    "AURC": "sc/aurc",
    "coverage at 5 % risk": "sc/coverage_at_5_risk",
    "wrong by own": "sc/auroc_uncertainty",
    "wrong by max prob": "sc/auroc_max_prob",
    "other by own": "ood/auroc_uncertainty",
    "other by max prob": "ood/auroc_max_prob",
    "other by entropy": "ood/auroc_entropy",
    "other by energy": "ood/auroc_energy",
}
_NOTES = (
    "in %, NLL in nats; mean ± standard deviation over seeds, each seed averaged over data sets, as far as "
    "their images allow a figure",
    "ECE: expected calibration error, as predicted, and of the softmax of the logits averaged over templates "
    "with temperature scaling (TS) and distance-aware calibration (DAC), both fitted on what was learned",
    "AURC: area under the risk-coverage curve; it and the coverage rank images by their largest probability",
    "wrong, other: AUROC of telling wrong answers from right ones, and images of this part from those of the "
    "part learned, in its label space; by the method's own uncertainty, 1 - the largest probability, "
    "entropy, or energy",
)


def make_trust_table(results: Iterable[CellResult], suite: Suite | None = None) -> ResultTable:
    """Calibration, selection and detection of every row on every part, averaged over data sets.

    Of base-to-new, or of the first protocol there is.

    Args:
        results: of any protocols.
        suite: see `group`.

    Raises:
        PromptPrismError: there are no results.
    """
    runs, protocol, shots = trusted(results, suite)
    data = runs.datasets[0] if len(runs.datasets) == 1 else None
    lines: list[Line] = []
    for row in runs.by_row:
        there, mark = runs_of(runs, row, shots)
        for part in parts_of(there):
            figures = (average_metric(there, part, metric) for metric in COLUMNS.values())
            lines.append(Line(data, row.label, (part, *figures), mark or None))
    about = f"protocol {protocol}" + (f", {shots} shots" if shots else "")
    return ResultTable(("part", *COLUMNS), tuple(lines), (about, *_NOTES))


def trusted(results: Iterable[CellResult], suite: Suite | None) -> tuple[Runs, str, int | None]:
    """Runs of the usual protocol, its name, and the most shots of few-shot.

    Raises:
        PromptPrismError: there are no results.
    """
    results = list(results)
    protocol = usual_protocol(results, suite)
    runs = group(results_of(results, protocol), suite)
    shots = max(number for by_place in runs.by_row.values() for _, number in by_place)
    return runs, protocol, shots if protocol == "few-shot" else None


def runs_of(runs: Runs, row: Row, shots: int | None) -> tuple[list[Run], str]:
    """A row's sound runs, one per data set, and what a reader must know of their average."""
    found = {data: runs.at(data, shots).get(row) for data in runs.datasets}
    said = {data: run.mark if run else "no results" for data, run in found.items()}
    there = [run for run in found.values() if run and run.sound]
    return there, "; ".join(f"{data}: {mark}" for data, mark in said.items() if mark)


def parts_of(runs: Sequence[Run]) -> list[str]:
    """The parts that were scored."""
    return list(dict.fromkeys(part for run in runs for r in run.sound.values() for part in r.scores))


def average_metric(runs: Sequence[Run], part: str, metric: str) -> Value:
    """Average of a metric over data sets; the deviation is over the seeds that all of them have."""
    found = [
        {
            seed: result.scores[part].metrics[metric]
            for seed, result in run.sound.items()
            if part in result.scores and metric in result.scores[part].metrics
        }
        for run in runs
    ]
    if not (found := [by_seed for by_seed in found if by_seed]):
        return None
    seeds = sorted(set.intersection(*map(set, found)))
    by_seed = [fmean(values[seed] for values in found) for seed in seeds]
    figure = Figure.of(by_seed, fmean(fmean(values.values()) for values in found))
    if figure is None or metric != "cal/nll":
        return figure
    return f"{figure.mean:.3f}" + ("" if figure.std is None else f" ± {figure.std:.3f}")
