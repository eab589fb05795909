"""Scenes: one object on a background, with every factor that made the image known.

In the causal graph of CDC, which object is shown is the task-relevant factor (Gr); artist, colour, pattern,
scale, rotation, place and second object are the task-irrelevant ones (Gi). An intervention is
``dataclasses.replace(scene, colour="red")``: the same scene with one factor set to another value.

Pixels are computed in integers, so that a scene has the same bytes on every machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from promptprism.data.miniworld.sprites import Concept, Pixels, sprite

SIZE = 48
COLOURS = {
    "red": (200, 45, 45),
    "orange": (235, 135, 40),
    "yellow": (240, 215, 70),
    "green": (60, 150, 65),
    "teal": (40, 150, 150),
    "blue": (55, 90, 200),
    "purple": (125, 65, 175),
    "pink": (240, 150, 185),
    "brown": (125, 80, 50),
    "white": (240, 240, 240),
    "gray": (135, 135, 135),
    "black": (35, 35, 35),
}
PATTERNS = ("plain", "striped", "checkered", "dotted", "gradient", "noisy")
UNSEEN_PATTERNS = ("zigzag", "ringed", "crossed")
MONOCHROME = ("fluent-emoji-high-contrast", "emojione-monotone")

Draw = Callable[[str, str], Pixels]
_Ints = npt.NDArray[np.int32]
_Y, _X = (a.astype(np.int32) for a in np.mgrid[0:SIZE, 0:SIZE])


@dataclass(frozen=True)
class Scene:
    """Everything that determines an image.

    Attributes:
        concept: The object: the task-relevant factor.
        artist: Whose drawing of it.
        colour: Name of the background's colour, a key of COLOURS.
        pattern: The background's pattern, one of PATTERNS or UNSEEN_PATTERNS.
        period: The pattern's period in pixels.
        scale: The object's side as a part of the image's.
        angle: Its rotation in degrees.
        x: Where its centre is, across, as a part of the image's side.
        y: The same, down.
        second: A small second object in a corner, or None.
        second_scale: Its side as a part of the image's.
        corner: Which corner, 0 to 3.
        cover: The part of the image's height, from below, that a band of the background's dark tone hides.
        noise: Amplitude of the pixel noise, 0 to 127.
        seed: Seed of the pixel noise, and of a noisy background.
        noise_seed: Another seed of the pixel noise alone, or None.
    """

    concept: Concept
    artist: str
    colour: str = "white"
    pattern: str = "plain"
    period: int = 8
    scale: float = 0.7
    angle: float = 0.0
    x: float = 0.5
    y: float = 0.5
    second: Concept | None = None
    second_scale: float = 0.3
    corner: int = 0
    cover: float = 0.0
    noise: int = 0
    seed: int = 0
    noise_seed: int | None = None


def _bytes(seed: int, stream: int, count: int) -> _Ints:
    """Return uniform integers in [0, 255] from the bit stream of PCG64, which NumPy keeps stable."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw((count + 7) // 8)
    return raw.astype("<u8").view(np.uint8)[:count].astype(np.int32)


def _background(scene: Scene) -> _Ints:
    """Return the background [SIZE, SIZE, 3]: the named colour, patterned with a second tone of itself."""
    base = np.array(COLOURS[scene.colour], dtype=np.int32)
    # The second tone keeps the hue, so that the colour's name stays true of the whole.
    tone = base * 3 // 5 if base.sum() > 300 else base + (255 - base) * 2 // 5
    p = scene.period
    match scene.pattern:
        case "plain":
            weight = np.zeros_like(_X)
        case "striped":
            weight = 256 * ((_X + _Y) // (p // 2) % 2)
        case "checkered":
            weight = 256 * ((_X // p + _Y // p) % 2)
        case "dotted":
            weight = 256 * ((_X % p - p // 2) ** 2 + (_Y % p - p // 2) ** 2 <= (p // 3) ** 2)
        case "gradient":
            weight = 256 * (_X + _Y) // (2 * SIZE - 2)
        case "noisy":
            weight = _bytes(scene.seed, 1, SIZE * SIZE).reshape(SIZE, SIZE)
        case "zigzag":
            weight = 256 * ((_Y + np.abs(_X % (2 * p) - p)) // (p // 2) % 2)
        case "ringed":
            root = np.sqrt((2 * _X - SIZE) ** 2 + (2 * _Y - SIZE) ** 2).astype(np.int32)
            weight = 256 * (root // p % 2)
        case "crossed":
            weight = 256 * (((_X + _Y) % p < p // 4 + 1) | ((_X - _Y) % p < p // 4 + 1))
        case _:
            raise ValueError(f"unknown pattern {scene.pattern!r}: {', '.join(PATTERNS + UNSEEN_PATTERNS)}")
    background: _Ints = base + (tone - base) * weight[..., None].astype(np.int32) // 256
    return background


def _over_255(value: _Ints) -> _Ints:
    """Divide by 255, rounding down: exact for 0 to 65,534, and quicker than a division."""
    return (value + 1 + (value >> 8)) >> 8


def _place(image: _Ints, pixels: Pixels, scale: float, angle: float, x: float, y: float) -> None:
    """Draw a sprite onto the image: inverse mapping, bilinear, in fixed point."""
    source = pixels.astype(np.int32)
    source[..., :3] = _over_255(source[..., :3] * source[..., 3:])
    side = scale * SIZE
    while side < 0.6 * source.shape[0]:  # halve first: a bilinear sample sees four pixels only
        source = (source[::2, ::2] + source[1::2, ::2] + source[::2, 1::2] + source[1::2, 1::2] + 2) // 4
    n = source.shape[0]
    step = 4096 * n / side
    cos = round(step * math.cos(math.radians(angle)))
    sin = round(step * math.sin(math.radians(angle)))
    centre_x, centre_y = round(x * SIZE * 2), round(y * SIZE * 2)  # half pixels
    reach = math.ceil(side * 0.71) + 1
    top, bottom = max(centre_y // 2 - reach, 0), min(centre_y // 2 + reach + 1, SIZE)
    left, right = max(centre_x // 2 - reach, 0), min(centre_x // 2 + reach + 1, SIZE)
    if top >= bottom or left >= right:
        return
    dx = 2 * _X[top:bottom, left:right] + 1 - centre_x
    dy = 2 * _Y[top:bottom, left:right] + 1 - centre_y
    u = (cos * dx + sin * dy) // 2 + 2048 * (n - 1)
    v = (cos * dy - sin * dx) // 2 + 2048 * (n - 1)
    padded = np.zeros((n + 2, n + 2, 4), dtype=np.int32)
    padded[1:-1, 1:-1] = source
    flat = padded.reshape(-1, 4)
    inside = (u >= -4096) & (u < 4096 * n) & (v >= -4096) & (v < 4096 * n)
    u, v = u[inside] + 4096, v[inside] + 4096
    at = (v >> 12) * (n + 2) + (u >> 12)
    fu, fv = ((u >> 4) & 255)[:, None], ((v >> 4) & 255)[:, None]
    upper = flat.take(at, 0) * (256 - fu) + flat.take(at + 1, 0) * fu
    lower = flat.take(at + n + 2, 0) * (256 - fu) + flat.take(at + n + 3, 0) * fu
    sample = (upper * (256 - fv) + lower * fv) >> 16
    region = image[top:bottom, left:right]
    region[inside] = sample[:, :3] + _over_255(region[inside] * (255 - sample[:, 3:]))


def _ink(pixels: Pixels, artist: str, colour: str) -> Pixels:
    """Give a monochrome drawing white ink where the background is dark."""
    if artist in MONOCHROME and sum(COLOURS[colour]) < 330:
        pixels = pixels.copy()
        pixels[..., :3] = 235
    return pixels


def render(scene: Scene, draw: Draw = sprite) -> Image.Image:
    """Draw a scene as an RGB image of SIZE pixels.

    Args:
        scene: The factors.
        draw: Returns the sprite of an artist and a concept's code; for instance one that changes its colours.
    """
    image = _background(scene)
    _place(
        image,
        _ink(draw(scene.artist, scene.concept.code), scene.artist, scene.colour),
        scene.scale,
        scene.angle,
        scene.x,
        scene.y,
    )
    if scene.second is not None:
        half = scene.second_scale / 2 + 0.02
        x, y = (1 - half if scene.corner % 2 else half), (1 - half if scene.corner // 2 else half)
        pixels = _ink(draw(scene.artist, scene.second.code), scene.artist, scene.colour)
        _place(image, pixels, scene.second_scale, 0.0, x, y)
    if scene.cover:
        image[SIZE - round(scene.cover * SIZE) :] = np.array(COLOURS[scene.colour], dtype=np.int32) // 2
    if scene.noise:
        seed = scene.seed if scene.noise_seed is None else scene.noise_seed
        bytes_ = _bytes(seed, 2, image.size).reshape(image.shape)
        image += (bytes_ - 128) * scene.noise // 128
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))
