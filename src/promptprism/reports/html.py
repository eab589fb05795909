"""A table and its plot as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from promptprism.reports.render import text
from promptprism.reports.table import ResultTable

if TYPE_CHECKING:
    from promptprism.evaluation.store import CellResult

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:nth-child(-n+2), td:nth-child(-n+2), td.note { text-align: left; }
td.note { white-space: normal; min-width: 12rem; font-size: .85em; }
tbody tr.start td { border-top: 2px solid #888; }
tbody tr.seed { opacity: .7; font-size: .9em; }
figure { margin: 2rem 0; } svg { max-width: 100%; height: auto; background: #fff; }
footer { margin-top: 2rem; font-size: .85em; opacity: .8; }
"""


@dataclass(frozen=True)
class Page:
    """A table, and what a page says beside it.

    Attributes:
        table: what it shows.
        title: of the page.
        plots: draws the SVG elements below the table.
        results: what the table was made of; the page says with what and when.
    """

    table: ResultTable
    title: str = ""
    plots: Callable[[], Sequence[str]] = tuple
    results: Sequence[CellResult] = ()


def to_html(shown: Page) -> str:
    """Write a page."""
    table, title = shown.table, shown.title
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body: list[str] = []
    marks = [""] * len(table.columns)
    if table.noted:
        marks[-1] = ' class="note"'
    for place, (line, row) in enumerate(zip(table.lines, table.rows, strict=True)):
        starts = not place or line.data != table.lines[place - 1].data
        kind = "seed" if line.seed is not None else "start" if starts else ""
        cells = "".join(
            f"<td{mark}>{escape(text(value))}</td>" for mark, value in zip(marks, row, strict=True)
        )
        body.append(f'<tr class="{kind}">{cells}</tr>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    figures = "".join(f"<figure>{plot}</figure>" for plot in shown.plots())
    lines = "\n".join(body)
    return page(
        title,
        f"""<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{lines}
</tbody></table></div>
<ul>{notes}</ul>
{figures}
<footer>{escape(_made_of(shown.results))}</footer>""",
    )


def page(title: str, body: str, style: str = "") -> str:
    """A page that needs nothing else, in dark and light; the body is HTML, the title is text."""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>
<body><h1>{escape(title)}</h1>
{body}
</body></html>
"""


def _made_of(results: Sequence[CellResult]) -> str:
    if not results:
        return ""
    backbones = sorted(
        {f"{r.backbone.name} ({r.backbone.fingerprint}, {r.backbone.precision})" for r in results}
    )
    versions = sorted({f"{r.promptprism} at {r.revision or 'no revision'}" for r in results})
    devices = sorted({r.training.cost.device for r in results})
    return (
        f"{len(results)} results, the last of {max(r.finished for r in results)} UTC; backbone "
        f"{', '.join(backbones)}; promptprism {', '.join(versions)}; on {', '.join(devices)}."
    )
