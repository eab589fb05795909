"""``promptprism report``."""

from pathlib import Path
from typing import Annotated

import typer

from promptprism.cli.options import Json, argument, flag, option, split_names
from promptprism.cli.output import Output, tell, visible
from promptprism.errors import PromptPrismError
from promptprism.reports.formats import FORMATS, find_format


def report(
    results: Annotated[Path, argument("RESULTS", "Folder of `suite --out`, or file of `results export`.")],
    table: Annotated[
        str | None,
        option(
            "NAME",
            "base-to-new, base-to-all, cross-dataset, cross-domain, few-shot, per-semantic, settings (also "
            "called ablation, templates, augmentation), study or trust.",
        ),
    ] = None,
    plot: Annotated[
        str | None, option("NAME", "Draw base-new, shots, reliability or risk-coverage, into --out.")
    ] = None,
    form: Annotated[
        str,
        option(
            "|".join(FORMATS),
            "Of the table.",
            "--format",
            autocompletion=lambda: list(FORMATS),
            callback=find_format,
        ),
    ] = "md",
    out: Annotated[
        Path | None, option("FILE", "File to write; a plot ends in .svg, .png or .pdf.", "--out", "-o")
    ] = None,
    suite: Annotated[
        str | None,
        option("NAME", "Take the cells of this suite only, call rows as it does, and miss what it has."),
    ] = None,
    datasets: Annotated[str | None, option("A,B,...", "Only these data sets, separated by commas.")] = None,
    per_seed: Annotated[bool, flag("--per-seed", "Show every seed, collapsed ones too.")] = False,
    against: Annotated[
        str | None,
        option("ROW", "Gains and intervals against this row, instead of those of CDC or against the first."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Make a table or a plot of results.

    Figures are means and deviations over seeds, averages over data sets, and gains.
    """
    output = Output("report", json_file)
    from promptprism.evaluation.store import read_failures, read_results
    from promptprism.evaluation.suites import load_suite
    from promptprism.files import check_place, write_text
    from promptprism.reports import drawing, plots, render
    from promptprism.reports.report import make_table, write_table

    if (table is None) == (plot is None):
        raise PromptPrismError("what shall it show? Give either --table or --plot")
    chosen, wanted = load_suite(suite) if suite else None, split_names(datasets)
    found = [r for r in read_results(results) if not wanted or r.cell.data in wanted]
    if chosen and wanted:
        chosen = chosen.only(datasets=wanted)
    if wanted and (absent := set(wanted) - {result.cell.data for result in found}):
        raise PromptPrismError(f"'{results}' has no results on '{sorted(absent)[0]}': check --datasets")
    if plot:
        if out is None:
            raise PromptPrismError("where does the plot go? Give --out FILE, ending in .svg, .png or .pdf")
        drawing.check_figure(out)
        drawing.save_figure(plots.make_plot(found, plot, chosen), out)
        output.write(plot=plot, out=str(out))
    elif table:
        if out is not None:
            check_place(out)
        made = make_table(found, table, chosen, per_seed, against)
        text = visible(write_table(made, table, form, found, chosen))
        if out is not None:
            write_text(out, text)
        elif json_file != "-":
            typer.echo(text, nl=False)
        output.write(table=table, **render.plain(made))
    for cell, error in read_failures(results):
        tell(f"failed: {cell}: {error}", "yellow")
