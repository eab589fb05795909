"""``promptprism suite``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from promptprism.cli.options import Device, Json, Root, argument, flag, option, parse_seeds, split_names
from promptprism.cli.output import Output, terminal
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.evaluation.suites import Suite


def suite(
    source: Annotated[str, argument("SUITE", "YAML file, or a name such as mini/base-to-new.")],
    out: Annotated[
        Path | None, option("FOLDER", "Results folder; a run goes on where others stopped.", "--out", "-o")
    ] = None,
    methods: Annotated[str | None, option("A,B,...", "Only these rows, separated by commas.")] = None,
    datasets: Annotated[str | None, option("A,B,...", "Only these data sets, separated by commas.")] = None,
    seeds: Annotated[str | None, option("1,2,...", "These seeds, separated by commas.")] = None,
    root: Root = None,
    lists: Annotated[
        Path | None, option("FOLDER", "Folder of few-shot lists DATA-16shot-seed1.jsonl to learn from.")
    ] = None,
    stage: Annotated[
        Literal["all", "train", "test"], typer.Option(help="Only learn, only score, or both.")
    ] = "all",
    device: Device = "auto",
    dry_run: Annotated[
        bool, flag("--dry-run", "Say what would run, what it needs, and about what it costs.")
    ] = False,
    gigaflops: Annotated[
        float | None,
        option("X", "Of --dry-run: rate of another machine, instead of measuring this one.", min=0.001),
    ] = None,
    json_file: Json = None,
) -> None:
    """Run methods on data sets with several seeds.

    Kill it at any time and start it again: what is finished stays.
    """
    output = Output("suite", json_file)
    from promptprism.evaluation.suites import load_suite

    chosen = load_suite(source).only(split_names(methods), split_names(datasets), parse_seeds(seeds))
    if dry_run:
        _dry_run(chosen, out, root, gigaflops, device, output)
        return
    if out is None:
        raise PromptPrismError("where do the results go? Give --out FOLDER")
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from promptprism.backbones import load_backbone
    from promptprism.evaluation import run_suite as running

    backbone = load_backbone(**chosen.backbone.model_dump(), device=device)
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total} cells, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=terminal(stderr=True)) as progress:
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
    rows = [
        {
            "key": result.key,
            **result.cell.model_dump(mode="json"),
            "accuracy": {part: scores.accuracy for part, scores in result.scores.items()},
            "summary": result.summary,
            "collapsed": result.training.collapsed,
        }
        for result in outcome.results
    ]
    failures = [{**cell.model_dump(mode="json"), "error": error} for cell, error in outcome.failures]
    output.show(f"{len(rows)} results in {out}, {outcome.ran} cells run now, {len(failures)} failed")
    if rows:
        output.show(f"Next: promptprism report {out} --table {chosen.protocol} --suite {source}")
    output.write(suite=chosen.name, ran=outcome.ran, cells=rows, failures=failures)
    output.end([f"{cell}: {error}" for cell, error in outcome.failures])


def _dry_run(
    chosen: Suite, out: Path | None, root: Path | None, gigaflops: float | None, device: str, output: Output
) -> None:
    from promptprism.backbones.loading import find_device
    from promptprism.cli.dry_run import estimate_content, estimate_lines
    from promptprism.evaluation.estimate import estimate_suite
    from promptprism.evaluation.store import read_results

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
