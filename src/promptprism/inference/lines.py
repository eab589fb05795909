"""Answers as lines of tables, and back."""

import json

from promptprism.data.growing import Line
from promptprism.inference.answers import Row

#: Names and types of the columns; with sets there is ``set`` besides.
COLUMNS: dict[str, type] = {
    "path": str,
    "class": str,
    "probability": float,
    "uncertainty": float,
    "runner_up": str,
    "runner_up_probability": float,
    "disagreement": float,
    "abstained": bool,
    "error": str,
}


def line_of(row: Row, abstained: bool) -> Line:
    """A row as a line of the table."""
    line: Line = {"path": row["image"]}
    if "reason" in row:
        return line | {"error": row["reason"]}
    second = row["top"][1] if len(row["top"]) > 1 else {"class": None, "probability": None}
    return line | {
        "class": row["class"],
        "probability": row["probability"],
        "uncertainty": row["uncertainty"],
        "runner_up": second["class"],
        "runner_up_probability": second["probability"],
        "disagreement": row["disagreement"],
        "abstained": abstained,
        **({"set": json.dumps(row["set"], ensure_ascii=False)} if "set" in row else {}),
    }


def row_of(line: Line) -> Row:
    """A line that was read again as a row."""
    number = {name: float(line[name]) if line[name] else None for name in COLUMNS if COLUMNS[name] is float}
    best = {"class": line["class"], "probability": number["probability"]}
    second = {"class": line["runner_up"], "probability": number["runner_up_probability"]}
    return {
        "image": line["path"],
        **best,
        "belief": None,
        "uncertainty": number["uncertainty"],
        "top": [best, second] if second["class"] else [best],
        "disagreement": number["disagreement"],
        **({"set": json.loads(line["set"])} if "set" in line else {}),
    }
