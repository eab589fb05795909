"""Pictures of the committed rows: cost against M and against K, and accuracy against templates asked.

    python -m benchmarks.picture

Reads step.csv and classes.csv (cost.svg), and anytime.csv (anytime.svg), of benchmarks/results; what has no
rows is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.ticker import LogLocator

from benchmarks.measure import RESULTS, read_rows
from promptprism.errors import PromptPrismError
from promptprism.reports.drawing import BLUE, GREY, ORANGE, VERMILION, looks, new_figure, save_figure, styled

Row = Mapping[str, str]
OURS, SAME, ONE = "ours", "reference_same_m", "reference_m1"
_LOOKS = {
    OURS: ("PromptPrism", BLUE, "o-"),
    SAME: ("plain, same M and precision", VERMILION, "s-"),
    ONE: ("plain, M = 1, float32", ORANGE, "^--"),
}


def latest(rows: Sequence[Row], x: str, y: str, **where: str) -> list[tuple[float, float]]:
    """Points (x, y) of the rows where columns have these values, by x; of equal x the last row counts."""
    found = [row for row in rows if all(row.get(name) == value for name, value in where.items())]
    return sorted({float(row[x]): float(row[y]) for row in found if row[y]}.items())


def draw_cost(step: Sequence[Row], classes: Sequence[Row], path: Path, at: Row) -> None:
    """Seconds against M at one K, and seconds and memory against K at one M.

    Args:
        step: rows of `benchmarks.step`.
        classes: rows of `benchmarks.classes`.
        path: of the picture.
        at: backbone, precision, classes and templates that the curves go through.
    """
    shared = {"backbone": at["backbone"]}
    precision = {"precision": at["precision"]}
    with styled():
        figure = new_figure(13, 4.2)
        by_m, by_k, memory = figure.subplots(1, 3)
        for name in (OURS, SAME):
            where = {"path": name, "classes": at["classes"], **shared, **precision}
            _line(by_m, latest(step, "templates", "seconds", **where), name)
        one = latest(step, "templates", "seconds", path=ONE, classes=at["classes"], **shared)
        if one:
            by_m.axhline(one[0][1], color=_LOOKS[ONE][1], linestyle="--", label=_LOOKS[ONE][0])
        floor = latest(step, "templates", "floor_seconds", path=OURS, classes=at["classes"], **shared)
        by_m.plot(*zip(*floor, strict=True), color=GREY, linestyle=":", label="arithmetic floor")
        for axes, column in ((by_k, "seconds"), (memory, "memory_mb")):
            for name in (OURS, SAME):
                where = {"templates": at["templates"], **shared, **precision}
                points = dict(latest(step, "classes", column, path=name, **where))
                if name == OURS:
                    points |= dict(latest(classes, "classes", column, **where))
                _line(axes, sorted(points.items()), name)
            _line(axes, latest(step, "classes", column, path=ONE, **shared), ONE)
            alone = latest(classes, "classes", column, templates="1", **shared, **precision)
            if alone:
                axes.plot(*zip(*alone, strict=True), "o:", color=BLUE, alpha=0.6, label="PromptPrism, M = 1")
            axes.set(xscale="log", yscale="log", xlabel="classes K")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_minor_formatter("")
        by_m.set(xlabel="templates M", ylabel="seconds per training step", title=f"K = {at['classes']}")
        by_m.set_xticks([m for m, _ in floor], [f"{m:g}" for m, _ in floor])
        by_m.set_ylim(bottom=0)
        by_k.set(ylabel="seconds per training step", title=f"M = {at['templates']}")
        memory.set(ylabel="MiB on top of the weights", title=f"M = {at['templates']}")
        handles = {
            label: handle
            for axes in (by_m, by_k)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=9)
        row = next(row for row in step if row["backbone"] == at["backbone"])
        figure.suptitle(
            f"{at['backbone']}, {at['precision']}, batch {row['batch']}, {row['device']}, "
            f"{row['threads']} threads",
            fontsize=10,
        )
        save_figure(figure, path)


def draw_anytime(rows: Sequence[Row], path: Path) -> None:
    """Points of accuracy lost against templates asked, of the package's rule and its rivals."""
    with styled():
        figure = new_figure(11, 4.2)
        sets, rules = figure.subplots(1, 2, sharey=True)
        package = [row for row in rows if (row["rule"], row["order"]) == ("lead", "learned")]
        names = dict.fromkeys(row["data"] for row in package)
        for name, colour, _ in looks(names):
            own = [row for row in package if row["data"] == name]
            _anytime_line(sets, own, name, colour, 2.5 if name == "mean" else 1.2)
        rules_and_orders = dict.fromkeys((row["rule"], row["order"]) for row in rows)
        for (rule, order), colour, _ in looks(rules_and_orders):
            own = [row for row in rows if (row["data"], row["rule"], row["order"]) == ("mean", rule, order)]
            _anytime_line(rules, own, f"{rule}, {order}", colour, 1.5)
        for axes in (sets, rules):
            axes.axhline(-0.2, color=GREY, linestyle=":")
            axes.set(xlabel="templates asked per image, on average")
            axes.legend(fontsize=9)
        sets.set(ylabel="accuracy less that of all templates, points", title="by data set")
        rules.set(title="by rule and order, mean")
        save_figure(figure, path)


def _anytime_line(axes: Any, rows: Sequence[Row], label: str, colour: str, width: float) -> None:
    points = [(float(row["test_templates"]), float(row["test_points_to_all"])) for row in rows]
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, label=label)
    for row in rows:
        if row["chosen"] == "True":
            point = float(row["test_templates"]), float(row["test_points_to_all"])
            axes.plot(*point, "o", color=colour, markersize=7)


def _line(axes: Any, points: Sequence[tuple[float, float]], name: str) -> None:
    if points:
        label, colour, style = _LOOKS[name]
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label)


def main(
    folder: Annotated[Path, typer.Option(help="Of the rows and the pictures.")] = RESULTS,
    backbone: Annotated[str, typer.Option(help="Whose rows.")] = "ViT-B-16-quickgelu",
    precision: Annotated[str, typer.Option(help="Of which rows.")] = "bfloat16",
    classes: Annotated[int, typer.Option(help="K of the curve over M.")] = 50,
    templates: Annotated[int, typer.Option(help="M of the curves over K.")] = 4,
    form: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "svg",
) -> None:
    """Draw what there are rows for."""
    step, anytime = read_rows(folder / "step.csv"), read_rows(folder / "anytime.csv")
    if not (step or anytime):
        raise PromptPrismError(f"'{folder}' has neither step.csv nor anytime.csv: run the benchmarks first")
    if step:
        at = {
            "backbone": backbone,
            "precision": precision,
            "classes": str(classes),
            "templates": str(templates),
        }
        draw_cost(step, read_rows(folder / "classes.csv"), folder / f"cost.{form}", at)
        typer.echo(folder / f"cost.{form}")
    if anytime:
        draw_anytime(anytime, folder / f"anytime.{form}")
        typer.echo(folder / f"anytime.{form}")


if __name__ == "__main__":
    typer.run(main)
