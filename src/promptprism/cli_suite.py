"""``promptprism suite`` and ``promptprism report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from promptprism.cli_data import Json, Root
from promptprism.errors import PromptPrismError
from promptprism.reports.output import Output

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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what it needs.")] = False,
    json_file: Json = None,
) -> None:
    """Run methods on data sets with several seeds. Kill it at any time and start it again."""
    output = Output("suite", json_file)
    from promptprism.evaluation.suites import load_suite

    chosen = load_suite(source).only(_split(methods), _split(datasets), _seeds(seeds))
    if dry_run:
        _dry_run(chosen, root, output)
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
        output.show(f"Next: promptprism report {out} --table {chosen.protocol}")
    output.write(suite=chosen.name, ran=outcome.ran, cells=rows, failures=failures)
    if failures:
        raise typer.Exit(1)


def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder of `suite --out`.", show_default=False)
    ],
    table: Annotated[str, typer.Option(help="base-to-new, cross-dataset, cross-domain or few-shot.")],
    form: Annotated[Literal["md", "csv", "latex"], typer.Option("--format", help="Of the table.")] = "md",
) -> None:
    """Print the table of a protocol: mean and deviation over seeds, average, gain."""
    from promptprism.evaluation.store import Store, read_results
    from promptprism.reports.results import make_table, render

    made = make_table(read_results(results), table)
    typer.echo(render(made, form), nl=False)
    for _, cell, error in Store(results).failures():
        typer.secho(f"failed: {cell}: {error}", fg="yellow", err=True)


def _dry_run(chosen: Suite, root: Path | None, output: Output) -> None:
    from promptprism.data.catalog import CATALOG, find_root

    cells = list(chosen.cells())
    needed = []
    for name in dict.fromkeys((*chosen.datasets, *chosen.targets)):
        state = "is made on demand" if name not in CATALOG else "root unknown: give --root"
        if name in CATALOG and root is not None:
            try:
                CATALOG[name].lists(find_root(root, name))
                state = "is there"
            except PromptPrismError as error:
                state = f"missing: {error}"
        needed.append({"data": name, "state": state})
    output.show(f"{chosen.name}: {len(cells)} cells of protocol {chosen.protocol}. {chosen.note}")
    for cell in cells:
        output.show(f"  {cell}")
    output.show("data:")
    for row in needed:
        output.show(f"  {row['data']} {row['state']}")
    output.write(suite=chosen.name, cells=[cell.model_dump(mode="json") for cell in cells], data=needed)


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _seeds(text: str | None) -> list[int]:
    names = _split(text)
    if wrong := [name for name in names if not name.isdecimal()]:
        raise PromptPrismError(f"seed '{wrong[0]}' is no whole number from 0: write --seeds 1,2,3")
    return [int(name) for name in names]
