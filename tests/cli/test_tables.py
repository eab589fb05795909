import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from promptprism.cli import tables


def printed(thing, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "share, drawn",
    [(0, "    "), (1, "████"), (0.5, "██  "), (0.53125, "██▏ "), (-1, "    "), (7, "████"), (1e-9, "    ")],
)
def test_bar(share, drawn):
    assert tables.bar(share, 4).plain == drawn


def test_numbers_as_people_write_them():
    assert [tables.percent(x) for x in (0.12345, 1.0, None)] == ["12.3", "100.0", "–"]
    assert [tables.duration(x) for x in (0.0123, 12.34, 99.9, 100, 119.7, 3671)] == [
        "12 ms", "12.3 s", "99.9 s", "1 min 40 s", "2 min 00 s", "61 min 11 s",
    ]  # fmt: skip


def test_names_from_users_are_no_markup():
    row = {"image": "a[red]b.png", "class": "[bold]x", "probability": 0.5, "uncertainty": None, "top": [{}]}
    assert "a[red]b.png" in printed(tables.predictions([row])) and "[bold]x" in printed(
        tables.predictions([row])
    )
    assert "[dim]" in printed(tables.facts("t", {"phrase": "[dim]"}))


def test_truth_is_judged():
    row = {"image": "1", "class": "cat", "probability": 0.5, "uncertainty": 0.25, "truth": "dog"}
    row["templates"] = [{"class": "dog", "probability": 0.75, "uncertainty": 0.5}]
    out = printed(tables.predictions([row, row | {"truth": "cat"}]))
    assert "✗ dog" in out and out.count("✓") == 1 and out.count("  S1") == 2
    assert "50.0 ████" in out and "75.0 ██████" in out


def test_best_method_is_marked_and_collapsed_ones_are_not_numbers():
    row = {
        "base": 0.5,
        "new": 0.25,
        "hm": 1 / 3,
        "trainable": 1234,
        "epochs": 5,
        "seconds_per_step": 0.05,
        "seconds": 65,
    }
    out = printed(tables.methods({"maple": row, "cdc": row | {"hm": None}}))
    assert "33.3" in out and "–" in out and "1,234" in out and "65.0 s" in out


def test_thumbnail_shows_the_colours():
    picture = Image.fromarray(np.array([[[255, 0, 0]] * 2, [[0, 0, 255]] * 2], dtype=np.uint8))
    text = tables.thumbnail(picture.resize((4, 4), Image.Resampling.NEAREST), 2)
    assert text.plain == "▀▀▀▀\n▀▀▀▀\n"
    first, last = text.spans[0].style, text.spans[-1].style
    assert first.color.triplet == first.bgcolor.triplet == (255, 0, 0)
    assert last.color.triplet == last.bgcolor.triplet == (0, 0, 255)
