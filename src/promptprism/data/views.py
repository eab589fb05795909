"""Views: the augmented copies of an image in training, one per template, and the plain one at test time.

Every random number comes from a local generator made from (seed, epoch, index, template), so that a view does
not depend on threads, batch size, or whether a run was interrupted.

Which augmentations the paper uses is not known. "maple" is the field's crop and flip; "half" crops at most
half of the image away, "flip" nothing; set 1 gives every template another common augmentation; set 2 puts a
random crop before each.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter
from torch import Tensor

# Not those of v2, which are the same on pictures: open_clip has imported these.
from torchvision.transforms import functional as F

from promptprism.data.images import SHRUNK, ImageSource, fitted, load_image
from promptprism.errors import PromptPrismError

Picture = Image.Image
Fit = Callable[[Picture, Generator, int], Picture]
Step = Callable[[Picture, Generator], Picture]
View = Callable[[Picture, Generator], Tensor]

_BICUBIC = Image.Resampling.BICUBIC


def view_generator(seed: int, epoch: int = 0, index: int = 0, template: int = 0) -> Generator:
    """Make the generator of one view of one image in one epoch."""
    return np.random.default_rng((seed, epoch, index, template))


def view_names(view_set: str, templates: int) -> tuple[str, ...]:
    """Name the view of each template; more templates than the set has views cycle through it.

    Raises:
        PromptPrismError: no such set.
    """
    if view_set not in VIEW_SETS:
        raise PromptPrismError(f"unknown views '{view_set}': choose one of {', '.join(VIEW_SETS)}")
    names = VIEW_SETS[view_set]
    return tuple(names[template % len(names)] for template in range(templates))


def make_view(name: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> View:
    """Build one view: RGB picture and generator to normalised tensor [3, H, W], H = W = image_size.

    Raises:
        PromptPrismError: no such view.
    """
    if name not in _VIEWS:
        raise PromptPrismError(f"unknown view '{name}': choose one of {', '.join(_VIEWS)}")
    fit, steps = _VIEWS[name]
    # (x / 255 - mean) / std as one multiplication and one addition; by NumPy, whose every call keeps to the
    # thread that decodes, where PyTorch would start threads of its own in each.
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)
    shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)

    def view(image: Picture, generator: Generator) -> Tensor:
        image = fit(image, generator, image_size)
        for step in steps:
            image = step(image, generator)
        return torch.from_numpy(np.asarray(image) * scale + shift).permute(2, 0, 1)

    return view


def make_views(
    names: Sequence[str], image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[ImageSource, int, int, int], Tensor]:
    """Build the views of all templates: (image, seed, epoch, index) to tensor [M, 3, H, W].

    Large photos are shrunk to four times the image size first: a random crop of 8 % still has all its pixels.
    """
    views = [make_view(name, image_size, mean, std) for name in names]

    def make(source: ImageSource, seed: int, epoch: int, index: int) -> Tensor:
        image = load_image(source, SHRUNK * image_size)
        return torch.stack(
            [view(image, view_generator(seed, epoch, index, template)) for template, view in enumerate(views)]
        )

    return make


def _resize(image: Picture, _: Generator, size: int) -> Picture:
    return fitted(image, size)


def _random_crop(image: Picture, generator: Generator, size: int, least: float = 0.08) -> Picture:
    """Random resized crop: 8 to 100 % of the area, aspect 3:4 to 4:3 (the distribution of torchvision's)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(least, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return image.crop((left, top, left + w, top + h)).resize((size, size), _BICUBIC)
    return _resize(image, generator, size)


def _flip(image: Picture, generator: Generator) -> Picture:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else image


def _colour_jitter(image: Picture, generator: Generator) -> Picture:
    """Brightness, contrast and saturation by 0.6 to 1.4, hue by up to a tenth of the circle, in any order."""
    for change in generator.permutation(4):
        by = generator.uniform(-1, 1)
        image = _COLOUR_CHANGES[change](image, by)
    return image


def _grey_blur(image: Picture, generator: Generator) -> Picture:
    """Without colour half of the time, and out of focus half of the time (sigma up to 2 pixels of 224)."""
    if generator.random() < 0.5:
        image = image.convert("L").convert("RGB")
    if generator.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2) * image.width / 224))
    return image


def _rand_augment(image: Picture, generator: Generator) -> Picture:
    """RandAugment (Cubuk et al., 2020): two operations at magnitude 9 of 30."""
    for operation in generator.integers(len(_OPERATIONS), size=2):
        sign = 1 if generator.random() < 0.5 else -1
        image = _OPERATIONS[operation](image, sign * 9 / 30)
    return image


def _shear(image: Picture, across: float, down: float) -> Picture:
    sheared: Picture = F.affine(
        image,
        angle=0,
        translate=[0, 0],
        scale=1,
        shear=[math.degrees(math.atan(across)), math.degrees(math.atan(down))],
        center=[0, 0],
    )
    return sheared


def _shift(image: Picture, across: float, down: float) -> Picture:
    way = [round(across * image.width), round(down * image.height)]
    shifted: Picture = F.affine(image, angle=0, translate=way, scale=1, shear=[0, 0])
    return shifted


# Strengths lie in -1..1. The ranges of RandAugment are torchvision's.
_COLOUR_CHANGES: tuple[Callable[[Picture, float], Picture], ...] = (
    lambda x, by: F.adjust_brightness(x, 1 + 0.4 * by),
    lambda x, by: F.adjust_contrast(x, 1 + 0.4 * by),
    lambda x, by: F.adjust_saturation(x, 1 + 0.4 * by),
    lambda x, by: F.adjust_hue(x, 0.1 * by),
)
_OPERATIONS: tuple[Callable[[Picture, float], Picture], ...] = (
    lambda x, _: x,
    lambda x, by: _shear(x, 0.3 * by, 0),
    lambda x, by: _shear(x, 0, 0.3 * by),
    lambda x, by: _shift(x, by * 150 / 331, 0),
    lambda x, by: _shift(x, 0, by * 150 / 331),
    lambda x, by: F.rotate(x, 30 * by),
    lambda x, by: F.adjust_brightness(x, 1 + 0.9 * by),
    lambda x, by: F.adjust_saturation(x, 1 + 0.9 * by),
    lambda x, by: F.adjust_contrast(x, 1 + 0.9 * by),
    lambda x, by: F.adjust_sharpness(x, 1 + 0.9 * by),
    lambda x, by: F.posterize(x, 8 - round(4 * abs(by))),
    lambda x, by: F.solarize(x, 255 * (1 - abs(by))),
    lambda x, _: F.autocontrast(x),
    lambda x, _: F.equalize(x),
)

_SET_1: tuple[tuple[Step, ...], ...] = (
    (_flip,),
    (_flip, _colour_jitter),
    (_flip, _grey_blur),
    (_flip, _rand_augment),
)

# Name -> how the picture is brought to size, and what follows.
_VIEWS: dict[str, tuple[Fit, tuple[Step, ...]]] = {
    "test": (_resize, ()),
    "maple": (_random_crop, (_flip,)),
    "half": (partial(_random_crop, least=0.5), (_flip,)),
    **{f"set1:{i}": (_resize, steps) for i, steps in enumerate(_SET_1)},
    **{f"set2:{i}": (_random_crop, steps) for i, steps in enumerate(_SET_1)},
}

#: The named sets of views, in the order in which templates take them.
VIEW_SETS: dict[str, tuple[str, ...]] = {
    "set1": tuple(name for name in _VIEWS if name.startswith("set1:")),
    "set2": tuple(name for name in _VIEWS if name.startswith("set2:")),
    "maple": ("maple",),
    "half": ("half",),
    "flip": ("set1:0",),
    "test": ("test",),
}
