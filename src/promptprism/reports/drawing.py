"""What all figures share: colours, fonts, and files that come out the same every time."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.font_manager
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from promptprism.errors import PromptPrismError, warn
from promptprism.files import check_place, write_bytes

FORMATS = ("png", "svg", "pdf")
#: Okabe and Ito's palette, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
GREY = "#9a9a9a"
_PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
#: For those who cannot tell the colours.
_MARKERS = "osD^vP"
#: Fonts of the systems with letters that matplotlib's own lacks; where several draw one, the first does.
_WIDE_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS"),
)

T = TypeVar("T")

_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    # A name with two $ is no formula.
    "text.parse_math": False,
    "text.usetex": False,
    # Without a salt, the names inside an SVG differ from run to run.
    "svg.hashsalt": "promptprism",
}


def looks(things: Iterable[T]) -> Iterator[tuple[T, str, str]]:
    """Each thing with a colour and a marker of its own: after a round of the palette, darker and shifted."""
    for place, thing in enumerate(things):
        turn, of = divmod(place, len(_PALETTE))
        red, green, blue = (0.6**turn * part for part in to_rgb(_PALETTE[of]))
        yield thing, to_hex((red, green, blue)), _MARKERS[(place + turn) % len(_MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts keep out of each other's way."""
    with styled():
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
        return figure


def styled() -> Any:
    """The context in which axes must be made and filled."""
    there = {*matplotlib.font_manager.fontManager.get_font_names()}
    return mpl.rc_context(
        _STYLE | {"font.family": ["sans-serif", *(font for font in _WIDE_FONTS if font in there)]}
    )


def check_figure(path: Path) -> None:
    """Find out before long work starts whether a figure can be written there.

    Raises:
        PromptPrismError: unknown format, or the place cannot be written.
    """
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise PromptPrismError(f"cannot draw '{path}': its name must end in .{', .'.join(FORMATS)}")
    check_place(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its name says, the same bytes for the same figure.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    buffer = io.BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with styled(), warnings.catch_warnings(record=True) as told:
        figure.savefig(buffer, format=kind, dpi=130, metadata=dated)
    missing = ""
    for one in told:
        if found := re.match(r"Glyph (\d+) ", str(one.message)):
            missing += chr(int(found[1]))
        else:
            warnings.warn(one.message, one.category, stacklevel=2)
    if missing:
        warn(
            f"'{path}' has boxes for letters that no font of this machine draws, such as {missing[:5]}: "
            f"install one that does, such as Noto Sans CJK, remove '{mpl.get_cachedir()}', and draw again"
        )
    write_bytes(path, buffer.getvalue())
