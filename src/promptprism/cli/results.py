"""``promptprism results``: results of suites as one file that people can read, compare and commit."""

from pathlib import Path
from typing import Annotated

import typer

from promptprism.cli.options import Json, argument, option
from promptprism.cli.output import Output

results_app = typer.Typer(
    name="results", help="Turn results folders into one file, and back.", no_args_is_help=True
)

Places = Annotated[list[Path], argument("RESULTS", "Folders of `suite --out`, or files of `export`.")]


@results_app.command("export")
def export_results(
    places: Places,
    out: Annotated[Path, option("FILE", "File to write, such as suite.jsonl.", "--out", "-o")],
    json_file: Json = None,
) -> None:
    """Write results into one file, a line of JSON per cell.

    Of a cell that is there twice, the latest counts.
    """
    output = Output("results-export", json_file)
    from promptprism.evaluation.store import read_results, write_results

    written = write_results(out, [result for place in places for result in read_results(place)])
    output.show(f"{written} results in {out}")
    output.write(out=str(out), results=written)


@results_app.command("import")
def import_results(
    places: Places,
    out: Annotated[Path, option("FOLDER", "Results folder; what it has stays as it is.", "--out", "-o")],
    json_file: Json = None,
) -> None:
    """Put results into a folder that suites and reports go on from.

    Nothing is learned again.
    """
    output = Output("results-import", json_file)
    from promptprism.evaluation.store import Store, read_results

    found, store = [result for place in places for result in read_results(place)], Store(out)
    added = sum(store.add(result) for result in found)
    output.show(f"{added} results new in {out}, {len(found) - added} were there")
    output.write(out=str(out), results=len(found), added=added)
