"""Pixels of any depth as 8-bit RGB, a strip at a time, so that memory holds one picture and no copies of it.

Grey values of more than 8 bits are scaled by a rule that looks at the picture alone. Its ends are the lowest
and the highest finite value, but for the outermost thousandth of the pixels (of a hundred or more), so that a
hot pixel changes nothing else:

- integers: by the smallest number of bits, 8 to 32, that holds the upper end; black is 0. Are some negative,
  the lower end is black and the upper white.
- floats: 0..1, if both ends lie there; 0..255, if they lie there and are at least 16 apart; else the lower
  end is black and the upper white.

What lies beyond is cut off; minus infinity and what is no number are black. A range that is guessed, or that
the picture hardly uses, is said as a `DataWarning`, for the first image of each kind.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptprism.errors import DataWarning, PromptPrismError, warn

#: Pixels that are converted at a time.
STRIP = 4_000_000
#: Pixels, evenly over the picture, that decide about its range.
_SAMPLE = 1_000_000
# A range of which less than this part is used is hardly used.
_HARDLY = 1 / 16

# Kinds of remarks that were made: ten thousand images of one camera need no ten thousand lines.
_SAID: set[str] = set()


class Range(NamedTuple):
    """What is black and what is white, and what is to be said of that.

    Attributes:
        black: value that becomes 0.
        white: value that becomes 255.
        kind: what was guessed, or "" for nothing.
        remark: the same for this very picture.
    """

    black: float
    white: float
    kind: str = ""
    remark: str = ""


def to_rgb(image: Image.Image, factor: int, name: str) -> Image.Image:
    """Convert a picture to 8-bit RGB, transparency over white, each side shrunk by a whole factor.

    Raises:
        PromptPrismError: a float image has no finite value.
    """
    cut = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    convert: Callable[[Image.Image], Image.Image] = _over_white
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        scale = grey_range(np.concatenate([_thinned(strip, image) for _, strip in _strips(image, 1)]))
        say(scale, name)
        convert = _scaling(scale)
    elif cut and (top := max(high for _, high in image.getextrema())) < 128:  # type: ignore[misc]
        kind = "colours of 16 bits are read by their upper 8"
        say(Range(0, 255, kind, f"{kind}, of which only 0 to {top} are used: scale them to 8 bits"), name)
    if image.width * image.height <= STRIP:
        whole = convert(image)
        return whole.reduce(factor) if factor > 1 else whole
    rgb = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, strip in _strips(image, factor):
        part = convert(strip)
        rgb.paste(part.reduce(factor) if factor > 1 else part, (0, top // factor))
    return rgb


def grey_range(values: NDArray[Any]) -> Range:
    """What is black and what white in grey values of more than 8 bits; the rule is at the top of this module.

    Raises:
        PromptPrismError: no value is finite.
    """
    values = values.ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise PromptPrismError("has no finite value: replace or remove it")
    aside = -(-finite.size // 1000) if finite.size >= 100 else 0
    ends = np.partition(finite, [aside, finite.size - 1 - aside])
    low, high = float(ends[aside]), float(ends[finite.size - 1 - aside])
    told = f"values from {low:g} to {high:g}"
    whole = values.dtype.kind in "iu"
    if whole and low >= 0:
        bits = max(8, math.ceil(math.log2(high + 1)))
        white = 2.0**bits - 1
        # Files of 8 bits also come as 32; 16 that reach into the upper half are just 16.
        if bits != 16 and not (bits == 8 and values.dtype.itemsize > 2):
            return Range(0, white, f"{bits} bits", f"{told} are taken for {bits} bits")
    elif not whole and low >= 0 and (high <= 1 or (high <= 255 and high - low >= 16)):
        white = 1.0 if high <= 1 else 255.0
        if white > 1:
            return Range(0, white, "floats 0..255", f"{told} are taken for a range of 0 to 255")
    else:
        return Range(low, high, "stretched", f"{told} are stretched: the lowest is black, the highest white")
    if high - low < _HARDLY * white:
        return Range(0, white, f"hardly used {white:g}", f"{told} hardly use the range of 0 to {white:g}")
    return Range(0, white)


def scaled(values: NDArray[Any], scale: Range) -> NDArray[np.uint8]:
    """Grey values as bytes."""
    # float32 holds 16 bits exactly.
    grey: NDArray[np.floating] = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    grey -= scale.black
    grey *= 255 / ((scale.white - scale.black) or 1)
    np.nan_to_num(grey, copy=False, nan=0, posinf=255, neginf=0)
    return np.clip(np.rint(grey, out=grey), 0, 255, out=grey).astype(np.uint8)


def say(scale: Range, name: str) -> None:
    """Warn of a range that was guessed, the first time that one of its kind is."""
    if scale.kind and scale.kind not in _SAID:
        _SAID.add(scale.kind)
        warn(
            f"image '{name}': {scale.remark}. If that is wrong, convert to 8 bits; other images like it are "
            "not named",
            DataWarning,
        )


def _strips(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP // image.width // factor) * factor
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _thinned(strip: Image.Image, image: Image.Image) -> NDArray[Any]:
    step = math.ceil(math.sqrt(image.width * image.height / _SAMPLE))
    return np.asarray(strip)[::step, ::step].ravel()


def _scaling(scale: Range) -> Callable[[Image.Image], Image.Image]:
    return lambda strip: Image.fromarray(scaled(np.asarray(strip), scale)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow turns it into nothing else
            image = image.convert("LA")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
