"""Tables of results as text: Markdown, CSV, LaTeX; see `promptprism.reports.html` for a page."""

import csv
import io
from typing import Any

from promptprism.reports.table import Figure, ResultTable, Value


def to_markdown(table: ResultTable) -> str:
    """Write a table as Markdown, its notes as a list below."""
    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[_one_line(text(value)).replace("|", r"\|") for value in row] for row in table.rows]
    body = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return body + "\n" + "".join(f"- {_one_line(note)}\n" for note in table.notes)


def _one_line(text: str) -> str:
    """Text that ends no line, and starts no element of HTML."""
    return " ".join(text.splitlines()).replace("<", "&lt;")


def text(value: Value, none: str = "–", plus_minus: str = " ± ") -> str:
    """A value as people read it: figures in %, long numbers in groups of three."""
    if value is None:
        return none
    if isinstance(value, str):
        return value
    if isinstance(value, Figure):
        std = "" if value.std is None else f"{plus_minus}{100 * value.std:.2f}"
        return f"{100 * value.mean:.2f}{std}"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


def plain(table: ResultTable) -> dict[str, Any]:
    """A table as JSON has it; figures are shares in 0..1 with their deviation."""

    def cell(value: Value) -> Any:
        return {"mean": value.mean, "std": value.std} if isinstance(value, Figure) else value

    rows = [[cell(value) for value in row] for row in table.rows]
    return {"columns": list(table.columns), "rows": rows, "notes": list(table.notes)}


def to_latex(table: ResultTable) -> str:
    """Write a table as LaTeX with booktabs, its notes as comments above."""

    def cell(value: Value) -> str:
        if isinstance(value, Figure) and value.std is not None:
            return "$" + text(value, plus_minus=r" \pm ") + "$"
        return _escape(text(value, none="--"))

    head = " & ".join(map(_escape, table.columns)) + r" \\"
    body = [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    columns = "ll" + "r" * (len(table.columns) - 2)
    start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    comments = [f"% {' '.join(note.splitlines())}" for note in table.notes]
    return "\n".join([*comments, *start, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.splitlines()))


def to_csv(table: ResultTable) -> str:
    """Write a table as CSV: mean and std in columns of their own, unrounded.

    A text that spreadsheets would compute, as it begins with = + - @ or a tab and is no number, gets a '
    before it.
    """
    figures = {i for row in table.rows for i, value in enumerate(row) if isinstance(value, Figure)}
    head = [name for i, c in enumerate(table.columns) for name in ([c, f"{c} std"] if i in figures else [c])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_uncomputed, head))
    for row in table.rows:
        cells: list[Value] = []
        for i, value in enumerate(row):
            if i not in figures:
                cells.append(_uncomputed(value) if isinstance(value, str) else value)
            elif isinstance(value, Figure):
                cells += [100 * value.mean, None if value.std is None else 100 * value.std]
            else:
                cells += [value, None]
        writer.writerow(cells)
    return buffer.getvalue()


def _uncomputed(text: str) -> str:
    try:
        float(text)  # such as a gain, +1.20
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
    return text
