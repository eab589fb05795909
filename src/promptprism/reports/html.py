"""A table and its plot as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from promptprism.evaluation.store import CellResult
from promptprism.reports.render import text
from promptprism.reports.table import ResultTable

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


def render_html(
    table: ResultTable, title: str, plots: Iterable[str], results: Iterable[CellResult] = ()
) -> str:
    """Write a page.

    Args:
        table: what it shows.
        title: of the page.
        plots: SVG elements.
        results: what the table was made of; the page says with what and when.
    """
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
    figures = "".join(f"<figure>{plot}</figure>" for plot in plots)
    lines = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{escape(title)}</h1>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{lines}
</tbody></table></div>
<ul>{notes}</ul>
{figures}
<footer>{escape(_made_of(list(results)))}</footer>
</body></html>
"""


def _made_of(results: list[CellResult]) -> str:
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
