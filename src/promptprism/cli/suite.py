"""``promptprism suite`` and ``promptprism report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from promptprism.cli.options import Device, Json, Root, split_names
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.evaluation.suites import Suite


def suite(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="YAML file, or a name such as mini/base-to-new.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Results folder; a run goes on where others stopped.", show_default=False
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these rows, separated by commas.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these data sets, separated by commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="These seeds, separated by commas.")] = None,
    root: Root = None,
    lists: Annotated[
        Path | None,
        typer.Option(
            help="Folder of few-shot lists DATA-16shot-seed1.jsonl to learn from.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        Literal["all", "train", "test"], typer.Option(help="Only learn, only score, or both.")
    ] = "all",
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, what it needs, and about what it costs.")
    ] = False,
    gigaflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Of --dry-run: rate of another machine, instead of measuring this one."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Run methods on data sets with several seeds. Kill it at any time and start it again."""
    output = Output("suite", json_file)
    from promptprism.evaluation.suites import load_suite

    chosen = load_suite(source).only(split_names(methods), split_names(datasets), _seeds(seeds))
    if dry_run:
        _dry_run(chosen, out, root, gigaflops, device, output)
        return
    if out is None:
        raise PromptPrismError("where do the results go? Give --out FOLDER")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from promptprism.backbones import load_backbone
    from promptprism.evaluation import run_suite as running

    spec = chosen.backbone
    backbone = load_backbone(spec.name, spec.pretrained, precision=spec.precision, device=device)
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total} cells, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", failed=0)

        def show(state: running.Progress) -> None:
            progress.update(
                task,
                completed=state.done + state.failed,
                total=state.total,
                failed=state.failed,
                description=state.running,
            )

        outcome = running.run_suite(chosen, out, backbone, root=root, lists=lists, stage=stage, show=show)
    rows: list[dict[str, Any]] = []
    for result in outcome.results:
        rows.append(
            {
                "key": result.key,
                **result.cell.model_dump(mode="json"),
                "accuracy": {part: scores.accuracy for part, scores in result.scores.items()},
                "summary": result.summary,
                "collapsed": result.training.collapsed,
            }
        )
    failures = [{**cell.model_dump(mode="json"), "error": error} for cell, error in outcome.failures]
    for cell, error in outcome.failures:
        output.warn(f"✗ {cell}: {error}")
    output.show(f"{len(rows)} results in {out}, {outcome.ran} cells run now, {len(failures)} failed")
    if rows:
        output.show(f"Next: promptprism report {out} --table {chosen.protocol} --suite {source}")
    output.write(suite=chosen.name, ran=outcome.ran, cells=rows, failures=failures)
    if failures:
        raise typer.Exit(1)


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="Folder of `suite --out`, or file of `results export`.",
            show_default=False,
        ),
    ],
    table: Annotated[
        str | None,
        typer.Option(
            help="base-to-new, cross-dataset, cross-domain, few-shot, per-semantic, settings (also called "
            "ablation, templates, augmentation), study or trust.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            help="Draw base-new, shots, reliability or risk-coverage, into --out.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Literal["md", "csv", "latex", "html"], typer.Option("--format", help="Of the table.")
    ] = "md",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; a plot ends in .svg, .png or .pdf."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Take the cells of this suite only, call rows as it does, and miss what it has.",
            show_default=False,
        ),
    ] = None,
    datasets: Annotated[str | None, typer.Option(help="Only these data sets, separated by commas.")] = None,
    per_seed: Annotated[
        bool, typer.Option("--per-seed", help="Show every seed, collapsed ones too.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Make a table or a plot of results: mean and deviation over seeds, averages, gain."""
    output = Output("report", json_file)
    from promptprism.evaluation.store import read_failures, read_results
    from promptprism.evaluation.suites import load_suite
    from promptprism.files import write_text
    from promptprism.reports import drawing, plots, render
    from promptprism.reports.documents import check_place
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
        made = make_table(found, table, chosen, per_seed)
        text = write_table(made, table, form, found, chosen)
        if out is not None:
            write_text(out, text)
        elif json_file != "-":
            typer.echo(text, nl=False)
        output.write(table=table, **render.plain(made))
    for cell, error in read_failures(results):
        typer.secho(f"failed: {cell}: {error}", fg="yellow", err=True)


def _dry_run(
    chosen: Suite,
    out: Path | None,
    root: Path | None,
    gigaflops: float | None,
    device: str,
    output: Output,
) -> None:
    from promptprism.backbones.loading import find_device
    from promptprism.evaluation.estimate import estimate_suite
    from promptprism.evaluation.store import read_results
    from promptprism.reports.estimate import estimate_content, estimate_lines

    device = find_device(device)
    found = read_results(out, needed=False) if out else []
    spec = chosen.backbone.model_dump()
    finished = {
        result.cell for result in found if result.backbone.model_dump(exclude={"fingerprint"}) == spec
    }
    estimate = estimate_suite(chosen, root, gigaflops, device, finished)
    if finished:
        output.show(f"cells that have a result in {out} are left out")
    output.show(*estimate_lines(chosen, estimate, "stated" if gigaflops else f"measured on this {device}"))
    output.write(**estimate_content(chosen, estimate))


def _seeds(text: str | None) -> list[int]:
    names = split_names(text)
    if wrong := [name for name in names if not name.isdecimal()]:
        raise PromptPrismError(f"seed '{wrong[0]}' is no whole number from 0: write --seeds 1,2,3")
    return [int(name) for name in names]
