"""The archive of emoji sprites that MiniWorld's scenes are made of."""

import functools
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Concept:
    """A thing that several artists have drawn.

    Attributes:
        code: Its Unicode code points, the key of its sprites.
        name: What it is called, for instance "red apple".
        group: Its Unicode subgroup, for instance "food-fruit".
        artists: Who has drawn it.
    """

    code: str
    name: str
    group: str
    artists: frozenset[str]


@functools.cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(Path(__file__).with_name("sprites.zip"))


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts, in Unicode's order."""
    entries: list[dict[str, Any]] = json.loads(_archive().read("concepts.json"))
    return tuple(Concept(e["hexcode"], e["name"], e["group"], frozenset(e["artists"])) for e in entries)


@functools.lru_cache(maxsize=4096)
def sprite(artist: str, code: str) -> Pixels:
    """Return one artist's drawing of a concept as RGBA pixels [64, 64, 4]; transparent pixels are black."""
    data = _archive().read(f"{artist}/{code}.webp")
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
    pixels.setflags(write=False)
    return pixels
