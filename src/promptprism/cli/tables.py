"""Tables for the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from rich import box
from rich.color import Color
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

Row = Mapping[str, Any]

# Classes in a table of counts.
_MOST_CLASSES = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int = 10, style: str = "cyan") -> Text:
    """Draw a share in 0..1 as a bar."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    filled = "█" * whole + (_EIGHTHS[rest] if rest else "")
    return Text(filled.ljust(width), style)


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share in 0..1 as per cent."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def duration(seconds: float) -> str:
    """Write a time as a person would."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def facts(title: str, rows: Mapping[str, str | Text | None]) -> Table:
    """Set names and values below a title; values that are None are left out."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def grid(*columns: str | Column, caption: str | None = None) -> Table:
    """An empty table with a caption in grey."""
    return Table(
        *columns,
        caption=caption,
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def _name(header: str) -> Column:
    return Column(header, style="bold", no_wrap=True)


def numbers(*headers: str) -> list[str | Column]:
    """Columns of numbers."""
    return [Column(header, justify="right", no_wrap=True) for header in headers]


def datasets(entries: Sequence[Row]) -> Table:
    """Registered data sets: rows with name, classes, images by split, summary."""
    caption = "DATA may also be a folder with one subfolder per class, or a CSV of path,label"
    table = grid(_name("name"), *numbers("classes", "train", "test"), "shows", caption=caption)
    for entry in entries:
        counts = [f"{entry['images'][split] or '–'}" for split in ("train", "test")]
        table.add_row(entry["name"], str(entry["classes"]), *counts, Text(entry["summary"]))
    return table


def backbones(entries: Sequence[Row]) -> Table:
    """Backbones that can be used: size, image and text, what they carry, tags of their weights."""
    table = grid(
        _name("name"),
        *numbers("M", "pixels", "image", "text"),
        Column("prompts", no_wrap=True),
        Column("weights", overflow="fold"),
        caption="M: million numbers; image, text: tokens; weights: first tag, and how many more",
    )
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['parameters'] / 1e6:,.0f}",
            str(entry["image_size"]),
            str(entry["image_tokens"] or "–"),
            str(entry["context_length"]),
            "both" if entry["vision_prompts"] else "text",
            " + ".join(filter(None, (*entry["tags"][:1], str(len(entry["tags"][1:]) or "")))),
        )
    return table


def summaries(rows: Mapping[str, Row]) -> Table:
    """Methods with what they are."""
    caption = "promptprism methods METHOD shows the settings of one"
    table = grid(_name("method"), "what it is", caption=caption)
    for name, row in rows.items():
        table.add_row(name, Text(row["summary"]))
    return table


def settings(rows: Mapping[str, Row]) -> Table:
    """Settings of a method with default and meaning."""
    default = Column("default", overflow="fold", max_width=24)
    other = {name: row["paper"] for name, row in rows.items() if row["paper"] != row["default"]}
    caption = "change one by fit --set NAME=VALUE"
    if other:
        told = ", ".join(f"{name}={_value(value)}" for name, value in other.items())
        caption += f"; --set preset=paper is {told}"
    table = grid(_name("setting"), default, "meaning", caption=caption)
    for name, row in rows.items():
        table.add_row(name, Text(_value(row["default"])), Text(row["meaning"] or ""))
    return table


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def predictions(rows: Sequence[Row]) -> Table:
    """Predictions: rows of `promptprism.inference.answers`, perhaps with the truth."""
    evidential = any(row["uncertainty"] is not None for row in rows)
    truth = any("truth" in row for row in rows)
    table = grid(Column("image", overflow="fold"), "class", Column("probability %", no_wrap=True))
    if evidential:
        table.add_column("uncertainty %", no_wrap=True)
    table.add_column("truth" if truth else "next best", style=None if truth else "dim")
    if sets := any("set" in row for row in rows):
        table.add_column("may be", overflow="fold")

    def cells(opinion: Row) -> list[Text]:
        shown = [Text(opinion["class"]), _measure(opinion["probability"], "cyan")]
        return shown + ([_measure(opinion["uncertainty"], "magenta")] if evidential else [])

    # Full paths would leave no room for the rest.
    names = [Path(row["image"]).name for row in rows]
    names = names if len(set(names)) == len(names) else [row["image"] for row in rows]
    for row, name in zip(rows, names, strict=True):
        last = _verdict(row) if truth else _next_best(row)
        more = [Text(", ".join(row["set"]))] if sets else []
        table.add_row(Text(name), *cells(row), last, *more, style="bold" if "templates" in row else None)
        for number, opinion in enumerate(row.get("templates", ()), start=1):
            table.add_row(Text(f"  S{number}"), *cells(opinion), style="dim")
            table.caption = "S1, S2, ...: the opinions of the templates, which are fused above them"
        if "templates" in row:
            table.add_section()
    return table


def counts(answered: Mapping[str, int], images: int, abstained: int, threshold: float | None) -> Table:
    """How many images there are of each class, the most frequent first, and how many have no answer."""
    listed = sorted(answered.items(), key=lambda pair: -pair[1])
    more = len(listed) - _MOST_CLASSES
    caption = f"and {more} more classes" if more > 0 else None
    table = grid("class", *numbers("photos"), Column("share %", no_wrap=True), caption=caption)
    for name, count in listed[:_MOST_CLASSES]:
        table.add_row(Text(name), f"{count:,}", _measure(count / images, "cyan"))
    if threshold is not None:
        least = f"no answer (below {threshold:.2f})"
        table.add_row(Text(least, "dim"), f"{abstained:,}", _measure(abstained / images, "magenta"))
    table.add_section()
    table.add_row(Text("all", "bold"), f"{images:,}", "")
    return table


def album(rows: Sequence[Row], pictures: Sequence[Image]) -> Table:
    """Predictions beside small pictures of what they are about, for terminals with colours."""
    grid = Table.grid(padding=(1, 1))
    for row, picture in zip(rows, pictures, strict=True):
        opinions = predictions([row])
        opinions.caption = None
        grid.add_row(thumbnail(picture), opinions)
    return grid


def thumbnail(picture: Image, lines: int = 7) -> Text:
    """Draw an RGB picture in half blocks, two pixels a line."""
    side = 2 * lines
    pixels = np.asarray(picture.resize((side, side))).tolist()
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def _verdict(row: Row) -> Text:
    return Text("✓", "green") if row["truth"] == row["class"] else Text(f"✗ {row['truth']}", "red")


def _next_best(row: Row) -> Text:
    return Text(
        ", ".join(f"{other['class']} {percent(other['probability'], 0)}" for other in row["top"][1:2])
    )


def _measure(share: float, style: str) -> Text:
    return Text.assemble(f"{percent(share):>5} ", bar(share, 8, style))


def evaluation(result: Row) -> Table:
    """Accuracy, fused and of each template, and the calibration of the probabilities."""
    metrics = result["metrics"]
    several = len(result["templates"]) > 1
    table = grid("", Column("accuracy %", no_wrap=True))
    for number, one in enumerate(result["templates"] if several else (), start=1):
        table.add_row(f"S{number}", _measure(one["cls/accuracy"], "blue"))
    table.add_row("fused" if several else "accuracy", _measure(metrics["cls/accuracy"], "cyan"), style="bold")
    table.add_section()
    table.add_row("macro F1", percent(metrics["cls/macro_f1"]))
    table.add_row("calibration error", percent(metrics["cal/ece"]))
    if "cal/uncertainty" in metrics:
        table.add_row("mean uncertainty", percent(metrics["cal/uncertainty"]))
    return table


def classes(rows: Sequence[Row]) -> Table:
    """Images, precision and recall of each class."""
    table = grid("class", *numbers("images", "precision %", "recall %"))
    for row in rows:
        table.add_row(
            Text(row["class"]), str(row["images"]), percent(row["precision"]), percent(row["recall"])
        )
    return table


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """How many images of each class (rows) were taken for each (columns), numbered in their order."""
    places = numbers(*map(str, range(1, len(names) + 1)))
    table = grid("", *places, caption="rows: what is to be seen; columns: what it was taken for")
    for number, (name, row) in enumerate(zip(names, matrix, strict=True)):
        cells = [
            Text(str(count) if count else "·", "bold" if place == number else "red" if count else "dim")
            for place, count in enumerate(row)
        ]
        table.add_row(Text(f"{number + 1} {name}"), *cells)
    return table


def confused(rows: Sequence[Row], most: int = 10) -> Table:
    """The pairs of classes that are confused most."""
    caption = f"and {len(rows) - most} more pairs" if len(rows) > most else None
    table = grid("is", "was taken for", *numbers("images"), caption=caption)
    for row in rows[:most]:
        table.add_row(Text(row["truth"]), Text(row["answer"]), str(row["images"]))
    return table


def methods(results: Mapping[str, Row]) -> Table:
    """Base-to-new results by method, the best of each column in bold."""
    columns = ("base", "new", "hm")
    table = grid(
        Column("method", style="bold"),
        *numbers("base", "new", "HM", "learned", "epochs", "ms", "time"),
        caption="accuracy in %; HM: harmonic mean of base and new; ms: per training step",
    )
    best = {c: max((row[c] for row in results.values() if row[c] is not None), default=None) for c in columns}
    for name, row in results.items():
        shares = [
            Text(percent(row[c]), "bold green" if row[c] is not None and row[c] == best[c] else "")
            for c in columns
        ]
        step = row["seconds_per_step"]
        table.add_row(
            name,
            *shares,
            f"{row['trainable']:,}" if row["trainable"] else "–",
            str(row["epochs"]) if row["epochs"] else "–",
            "–" if step is None else f"{1000 * step:.0f}",
            duration(row["seconds"]),
        )
    return table


def calibration(found: Mapping[str, Any]) -> dict[str, str | None]:
    """What photos told of an adapter's probabilities, as a person reads it."""
    sets, risk = found["sets"], f"{percent(found['risk'])} %"
    kind = "class by class" if len(sets["quantiles"]) > 1 else "over all classes"
    return {
        "calibrated by": f"{found['n']} photos of {found['data']}, and a third as many for the temperature",
        "temperature": f"{found['temperature']:.3f}",
        f"threshold for {risk} errors": "none is shown to keep it"
        if found["threshold"] is None
        else f"{found['threshold']:.2f}, which answers {percent(found['answered'])} %",
        "sets": f"{sets['score'].upper()}, {1 - sets['alpha']:.4g} coverage, {kind}",
    }
