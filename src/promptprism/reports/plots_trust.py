"""Reliability diagrams and risk-coverage curves of results."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.drawing import BLUE, GREY, VERMILION, looks, new_figure
from promptprism.reports.results import Row, Run
from promptprism.reports.trust import parts_of, runs_of, trusted


def reliability_diagram(results: Iterable[CellResult], suite: Suite | None = None) -> Drawing:
    """Accuracy against confidence: a column for each row of results, a line for each part.

    Images of all data sets and seeds together; the ECE is the mean of theirs.

    Raises:
        PromptPrismError: there are no results.
    """
    found, parts, protocol = _found(results, suite)
    drawing = new_figure(1 + 2.3 * len(found), 0.8 + 2.2 * len(parts))
    every = drawing.subplots(len(parts), len(found), sharex=True, sharey=True, squeeze=False)
    for column, (row, there) in enumerate(found.items()):
        for line, part in enumerate(parts):
            axes = every[line, column]
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            count, confidence, accuracy = _pooled(there, part)
            shown = count > 0
            bins = (np.arange(len(count)) + 0.5) / max(1, len(count))
            axes.bar(bins, count / max(1, count.sum()), 1 / max(1, len(count)), color=GREY, alpha=0.5)
            axes.vlines(confidence[shown], accuracy[shown], confidence[shown], color=VERMILION)
            axes.plot(confidence[shown], accuracy[shown], "o-", color=BLUE, markersize=3)
            error = fmean(score.metrics["cal/ece"] for score in _scores(there, part))
            axes.set_title(f"{row.label}, {part}: ECE {100 * error:.1f} %", fontsize=8)
    drawing.supxlabel("confidence (bars: share of images)", fontsize=9)
    drawing.supylabel("accuracy", fontsize=9)
    drawing.suptitle(f"Reliability, {protocol}: red is the gap", fontsize=10)
    return drawing


def risk_coverage(results: Iterable[CellResult], suite: Suite | None = None) -> Drawing:
    """Share of wrong answers against the share of images answered, a panel for each part.

    Averaged over data sets and seeds; solid lines rank images by their largest probability, dotted ones by
    the method's own uncertainty.

    Raises:
        PromptPrismError: there are no results.
    """
    found, parts, protocol = _found(results, suite)
    drawing = new_figure(1 + 3.6 * len(parts), 3.8)
    every = drawing.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(every, parts, strict=True):
        axes.axhline(5, color=GREY, linewidth=1, linestyle="--")
        for (row, there), colour, _ in looks(found.items()):
            for score, style in (("max_prob", "-"), ("uncertainty", ":")):
                curves = [s.risk_coverage[score] for s in _scores(there, part) if score in s.risk_coverage]
                if curves:
                    risk = 100 * np.mean(curves, axis=0)
                    coverage = 100 * np.arange(1, len(risk) + 1) / len(risk)
                    label = row.label if score == "max_prob" else f"{row.label}, own uncertainty"
                    axes.plot(coverage, risk, style, color=colour, label=label)
        axes.set_title(part, fontsize=10)
        axes.set(xlabel="images answered, %", xlim=(0, 100))
    every[0].set_ylabel("wrong answers among them, %")
    every[0].set_ylim(bottom=0)
    every[0].legend(fontsize=7)
    drawing.suptitle(f"Risk and coverage, {protocol}", fontsize=10)
    return drawing


def _found(results: Iterable[CellResult], suite: Suite | None) -> tuple[dict[Row, list[Run]], list[str], str]:
    """Sound runs of each row that has some, the parts they are scored on, and their protocol."""
    runs, protocol, shots = trusted(results, suite)
    found = {row: there for row in runs.by_row if (there := runs_of(runs, row, shots)[0])}
    return found, parts_of([run for there in found.values() for run in there]), protocol


def _scores(runs: Sequence[Run], part: str) -> list[Evaluation]:
    return [r.scores[part] for run in runs for r in run.sound.values() if part in r.scores]


def _pooled(runs: Sequence[Run], part: str) -> tuple[Any, Any, Any]:
    """Images in each bin, and their mean confidence and accuracy, of all runs together."""
    found = [score.reliability for score in _scores(runs, part)]
    count = np.array([one.count for one in found], float)

    def mean(values: list[tuple[float | None, ...]]) -> Any:
        shares = np.array([[share or 0.0 for share in line] for line in values])
        return (count * shares).sum(0) / np.maximum(1, count.sum(0))

    confidence, accuracy = [one.confidence for one in found], [one.accuracy for one in found]
    return count.sum(0), mean(confidence), mean(accuracy)
