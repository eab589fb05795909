"""One door for every image: whatever the user holds becomes an 8-bit RGB picture."""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from promptprism.data.pixels import Range, grey_range, say, scaled, to_rgb
from promptprism.errors import PromptPrismError
from promptprism.files import check_regular

#: File endings taken for images; other files in a data folder are skipped and reported.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm"}
)

#: Decoders that are ever asked. Others start programs (EPS) or are seldom looked after.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "PPM")
_HEIF = re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*|P[1-6]\s+[\d#]|....ftypavi[fs]|"
    + _HEIF.pattern,
    re.DOTALL,
)

#: Pixels of the largest file that is decoded; the largest cameras make half of that.
MOST_PIXELS = 200_000_000
# From here on, images are decoded one at a time, whatever the number of threads.
_LARGE = 25_000_000
_ONE_LARGE = Lock()
# A PNG of one colour has 8,256 pixels in a byte; a header alone may claim millions.
_MOST_PER_BYTE = 20_000

# Pillow warns of files from 89 million pixels on, and has one limit for the whole process.
_PILLOW_LIMIT = Lock()

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@runtime_checkable
class Drawable(Protocol):
    """An image made on demand, such as a MiniWorld scene."""

    def image(self) -> Image.Image:
        """Draw it."""
        ...


@runtime_checkable
class Stored(Protocol):
    """An encoded image inside of something else, such as a member of an archive; its text names it."""

    def content(self) -> bytes:
        """Read the bytes of the image file."""
        ...


#: Large photos are shrunk to so many times the size of the model's image first.
SHRUNK = 4

ImageSource = str | Path | Image.Image | NDArray[Any] | Drawable | Stored


def load_image(source: ImageSource, least: int | None = None, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decode an image to 8-bit RGB, upright, transparency over white, first frame of an animation.

    Args:
        source: path of a file, PIL image, array (uint8, uint16, or float in 0..1; H x W, H x W x 1, 3 or 4),
            or an object whose ``image()`` returns a PIL image or whose ``content()`` the bytes of a file.
        least: shrink a picture whose short side is at least twice this, but not below this: large photos are
            then decoded and handled many times faster.
        most_pixels: of a file that is decoded.

    Raises:
        PromptPrismError: the file is missing, unreadable, cut short or too large, or the array is no image.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), least, most_pixels)
    if isinstance(source, Stored):
        return _read_file(source, least, most_pixels)
    if isinstance(source, Image.Image):
        return _read_image(source, least)
    if isinstance(source, np.ndarray):
        return _upright(_from_array(source), least, "given as an array")
    if isinstance(source, Drawable):
        return _upright(source.image(), least, str(source))
    raise PromptPrismError(
        f"cannot take an image from {type(source).__name__}: give a path, a PIL image or a numpy array"
    )


def fitted(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side (bicubic) and cut out the centre, as all CLIP work does at test time."""
    width, height = image.size
    # Of a ribbon only the middle is seen: do not blow up the rest.
    if max(width, height) > 8 * min(width, height):
        image = _centre(image, min(width, 8 * height), min(height, 8 * width))
        width, height = image.size
    short = min(width, height)
    wanted = size * width // short, size * height // short
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    return _centre(image, size, size)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    # Halves are rounded to even, as torchvision does.
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def seen_pixels(source: ImageSource, size: int, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """The square [size, size, 3] that a model sees of an image when it predicts; see `load_image`."""
    return np.asarray(fitted(load_image(source, SHRUNK * size, most_pixels), size))


@cache
def reading_threads() -> ThreadPoolExecutor:
    """Threads that decode, the same for the whole process.

    Were they made for each epoch, a Ctrl-C in the instant when Python collects them would be lost: it drops
    what is raised there.
    """
    return ThreadPoolExecutor(min(4, 1 + (os.cpu_count() or 1)), thread_name_prefix="promptprism-reading")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reading_threads.cache_clear)  # a fork takes no threads along


def unreadable(
    sources: Sequence[ImageSource], step: Callable[[int, int], None] = lambda *_: None
) -> list[str]:
    """Decode images, and say of each that cannot be decoded what is wrong with it.

    Images that are drawn on demand are not asked. Large JPEGs are decoded small, which finds the same faults.

    Args:
        sources: what `load_image` takes.
        step: called with images decoded and images in all.
    """

    def problem(source: ImageSource) -> str | None:
        try:
            if not isinstance(source, Drawable):
                load_image(source, least=32)
        except PromptPrismError as error:
            return str(error)
        return None

    found = []
    for done, what in enumerate(reading_threads().map(problem, sources), 1):
        step(done, len(sources))
        if what is not None:
            found.append(what)
    return found


def check_images(sources: Sequence[ImageSource]) -> None:
    """Decode training images before training starts.

    Raises:
        PromptPrismError: some cannot be decoded: how many, and what is wrong with the first five.
    """
    if faults := unreadable(sources):
        raise PromptPrismError(
            f"{len(faults)} of {len(sources)} training images cannot be read: {'; '.join(faults[:5])}"
        )


def _read_file(source: Path | Stored, least: int | None, most_pixels: int) -> Image.Image:
    size = 0
    try:
        if isinstance(source, Path):
            size = check_regular(source)
            image = _open(source)
        else:
            content = source.content()
            size = len(content)
            image = _open(BytesIO(content))
        with image, _ONE_LARGE if image.width * image.height > _LARGE else nullcontext():
            _check_claim(image, size, most_pixels)
            if least is not None:
                image.draft(None, (least, least))  # a JPEG can be decoded at 1/2, 1/4 or 1/8
            return _upright(image, least, str(source))
    except FileNotFoundError as error:
        web = str(source).startswith(("http:/", "https:/"))
        remedy = "An address is no file: download it" if web else "Check the path and its spelling"
        raise PromptPrismError(f"no such image: '{source}'. {remedy}") from error
    except IsADirectoryError as error:
        raise PromptPrismError(f"'{source}' is a folder, not an image: name the files in it") from error
    except PermissionError as error:
        raise PromptPrismError(f"not allowed to read image '{source}': change its permissions") from error
    except UnidentifiedImageError as error:
        what = "is not an image that can be read" if size else "is empty"
        raise PromptPrismError(
            f"image '{source}' {what}: replace or remove it, or convert it to PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise PromptPrismError(
            f"image '{source}' is too large ({error}): shrink it, models see far fewer pixels"
        ) from error
    except PromptPrismError as error:
        named = str(source) in str(error)
        raise PromptPrismError(str(error) if named else f"image '{source}' {error}") from error
    # A decoder may raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise PromptPrismError(
            f"image '{source}' is truncated or damaged ({error}): replace or remove the file"
        ) from error


def _read_image(image: Image.Image, least: int | None) -> Image.Image:
    name = str(getattr(image, "filename", "")) or "given as a PIL image"
    try:
        return _upright(image, least, name)
    except PromptPrismError as error:
        raise PromptPrismError(f"image '{name}' {error}") from error
    except Exception as error:  # Pillow opens a file without reading its pixels
        raise PromptPrismError(
            f"image '{name}' is truncated or damaged ({error}): replace or remove it"
        ) from error


def _open(file: Path | BytesIO) -> Image.Image:
    """Read an image's header without Pillow's limit, which is left as it was, and with no other decoders."""
    with _PILLOW_LIMIT:
        # A number, not None: Pillow asks twice when another thread crops, and would multiply what is gone.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, sys.maxsize
        try:
            Image.init()  # loads all decoders, the first time
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            if not looks_like_image(_head(file), _HEIF):
                raise
            try:
                heif = importlib.import_module("pi_heif")
            except ImportError as error:
                raise PromptPrismError(
                    "is a HEIC: pip install 'promptprism[heif]' to read it, or convert it to PNG or JPEG"
                ) from error
            heif.register_heif_opener()
            return Image.open(file, formats=("HEIF",))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _head(file: Path | BytesIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(32)
    file.seek(0)
    return file.read(32)


def looks_like_image(head: bytes, signatures: re.Pattern[bytes] | None = None) -> bool:
    """Whether a file that begins with these 32 bytes is an image, whatever its name."""
    return (signatures or _SIGNATURES).match(head) is not None


def _check_claim(image: Image.Image, size: int, most: int) -> None:
    """Refuse more pixels than are decoded, or than so few bytes can honestly hold, before memory is taken."""
    pixels = image.width * image.height
    claim = f"{image.width} x {image.height} pixels"
    if pixels > most:
        raise Image.DecompressionBombError(f"{claim}, {most / 10**6:g} million are the most")
    if pixels > _LARGE and pixels > _MOST_PER_BYTE * size:
        raise PromptPrismError(f"claims {claim} in {size} bytes: it is damaged or no picture, remove it")


def _upright(image: Image.Image, least: int | None, name: str) -> Image.Image:
    turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    factor = 1 if least is None else max(1, min(image.size) // least)
    rgb = to_rgb(image, factor, name)
    return rgb if turn is None else rgb.transpose(turn)


def _from_array(array: NDArray[Any]) -> Image.Image:
    where = f"array of shape {array.shape} and type {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {3, 4}) or array.size == 0:
        raise PromptPrismError(f"{where} is not an image: give height x width, or height x width x 3 or 4")
    if array.dtype.kind == "f":
        # The negation also catches NaN.
        if not (array.min() >= 0 and array.max() <= 1):
            raise PromptPrismError(
                f"{where} has values from {array.min():g} to {array.max():g}: floats must lie in 0..1, "
                "or give uint8 values 0..255"
            )
        return Image.fromarray(scaled(array, Range(0, 1)))
    if array.dtype == np.uint16:
        scale = grey_range(array)
        say(scale, where)
        return Image.fromarray(scaled(array, scale))
    if array.dtype != np.uint8:
        raise PromptPrismError(f"{where} is not an image: give uint8 values 0..255 or floats 0..1")
    return Image.fromarray(array)


def identity(source: ImageSource, folder: Path | None = None) -> str:
    """What tells an image from others, on every machine: its place in a folder, its key, or its pixels.

    Without the folder a file is known by its name and that of the folder around it: data may move.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        return Path(os.path.relpath(path, folder)).as_posix() if folder else "/".join(path.parts[-2:])
    if (key := getattr(source, "key", None)) is not None:
        return str(key)
    return hashlib.sha256(load_image(source).tobytes()).hexdigest()
