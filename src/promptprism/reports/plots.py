"""Plots of results, drawn without a display."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from promptprism.errors import PromptPrismError
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.drawing import looks, new_figure, styled
from promptprism.reports.plots_trust import reliability_diagram, risk_coverage
from promptprism.reports.protocols import averaged, base_new_hm, over_data, shot_average
from promptprism.reports.results import group, results_of

_SMALL = {"fontsize": 9}


def base_new(results: Iterable[CellResult], suite: Suite | None = None) -> Drawing:
    """Accuracy on new against base classes: a large mark for the average, small ones for the data sets.

    Grey lines join points of equal HM.

    Raises:
        PromptPrismError: there are no results of base-to-new.
    """
    runs = group(results_of(results, "base-to-new"), suite)
    drawing, (axes,) = _panels(1, (6.4, 5.2))
    (name, every), *others = averaged(runs.datasets)
    for row, colour, marker in looks(runs.by_row):
        style = {"color": colour, "marker": marker, "linestyle": "none"}
        for _, wanted in others:
            there, _ = over_data(runs, row, wanted)
            if there:
                base, new, _ = base_new_hm(there)
                axes.plot(100 * base.mean, 100 * new.mean, markersize=4, alpha=0.45, **style)
        there, mark = over_data(runs, row, every)
        if there:
            base, new, hm = base_new_hm(there)
            label = f"{row.label}: HM {100 * hm.mean:.1f}" + (f" ({mark})" if mark else "")
            errors = {"xerr": 100 * (base.std or 0), "yerr": 100 * (new.std or 0)}
            point = 100 * base.mean, 100 * new.mean
            axes.errorbar(*point, markersize=10, label=label, zorder=3, markeredgecolor="white",
                          elinewidth=1, **style, **errors)  # fmt: skip
    _lines_of_equal_hm(axes)
    axes.set(xlabel="accuracy on base classes, %", ylabel="accuracy on new classes, %")
    about = f"average of {len(every)} data sets (large), each alone (small)" if others else name
    axes.set_title(f"Base to new: {about}", fontsize=10)
    axes.legend(**_SMALL)
    return drawing


def shots(results: Iterable[CellResult], suite: Suite | None = None) -> Drawing:
    """Accuracy against training images per class, for the average and for each data set.

    Bars show the deviation over seeds; a dashed line is a method that learns nothing.

    Raises:
        PromptPrismError: there are no results of few-shot.
    """
    runs = group(results_of(results, "few-shot"), suite)
    numbers = sorted({number for by_place in runs.by_row.values() for _, number in by_place})
    panels = averaged(runs.datasets)
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    drawing, every = _panels(len(panels), (1.5 + 2.9 * columns, 1.1 + 2.6 * lines), columns)
    for axes, (name, wanted) in zip(every, panels, strict=True):
        for row, colour, marker in looks(runs.by_row):
            found = {number: over_data(runs, row, wanted, number)[0] for number in numbers}
            # A curve over other data sets at every point would show the data sets, not the shots.
            figures = {n: shot_average(there) for n, there in found.items() if len(there) == len(wanted)}
            points = [(n, 100 * f.mean, 100 * (f.std or 0)) for n, f in figures.items() if f]
            if points and row.learns:
                x, y, error = zip(*points, strict=True)
                axes.errorbar(x, y, error, color=colour, marker=marker, markersize=5, label=row.label,
                              capsize=2, linewidth=1.4)  # fmt: skip
            elif points:
                axes.axhline(points[0][1], color=colour, linestyle="--", linewidth=1.2, label=row.label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        axes.set_title(f"average of {len(wanted)}" if name is None else name, fontsize=9)
    drawing.supxlabel("training images per class", **_SMALL)
    drawing.supylabel("accuracy, %", **_SMALL)
    every[0].legend(fontsize=7)
    return drawing


Plot = Callable[[Iterable[CellResult], Suite | None], Drawing]
PLOTS: dict[str, Plot] = {
    "base-new": base_new,
    "shots": shots,
    "reliability": reliability_diagram,
    "risk-coverage": risk_coverage,
}
#: What a page shows below a table.
PLOTS_OF = {"base-to-new": ("base-new",), "few-shot": ("shots",), "trust": ("reliability", "risk-coverage")}


def make_plot(results: Iterable[CellResult], name: str, suite: Suite | None = None) -> Drawing:
    """Draw a plot by name.

    Raises:
        PromptPrismError: no such plot, or no results that it could show.
    """
    if name not in PLOTS:
        raise PromptPrismError(f"unknown plot '{name}': choose one of {', '.join(PLOTS)}")
    with styled():
        return PLOTS[name](results, suite)


def to_svg(drawing: Drawing) -> str:
    """A plot as an SVG element, the same for the same results."""
    buffer = io.StringIO()
    with styled():
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(buffer, format="svg", metadata=none)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _panels(count: int, size: tuple[float, float], columns: int = 1) -> tuple[Drawing, list[Any]]:
    drawing = new_figure(*size)
    every = [drawing.add_subplot(-(-count // columns), columns, place + 1) for place in range(count)]
    for axes in every:
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
    return drawing, every


def _lines_of_equal_hm(axes: Any) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(max(left, 1), right, 100), np.linspace(max(low, 1), high, 100))
    lines = axes.contour(x, y, 2 * x * y / (x + y), levels=6, colors="#bbbbbb", linewidths=0.6, zorder=0)
    axes.clabel(lines, fmt="HM %g", fontsize=6)
    axes.set(xlim=(left, right), ylim=(low, high))
