"""The example scripts run as they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from toys import COLOURS, picture

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_heap_is_sorted_and_learned_from(tmp_path):
    for colour in tuple(COLOURS)[:3]:
        for number in range(12):
            path = tmp_path / "data" / colour / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(colour, number)).save(path)
    small = [
        "--shots",
        1,
        "--heap",
        20,
        "--review",
        6,
        "--backbone",
        "mini",
        "--set",
        "epochs=1",
        "--json",
        tmp_path / "a.json",
    ]
    command = [sys.executable, ROOT / "examples" / "sort_flowers.py", tmp_path / "data", *small]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"20 photos answered, 6 looked at.*: ([\d.]+)% before, ([\d.]+)% after", done.stdout)
    assert found and 0 <= float(found[1]) <= 100 and 0 <= float(found[2]) <= 100
    assert "broken.jpg" in done.stdout
    told = json.loads((tmp_path / "a.json").read_text())
    assert [f"{100 * told[when]:.1f}" for when in ("before", "after")] == [*found.groups()]
