"""Remake the documentation's pictures of what commands show: python tools/make_pictures.py docs/images.

Learns mammals of MiniWorld in a few minutes; every picture in it is drawn by the package itself.
"""

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import typer
from PIL import Image
from rich.console import Console
from rich.text import Text

from promptprism import load_data
from promptprism.data.images import load_image

DATA, SHOTS, WIDTH = "mini/mammals", 2, 80
#: Test images: what they are called, and their places. One is plain, one doubtful.
IMAGES = {"elephant.png": 305, "chipmunk.png": 153}
#: The picture of each command.
SHOWN = {
    "predict": "promptprism predict mammals elephant.png chipmunk.png --templates",
    "evaluate": "promptprism evaluate mammals mini/mammals",
}


def show(command: str, folder: Path) -> str:
    """Run a command as on a terminal of 80 columns and return what it shows, with its colours."""
    words = [sys.executable, "-m", *shlex.split(command)]
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def picture(command: str, shown: str) -> str:
    """Draw a terminal with a command and what it showed, as SVG without fonts from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold]$[/] {command}")
    console.print(Text.from_ansi(shown.rstrip()))
    svg = console.export_svg(title="promptprism", unique_id="shown")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main(out: Path) -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        test = load_data(DATA).test
        for name, place in IMAGES.items():
            image = load_image(test[place].source)
            image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(folder / name)
        show(f"promptprism fit {DATA} --shots {SHOTS} --seed 1 --out mammals", folder)
        show(f"promptprism explain mammals {next(iter(IMAGES))} --out why.png", folder)
        Image.open(folder / "why.png").convert("RGB").quantize(96).save(out / "explain.png", optimize=True)
        for name, command in SHOWN.items():
            (out / f"{name}.svg").write_text(picture(command, show(command, folder)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
