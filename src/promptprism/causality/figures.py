"""Figures of what was measured: both misalignments (CDC's figs. 1a and 1b), and interventions."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptprism.causality.interventions import CONTROL, FACTORS
from promptprism.causality.misalignment import OTHERS, EpochCurve, TaskMisalignment
from promptprism.causality.tables import detail_rho, over_seeds
from promptprism.reports.drawing import BLUE, GREY, SKY, looks, new_figure, styled

_WAYS = ("fused", "mixture", "fused, adjusted", "front-door")


def draw_task_misalignment(found: TaskMisalignment) -> Figure:
    """Distributions of the cosine with each description, and how often the full one is the closest."""
    kinds = ("full", *OTHERS)
    cosines = [np.array(found.cosine[kind]) for kind in kinds]
    with styled():
        figure = new_figure(10.5, 6.2)
        axes = figure.add_subplot()
        drawn = axes.violinplot(cosines, orientation="horizontal", widths=0.8, showmedians=True)
        bodies: Any = drawn["bodies"]
        for body, kind in zip(bodies, kinds, strict=True):
            body.set(facecolor=BLUE if kind == "full" else SKY, alpha=0.8)
        for name in ("cmedians", "cmins", "cmaxes", "cbars"):
            drawn[name].set(color="#333333", linewidth=1.2)
        labels = [f"{kind}\n{textwrap.fill(f'“{found.captions[kind]}”', 44)}" for kind in kinds]
        axes.set_yticks(range(1, len(kinds) + 1), labels, fontsize=10)
        axes.invert_yaxis()
        right = max(cosine.max() for cosine in cosines) + 0.03
        for place, kind in enumerate(kinds, start=1):
            share = found.full_is_closest if kind == "full" else found.full_is_closer[kind]
            text = "closest of all in" if kind == "full" else "full is closer in"
            axes.text(right, place, f"{text}\n{100 * share:.1f} %", va="center", fontsize=10.5)
        axes.set_xlabel("cosine of image and text")
        axes.set_title(
            f"Task misalignment: an image is closest to its full description\n({len(cosines[0])} scenes of "
            f"{found.data}, {found.backbone.name} CLIP; quoted: of the first scene)"
        )
    return figure


def summarise_curves(found: Mapping[str, Sequence[EpochCurve]]) -> list[dict[str, Any]]:
    """Rows of method and epoch (0 is before training): accuracy, mean over data sets and seeds.

    Collapsed runs are left out.
    """
    rows = []
    for method, every in found.items():
        curves = [curve for curve in every if not curve.collapsed]
        seeds = [curve.cell.seed for curve in curves]
        for epoch in range(min((len(curve.base) for curve in curves), default=0)):
            row = {"method": method, "epoch": epoch}
            row |= over_seeds("base", seeds, [curve.base[epoch] for curve in curves])
            row |= over_seeds("new", seeds, [curve.new[epoch] for curve in curves])
            rows.append(row)
    return rows


def draw_data_misalignment(rows: Sequence[Mapping[str, Any]], about: str) -> Figure:
    """Accuracy on base and new classes over epochs; methods that learn nothing as a dashed line.

    Args:
        rows: of `summarise_curves`.
        about: data sets and seeds in words.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    with styled():
        figure = new_figure(10.5, 4.6)
        every = figure.subplots(1, 2)
        figure.suptitle(f"Data misalignment: accuracy over epochs ({about})", fontsize=12)
        for axes, part in zip(every, ("base", "new"), strict=True):
            axes.set_title(f"{part} classes")
            for method, colour, _ in looks(methods):
                own = [row for row in rows if row["method"] == method]
                mean = np.array([100 * row[part] for row in own])
                if len(own) == 1:
                    axes.axhline(mean[0], color=GREY, linestyle="--", label=method)
                    continue
                epochs = [row["epoch"] for row in own]
                deviation = np.array([100 * (row[f"{part}_std"] or 0) for row in own])
                axes.plot(epochs, mean, color=colour, marker="o", markersize=4, label=method)
                axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15)
            axes.set(xlabel="epochs of training", ylabel="accuracy, %")
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_interventions(content: Mapping[str, Any]) -> Figure:
    """Against rho, how far each factor moves predictions; what each template sees; the front door.

    Args:
        content: of `promptprism.causality.tables.summarise`.
    """
    rho = detail_rho(content)
    several: list[str] = [row["method"] for row in content["predictions"] if row["who"] == "S2"]
    with styled():
        figure = new_figure(15, 8.6 if several else 4.6)
        rows: Any = figure.subfigures(2 if several else 1, 1, squeeze=False)
        top = rows[0, 0]
        _against_rho(top.subplots(1, len(FACTORS) + 1), content)
        top.suptitle(
            "What moves the prediction: one factor set to another value, total variation", fontsize=13
        )
        if several:
            panels = rows[1, 0].subplots(1, 3, width_ratios=(1.1, 1.1, 1))
            _template_panels(panels[:2], content, several[0], rho)
            _front_door_panel(panels[2], content, several[0])
    return figure


def _against_rho(every: Any, content: Mapping[str, Any]) -> None:
    fused = [row for row in content["predictions"] if row["who"] == "fused"]
    methods = dict.fromkeys(row["method"] for row in fused)
    largest = max(row[f"{factor} variation"] for row in fused for factor in FACTORS)
    panels = [(f"do({factor})", f"{factor} variation") for factor in FACTORS]
    panels.append(("pull of the usual colour", "pull"))
    for axes, (title, name) in zip(every, panels, strict=True):
        for method, colour, _ in looks(methods):
            own = [row for row in fused if row["method"] == method]
            x = [row["rho"] for row in own]
            y = [100 * row[name] for row in own]
            error = [100 * (row[f"{name}_std"] or 0) for row in own]
            axes.errorbar(x, y, error, color=colour, marker="o", markersize=4, label=method)
            if name != "pull":
                noise = [100 * row[f"{CONTROL} variation"] for row in own]
                axes.plot(x, noise, color=colour, linestyle=":", linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("rho in training")
        axes.set_xticks(content["rhos"])
        if name == "pull":
            axes.axhline(0, color=GREY, linewidth=0.8)
        else:
            axes.set_ylim(0, 115 * largest)
    every[0].set_ylabel("%  (dotted: pixel noise)")
    every[0].legend(frameon=False, fontsize=9.5)


def _template_panels(panels: Sequence[Axes], content: Mapping[str, Any], method: str, rho: float) -> None:
    voices = [r for r in content["predictions"] if r["method"] == method and r["rho"] == rho]
    asked = [r for r in content["templates"] if r["method"] == method and r["rho"] == rho]
    everything = (*FACTORS, CONTROL)
    flips = np.array([[100 * row[f"{factor} flips"] for factor in everything] for row in voices])
    title = f"{method}, rho {rho:g}: flips, %"
    _numbers(panels[0], flips, [row["who"] for row in voices], everything, title)
    factors = ("object", *FACTORS)
    share = np.array([[100 * row[f"{factor} variance"] for factor in factors] for row in asked])
    title = "variance of image features by factor, %"
    _numbers(panels[1], share, [row["template"] for row in asked], factors, title)


def _numbers(axes: Axes, values: Any, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """A grid of numbers, shaded by column, as columns do not compare."""
    shade = values / np.maximum(np.abs(values).max(0), 1e-9)
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for y, x in np.ndindex(values.shape):
        axes.text(x, y, f"{values[y, x]:.1f}", ha="center", va="center")
    axes.set_xticks(range(len(columns)), [column.replace(" ", "\n") for column in columns])
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(title)


def _front_door_panel(axes: Axes, content: Mapping[str, Any], method: str) -> None:
    for way, colour, _ in looks(_WAYS):
        own = [r for r in content["front_door"] if r["method"] == method and r["way"] == way]
        x, y = [row["rho"] for row in own], [100 * row["accuracy"] for row in own]
        error = [100 * (row["accuracy_std"] or 0) for row in own]
        far = "" if way == "front-door" else f" ({100 * own[-1]['distance']:.0f} % away)"
        axes.errorbar(x, y, error, color=colour, marker="o", markersize=4, label=way + far)
    axes.set_title(f"{method} and the front door: accuracy, %")
    axes.set_xlabel(f"rho in training (distance at {content['rhos'][-1]:g})")
    axes.set_xticks(content["rhos"])
    axes.legend(frameon=False, fontsize=9.5)
