"""``promptprism suite``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from promptprism.cli.options import (
    Device,
    Json,
    Root,
    Strategy,
    argument,
    flag,
    option,
    parse_numbers,
    split_names,
)
from promptprism.cli.output import Output, command, terminal
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.evaluation.run_suite import Engine, Outcome
    from promptprism.evaluation.suites import Suite


def suite(
    source: Annotated[str, argument("SUITE", "YAML file, or a name such as mini/base-to-new.")],
    out: Annotated[
        Path | None, option("FOLDER", "Results folder; a run goes on where others stopped.", "--out", "-o")
    ] = None,
    methods: Annotated[str | None, option("A,B,...", "Only these rows, separated by commas.")] = None,
    datasets: Annotated[str | None, option("A,B,...", "Only these data sets, separated by commas.")] = None,
    seeds: Annotated[str | None, option("1,2,...", "These seeds, separated by commas.")] = None,
    shots: Annotated[str | None, option("1,2,...", "These shots per class, separated by commas.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(
            help="Type of the matrix products, instead of the suite's; results of both are told apart."
        ),
    ] = None,
    root: Root = None,
    lists: Annotated[
        Path | None, option("FOLDER", "Folder of few-shot lists DATA-16shot-seed1.jsonl to learn from.")
    ] = None,
    stage: Annotated[
        Literal["all", "train", "test"], typer.Option(help="Only learn, only score, or both.")
    ] = "all",
    device: Device = "auto",
    devices: Annotated[
        int | None, option("N", "GPUs, or cores of a CPU, that share each training step of a cell.", min=1)
    ] = None,
    strategy: Strategy = "ddp",  # noqa: ARG001 - the one there is
    engine: Annotated[
        str,
        option(
            "NAME",
            "Where cells run: local; ray or ray://HOST:PORT, a cluster; slurm, which writes an array job of "
            "those that are left.",
        ),
    ] = "local",
    cpus_per_cell: Annotated[
        float | None,
        option("X", "Of --engine: cores that a cell takes; if not given, 1, or one a device.", min=0.01),
    ] = None,
    gpus_per_cell: Annotated[
        float | None,
        option("X", "Of --engine: GPUs that a cell takes, or with ray a part of one, such as 0.25.", min=0),
    ] = None,
    submit: Annotated[bool, flag("--submit", "Of --engine slurm: hand the job in, by sbatch.")] = False,
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

    chosen = load_suite(source).only(
        split_names(methods),
        split_names(datasets),
        parse_numbers(seeds),
        parse_numbers(shots, "shot", 1),
        precision,
    )
    if lists and not lists.is_dir():
        raise PromptPrismError(f"no such folder: '{lists}'. Check --lists and its spelling")
    if dry_run:
        _dry_run(chosen, out, root, gigaflops, device, output)
        return
    if out is None:
        raise PromptPrismError("where do the results go? Give --out FOLDER")
    if (engine == "local" and (cpus_per_cell or gpus_per_cell)) or (submit and engine != "slurm"):
        which = "--submit is" if submit else "--cpus-per-cell and --gpus-per-cell are"
        raise PromptPrismError(f"{which} of an engine that gives out cells: add --engine slurm, or leave out")
    cpus, gpus = cpus_per_cell or devices or 1, gpus_per_cell or 0
    if engine == "slurm":
        given = {"root": root, "lists": lists, "stage": stage, "device": device, "devices": devices}
        given["precision"] = precision
        _write_job(chosen, source, out, given, cpus, gpus, submit, output)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from promptprism.backbones import load_backbone
    from promptprism.evaluation import run_suite as running

    run = _engine(engine, cpus, gpus, device)
    # Elsewhere workers put it where they compute.
    backbone = load_backbone(
        **chosen.backbone.model_dump(), device=device if run is running.run_here else "cpu"
    )
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total} cells, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=terminal(stderr=True)) as progress:
        task = progress.add_task("", visible=False, failed=0)

        def show(state: running.Progress) -> None:
            progress.update(
                task,
                completed=state.done + state.failed,
                total=state.total,
                failed=state.failed,
                visible=True,
                description=state.running,
            )

        outcome = running.run_suite(
            chosen, out, backbone, root=root, lists=lists, stage=stage, show=show, devices=devices, engine=run
        )
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
    failures = _failures(outcome)
    output.show(f"{len(rows)} results in {out}, {outcome.ran} cells run now, {len(failures)} failed")
    if rows:
        report = command("report", out, "--table", chosen.protocol, "--suite", source)
        output.show(f"Next: {report}")
    output.write(suite=chosen.name, ran=outcome.ran, cells=rows, failures=failures)
    output.end([f"{cell}: {error}" for cell, error in outcome.failures])


def _failures(outcome: Outcome) -> list[dict[str, Any]]:
    """Cells and why they failed, as they go into JSON."""
    return [{**cell.model_dump(mode="json"), "error": error} for cell, error in outcome.failures]


def _engine(name: str, cpus: float, gpus: float, device: str) -> Engine:
    """What runs the cells.

    Raises:
        PromptPrismError: no such engine, or Ray is missing.
    """
    from promptprism.evaluation.run_suite import run_here

    if name == "local":
        return run_here
    from promptprism.distributed.cluster import ray_address
    from promptprism.distributed.ray_suite import RayEngine

    return RayEngine(ray_address(name, "local, slurm"), cpus, gpus, device)


def _write_job(
    chosen: Suite,
    source: str,
    out: Path,
    given: dict[str, Any],
    cpus: float,
    gpus: float,
    submit: bool,
    output: Output,
) -> None:
    from promptprism.backbones import load_backbone
    from promptprism.distributed import slurm
    from promptprism.evaluation.run_suite import cells_left

    if submit:
        slurm.check_submit()
    backbone = load_backbone(**chosen.backbone.model_dump(), device="cpu")
    where = {name: given[name] for name in ("root", "lists", "stage")}
    left, outcome = cells_left(chosen, out, backbone, **where)
    script = job = None
    if left:
        options = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
        script = slurm.write_script(chosen.name, source, out, left, options, cpus, gpus)
        job = slurm.submit(script) if submit else None
        more = f", the first {slurm.MOST} of them: again when they are run" if len(left) > slurm.MOST else ""
        output.show(f"{len(left)} cells are left, {script} runs them{more}")
        output.show(f"submitted as job {job}" if job else f"Next: sbatch {shlex.quote(str(script))}")
    else:
        output.show(f"no cell is left, {len(outcome.failures)} failed")
    failures = _failures(outcome)
    output.write(suite=chosen.name, script=script and str(script), job=job, left=len(left), failures=failures)
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
