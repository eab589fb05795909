"""``promptprism data``: what there is, whether it is right, and whose images a draw takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptprism.cli.options import DataOptions, Json, Root, argument, flag, grouped, option
from promptprism.cli.output import Output, terminal, visible

if TYPE_CHECKING:
    from promptprism.data.check import DataReport

data_app = typer.Typer(name="data", help="List, fetch and check the field's data sets.", no_args_is_help=True)

Name = Annotated[str, argument("NAME", "Such as caltech101.")]


@data_app.command("list")
def list_data(root: Root = None, json_file: Json = None) -> None:
    """List the field's data sets, and which of them a root folder holds."""
    from rich.table import Table

    from promptprism.data.catalog import ALTERNATIVES, CATALOG
    from promptprism.data.sources import GUIDE

    output = Output("data-list", json_file)
    rows: list[dict[str, Any]] = []
    caption = f"lists and layout: {GUIDE}\nwithout the canonical split: {', '.join(ALTERNATIVES)}"
    columns = ("name", "classes", "images", "below the root", "to be had")
    table = Table(*columns, box=None, caption=caption, caption_justify="left")
    for entry in CATALOG.values():
        here = None if root is None else (root / entry.folder).is_dir()
        rows.append(
            {
                "name": entry.name,
                "title": entry.title,
                "folder": entry.folder,
                "present": here,
                "classes": entry.classes,
                "images": entry.images,
                "phrase": entry.phrase,
                "needs": list(entry.layout.needs),
                "source": entry.source,
                "alternative": entry.alternative or None,
            }
        )
        mark = {None: "", True: "✓ ", False: "✗ "}[here]
        counts = f"{sum(entry.images.values()):,}"
        table.add_row(
            entry.name,
            str(entry.classes),
            counts,
            mark + entry.folder,
            "data prepare" if entry.archive else "by hand",
        )
    output.show(table)
    output.write(datasets=rows)


@data_app.command()
@grouped
def check(
    *,
    data: Annotated[str, argument("DATA", "Name such as caltech101, folder, CSV or hf:NAME.")],
    reading: DataOptions,
    quick: Annotated[bool, flag("--quick", "Do not decode the images.")] = False,
    json_file: Json = None,
) -> None:
    """Compare files with lists, decode every image, say what to do."""
    from promptprism.data.catalog import ALTERNATIVES, CATALOG, find_dataset
    from promptprism.data.check import check_data, check_own
    from promptprism.data.published import find_root

    output = Output("data-check", json_file)
    how = reading.parse()
    with _progress() as step:
        if data in CATALOG or data in ALTERNATIVES:
            report = check_data(find_dataset(data), find_root(reading.root, data), not quick, step)
        else:
            report = check_own(data, how, not quick, step)
    _show(output, report)
    if not report.usable:
        raise typer.Exit(1)


@data_app.command()
def prepare(name: Name, root: Root = None, json_file: Json = None) -> None:
    """Download a data set, or say what to fetch by hand."""
    from promptprism.data.catalog import find_dataset
    from promptprism.data.check import check_data
    from promptprism.data.prepare import by_hand, is_whole, prepare
    from promptprism.data.published import find_root
    from promptprism.errors import PromptPrismError

    output = Output("data-prepare", json_file)
    dataset, place = find_dataset(name), find_root(root, name)
    if not is_whole(dataset, place):
        try:
            with _progress() as step:
                archive = prepare(dataset, place, step)
            output.show(f"unpacked; '{archive}' may go now")
        except PromptPrismError as error:
            output.warn(f"✗ {error}")
    if is_whole(dataset, place):
        _show(output, check_data(dataset, place, decode=False), prepared=True)
        return
    rows = by_hand(dataset)
    lines = [f"{row['file']}: {row['to_do']}\n  {row['url']}" for row in rows]
    # An address must not be broken in two.
    output.console.print("\n".join([f"fetch by hand, with ROOT {place}:", *lines]), soft_wrap=True)
    output.write(name=name, prepared=False, by_hand=rows)
    raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for what is done, how much of it, and how much there is."""
    from rich.progress import Progress

    console = terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def _show(output: Output, report: DataReport, **more: Any) -> None:
    from rich.table import Table

    from promptprism.cli.tables import numbers

    table = Table("split", *numbers("listed", "on disk", "should be"), box=None)
    for split, counts in report.splits.items():
        expected = "–" if counts.expected is None else f"{counts.expected:,}"
        table.add_row(split, f"{counts.listed:,}", f"{counts.present:,}", expected)
    known = report.expected_classes is not None
    classes = f"{report.classes} classes{f' (should be {report.expected_classes})' if known else ''}"
    output.show(f"{report.name} in {report.folder}", table, classes)
    if report.decoded:
        output.show(f"{len(report.unreadable)} images cannot be read")
    if report.other_files:
        output.show(f"{report.other_files} files among the images are none and are ignored")
    for note in report.notes:
        output.warn(note)
    for fault in (*report.faults, *report.unreadable[:5]):
        output.warn(f"✗ {fault}")
    output.show("✓ can be used" if report.usable else "✗ cannot be used as it is")
    output.write(usable=report.usable, **report.model_dump(mode="json"), **more)


@data_app.command()
@grouped
def split(
    *,
    data: Annotated[str, argument("DATA", "Name, folder or CSV.")],
    out: Annotated[Path, option("FILE", "File of JSON lines.", "--out", "-o")],
    reading: DataOptions,
    shots: Annotated[int, option("N", "Images drawn per class.", min=1)] = 16,
    seed: Annotated[int, option("N", "Of the draw.", min=0)] = 1,
    allow_fewer: Annotated[bool, flag("--allow-fewer", "Take what short classes have.")] = False,
    published: Annotated[
        Path | None,
        option("FILE", "Few-shot list of others, whose images to take instead of a draw.", "--from"),
    ] = None,
) -> None:
    """Write the images that a draw takes as JSON lines.

    Or those of a list of others.
    """
    from promptprism.data.content import distinct
    from promptprism.data.lists import read_list, write_list
    from promptprism.data.registry import load_data
    from promptprism.data.splits import few_shot

    dataset = load_data(data, reading.root, reading.parse())
    if published is None:
        dataset = distinct(dataset)
        records = few_shot(dataset.train, shots, seed, allow_fewer, dataset.class_names)
    else:
        records = read_list(published, dataset)
    write_list(out, dataset, records)
    typer.echo(
        visible(
            f"{out}: {len(records)} images of {len(dataset.class_names)} classes, relative to "
            f"{dataset.folder}"
        )
    )
