"""``promptprism data``: what there is, whether it is right, and whose images a draw takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from promptprism.errors import PromptPrismError
from promptprism.reports.output import Output

data_app = typer.Typer(
    help="List and check the field's data sets; write few-shot lists.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Such as caltech101.", show_default=False)]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds the data sets' folders; or set PROMPTPRISM_DATA.", show_default=False
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - means standard output."),
]


@data_app.command("list")
def list_data(root: Root = None, json_file: Json = None) -> None:
    """List the field's data sets, and which of them a root folder holds."""
    from rich.table import Table

    from promptprism.data.catalog import CATALOG, GUIDE

    output = Output("data-list", json_file)
    rows: list[dict[str, Any]] = []
    table = Table(box=None, caption=f"lists and layout: {GUIDE}", caption_justify="left")
    for column in ("name", "classes", "images", "below the root", "from"):
        table.add_column(column)
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
            }
        )
        mark = {None: "", True: "✓ ", False: "✗ "}[here]
        counts = f"{sum(entry.images.values()):,}"
        table.add_row(entry.name, str(entry.classes), counts, mark + entry.folder, entry.source)
    output.show(table)
    output.write(datasets=rows)


@data_app.command()
def check(
    name: Name,
    root: Root = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
    json_file: Json = None,
) -> None:
    """Compare a data set's files with its lists, decode every image, and say what to do."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from promptprism.data.catalog import CATALOG, find_root
    from promptprism.data.check import check_data

    output = Output("data-check", json_file)
    if name not in CATALOG:
        raise PromptPrismError(f"no data set '{name}' to check: there are {', '.join(CATALOG)}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("decoding")
        report = check_data(
            CATALOG[name],
            find_root(root, name),
            decode=not quick,
            step=lambda done, total: progress.update(task, completed=done, total=total),
        )
    table = Table(box=None)
    for column in ("split", "listed", "on disk", "should be"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, counts in report.splits.items():
        table.add_row(split, f"{counts.listed:,}", f"{counts.present:,}", f"{counts.expected:,}")
    output.show(
        f"{name} in {report.folder}", table, f"{report.classes} classes (should be {report.expected_classes})"
    )
    if report.decoded:
        output.show(f"{len(report.unreadable)} images cannot be read")
    if report.other_files:
        output.show(f"{report.other_files} files among the images are none and are ignored")
    for note in report.notes:
        output.warn(note)
    for fault in (*report.faults, *report.unreadable[:5]):
        output.warn(f"✗ {fault}")
    output.show("✓ can be used" if report.usable else "✗ cannot be used as it is")
    output.write(usable=report.usable, **report.model_dump(mode="json"))
    if not report.usable:
        raise typer.Exit(1)


@data_app.command()
def split(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Name, folder or CSV.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of JSON lines.", show_default=False)],
    root: Root = None,
    shots: Annotated[int, typer.Option(min=1, help="Images drawn per class.")] = 16,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Take what short classes have.")] = False,
    published: Annotated[
        Path | None,
        typer.Option("--from", help="Few-shot list of others, whose images to take instead of a draw."),
    ] = None,
) -> None:
    """Write the images that a draw takes, or those of others' list, as JSON lines."""
    from promptprism.data.lists import read_list, write_list
    from promptprism.data.registry import load_data
    from promptprism.data.splits import few_shot

    dataset = load_data(data, root)
    if published is None:
        records = few_shot(dataset.train, shots, seed, allow_fewer, dataset.class_names)
    else:
        records = read_list(published, dataset)
    write_list(out, dataset, records)
    typer.echo(
        f"{out}: {len(records)} images of {len(dataset.class_names)} classes, relative to {dataset.folder}"
    )
