"""Tables about one method: what its settings are worth and cost, and what each of its templates knows."""

from collections.abc import Iterable
from statistics import fmean

from promptprism.errors import PromptPrismError
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.interval import FEWEST, hm_interval, pairs_of
from promptprism.reports.protocols import averaged, base_new_hm, over_data, row_named
from promptprism.reports.results import Row, Run, Runs, group, results_of, usual_protocol
from promptprism.reports.table import Figure, Line, ResultTable
from promptprism.reports.trust import average_metric

_CELLS = "cells: how many of all data sets and seeds the row has; those that collapsed do not count"
#: Columns of the study, and the part and metric of each.
_TRUST = {
    "ECE base": ("base", "cal/ece"),
    "ECE new": ("new", "cal/ece"),
    "NLL new": ("new", "cal/nll"),
    "new by own": ("new", "ood/auroc_uncertainty"),
}


def settings_table(results: Iterable[CellResult], suite: Suite | None = None) -> ResultTable:
    """Accuracy, trainable parameters and cost of every row, and each setting that differs within a method.

    Of base-to-new, over all data sets together; `protocol_table` tells them apart.

    Raises:
        PromptPrismError: there are no results of base-to-new.
    """
    runs = group(results_of(results, "base-to-new"), suite)
    every = {
        row: [r for run in by_place.values() for r in (*run.sound.values(), *run.collapsed.values())]
        for row, by_place in runs.by_row.items()
    }
    settings = {row: found[0].cell.settings.model_dump(mode="json") for row, found in every.items()}
    names = dict.fromkeys(name for own in settings.values() for name in own)
    # Between methods nearly all settings differ, and tell nothing.
    values = {n: {(row.method, repr(own.get(n))) for row, own in settings.items()} for n in names}
    differing = [n for n in names if len(values[n]) > len({method for method, _ in values[n]})]
    data, wanted = averaged(runs.datasets)[0]
    lines: list[Line] = []
    for row in runs.by_row:
        there, _ = over_data(runs, row, wanted)
        sound = [result for run in there for result in run.sound.values()]
        steps = [r.training.seconds_per_step for r in sound if r.training.seconds_per_step is not None]
        measured = (
            *(_plain(settings[row].get(name)) for name in differing),
            *(base_new_hm(there) if there else (None,) * 3),
            max((result.training.trainable for result in sound), default=None),
            fmean(steps) if steps else None,
            fmean(s.images_per_second for r in sound for s in r.scores.values()) if sound else None,
            max((result.training.cost.peak_memory_mb for result in sound), default=None),
            _cells(there, row, runs),
        )
        lines.append(Line(data, row.label if suite else row.method, measured))
    costs = [result.training.cost for found in every.values() for result in found]
    devices = sorted({f"{cost.device}, {cost.threads} threads" for cost in costs})
    return ResultTable(
        (
            *differing, "base", "new", "HM", "trainable parameters", "s per step",
            "images/s", "peak MiB", "cells",
        ),
        tuple(lines),
        (
            "accuracy in %, mean ± standard deviation over seeds; HM: harmonic mean of the averages",
            "cost: mean training step, test images per second (reading included), peak of the process; on "
            + "; ".join(devices),
            _CELLS,
        ),
        noted=False,
    )  # fmt: skip


def study_table(
    results: Iterable[CellResult], suite: Suite | None = None, against: str | None = None
) -> ResultTable:
    """What a choice of settings is worth: every row against one of them, in accuracy and trust.

    Of base-to-new, over all data sets together; `settings_table` tells what each row costs.

    Args:
        results: to make it of.
        suite: take its cells only, and call the rows as it does.
        against: the row that all others are set against; None takes the first.

    Raises:
        PromptPrismError: there are no results of base-to-new, or no such row.
    """
    runs = group(results_of(results, "base-to-new"), suite)
    lines: list[Line] = []
    data, wanted = averaged(runs.datasets)[0]
    label = against and row_named(against, runs, {})
    rival = next(row for row in runs.by_row if label in (None, row.label))
    for row in runs.by_row:
        there, _ = over_data(runs, row, wanted)
        pairs = pairs_of(runs, row, rival) if row != rival else {}
        less, low, high = (100 * value for value in hm_interval(pairs)) if pairs else (0.0, 0.0, 0.0)
        interval = f"{low:+.2f} to {high:+.2f}" if len(pairs) >= FEWEST else None
        trust = [average_metric(there, part, metric) for part, metric in _TRUST.values()]
        accuracy = base_new_hm(there) if there else (None,) * 3
        values = (*accuracy, f"{less:+.2f}" if pairs else None, interval, *trust, _cells(there, row, runs))
        lines.append(Line(data, row.label, values))
    less_rival = f"less {rival.label}"
    return ResultTable(
        ("base", "new", "HM", less_rival, "95 % interval", *_TRUST, "cells"),
        tuple(lines),
        (
            "in %, NLL in nats, mean ± standard deviation over seeds; HM: harmonic mean of the averages",
            f"{less_rival}: in HM, over the data sets and seeds that both have; its interval is by a paired "
            "bootstrap over them",
            "ECE: expected calibration error; new by own: AUROC of telling images of new classes from those "
            "of base classes by the method's own uncertainty",
            _CELLS,
        ),
        noted=False,
    )


def semantics_table(results: Iterable[CellResult], suite: Suite | None = None) -> ResultTable:
    """Accuracy of each template alone, S1 to SM, against that of all together, on every part.

    Of the suite's protocol; without one of base-to-new, or of the first there is.

    Raises:
        PromptPrismError: no result has several templates.
    """
    several = [r for r in results if any(len(score.template_accuracy) > 1 for score in r.scores.values())]
    if not several:
        raise PromptPrismError(
            "no result has several templates: the table needs those of cdc, with templates of 2 or more"
        )
    protocol = usual_protocol(several, suite)
    runs = group(results_of(several, protocol), suite)
    count = max(
        len(score.template_accuracy)
        for by_place in runs.by_row.values()
        for run in by_place.values()
        for result in (*run.sound.values(), *run.collapsed.values())
        for score in result.scores.values()
    )
    lines: list[Line] = []
    for data, wanted in averaged(runs.datasets):
        for row in runs.by_row:
            there, mark = over_data(runs, row, wanted)
            for part in dict.fromkeys(p for run in there for r in run.sound.values() for p in r.scores):
                templates = [_template(there, part, number) for number in range(count)]
                fused = _over(there, [run.part(part) for run in there])
                best = max((figure.mean for figure in templates if figure), default=0.0)
                gain = f"{100 * (fused.mean - best):+.2f}" if fused else None
                lines.append(Line(data, row.label, (part, *templates, fused, gain), mark or None))
    return ResultTable(
        ("part", *(f"S{i + 1}" for i in range(count)), "fused", "less best S"),
        tuple(lines),
        (
            f"accuracy in % of protocol {protocol}, mean ± standard deviation over seeds",
            "S1 to SM: each template's own prediction; less best S: fused less the best of them, which is "
            "known only afterwards",
        ),
    )


def _template(runs: list[Run], part: str, number: int) -> Figure | None:
    values = [
        [r.scores[part].template_accuracy[number] for r in run.sound.values() if part in r.scores
         and len(r.scores[part].template_accuracy) > number]
        for run in runs
    ]  # fmt: skip
    return _over(runs, values)


def _over(runs: list[Run], values: list[list[float]]) -> Figure | None:
    """Mean over data sets of the means over seeds; the deviation is given where the seeds are the same."""
    if not all(values) or not values:
        return None
    same = len({tuple(run.sound) for run in runs}) == 1 and len({len(own) for own in values}) == 1
    by_seed = [fmean(column) for column in zip(*values, strict=True)] if same else []
    return Figure.of(by_seed, fmean(map(fmean, values)))


def _cells(there: list[Run], row: Row, runs: Runs) -> str:
    wanted = len(runs.datasets) * (len(runs.seeds) if row.learns else 1)
    return f"{sum(len(run.sound) for run in there)} of {wanted}"


def _plain(value: object) -> str | int | float | None:
    return (
        value if isinstance(value, int | float | str | None) and not isinstance(value, bool) else str(value)
    )
