"""Images and labels as users hold them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptprism.data.images import ImageSource
from promptprism.data.names import LabelSpace, check_class_names, name_key
from promptprism.data.records import Dataset, Record, Records
from promptprism.data.registry import load_data
from promptprism.data.weights import check_weights
from promptprism.errors import PromptPrismError

Images = ImageSource | Tensor | Iterable[ImageSource | Tensor]
Labels = str | int | Iterable[str] | Iterable[int] | NDArray[Any] | Tensor


def _column(values: Any, what: str) -> Any:
    """The one column of a frame (of pandas, polars, or as scikit-learn passes it on); all else as it is."""
    if isinstance(values, set | frozenset | Mapping):
        raise PromptPrismError(
            f"{what} are a {type(values).__name__}, which has no order of its own: give a list"
        )
    if hasattr(values, "columns") and hasattr(values, "to_numpy"):
        names = list(values.columns)
        if len(names) != 1:
            raise PromptPrismError(
                f"the frame of {what} has {len(names)} columns ({', '.join(map(repr, names[:5]))}): give the "
                "one that holds them, as in frame['path']"
            )
        return values.to_numpy()[:, 0]
    if isinstance(values, np.ndarray) and values.dtype.kind in "OU" and values.shape[1:] == (1,):
        return values[:, 0]
    return values


def _check_there(values: list[Any], what: str) -> None:
    """Refuse None, NaN, and the NA and NaT of pandas."""
    missing = [place for place, value in enumerate(values) if _missing(value)]
    if missing:
        raise PromptPrismError(
            f"{len(missing)} of {len(values)} {what}s are missing, first: {what} {missing[0]} is "
            f"{values[missing[0]]!r}. Every image needs a label: give what is missing, or leave these out"
        )


def _missing(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def as_sources(images: Any) -> list[ImageSource]:
    """Make a list of what `load_image` takes from one image or several.

    Several may come in anything that can be gone through, such as `Path.glob`, or in the one column of a
    frame. An array of 4 axes is a batch [B, H, W, 3]; tensors are uint8 [3, H, W] or [B, 3, H, W], as
    torchvision has them.

    Raises:
        PromptPrismError: a tensor is no image.
    """
    images = _column(images, "images")
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.dim() not in (3, 4):
            raise PromptPrismError(
                f"tensor of shape {tuple(images.shape)} and type {images.dtype} is not an image: give uint8 "
                "[3, H, W] or [B, 3, H, W]"
            )
        images = images.detach().cpu().movedim(-3, -1).numpy()
    if isinstance(images, np.ndarray):
        several = images.ndim in (1, 4)
    else:
        several = isinstance(images, Iterable) and not isinstance(images, str | bytes)
    return [source for image in images for source in as_sources(image)] if several else [images]


def label_images(
    images: Any, labels: Any, class_names: Sequence[str] | None = None, weights: Any = None
) -> Dataset:
    """Make a data set, all of it training images, from images and their labels.

    Args:
        images: see `as_sources`.
        labels: a class name for each image (in any case or Unicode form, see `name_key`), or an index into
            ``class_names``.
        class_names: the label space; None takes the sorted labels.
        weights: of each image; None is 1, and those of 0 are as if they were not there.

    Raises:
        PromptPrismError: unusable class names, not one label for each image, a label that is missing or
            outside of the label space, indices without class names, or see `check_weights`.
    """
    sources = as_sources(images)
    given = None if class_names is None else check_class_names(class_names)
    labels = _column(labels, "labels")
    if isinstance(labels, Tensor | np.ndarray | np.generic):
        labels = labels.tolist()
    values: list[Any] = [labels] if isinstance(labels, str | int) else list(labels)
    if len(values) != len(sources):
        raise PromptPrismError(f"there are {len(sources)} images but {len(values)} labels: give one for each")
    _check_there(sources, "image")
    _check_there(values, "label")
    shares = [1.0] * len(values) if weights is None else check_weights(weights, len(values)).tolist()
    if not all(shares):
        sources, values = (list(compress(both, shares)) for both in (sources, values))
        shares = list(filter(None, shares))
    if all(isinstance(value, str) for value in values):
        values = [str(value) for value in values]
        names = check_class_names(sorted(set(values))) if given is None else given
        places = {name_key(name): place for place, name in enumerate(names)}
        if unknown := sorted(value for value in set(values) if name_key(value) not in places):
            raise PromptPrismError(
                f"label {unknown[0]!r} is none of the {len(names)} class names: add it to them"
            )
        values = [places[name_key(value)] for value in values]
    elif not all(isinstance(value, int | np.integer) for value in values):
        odd = next((v for v in values if not isinstance(v, str | int | np.integer)), values[0])
        raise PromptPrismError(
            f"labels must be all class names or all indices into class_names, and {odd!r} is among them"
        )
    elif given is None:
        raise PromptPrismError(
            "labels are indices: give class_names too, or names as labels, for a CLIP reads the names of the "
            "classes"
        )
    else:
        names = given
    return Dataset("given images", names, train=tuple(map(Record, sources, map(int, values), shares)))


def as_dataset(
    images: Any, labels: Any = None, class_names: Sequence[str] | None = None, weights: Any = None
) -> Dataset:
    """Make a data set of images and labels, see `label_images`, or read the one named; see `load_data`.

    Raises:
        PromptPrismError: images without labels, class names or weights beside a data set, or anything those
            refuse.
    """
    if labels is not None:
        return label_images(images, labels, class_names, weights)
    if class_names is not None:
        raise PromptPrismError(
            "class_names go with images and labels: give a label for each image. Data brings its own names"
        )
    if weights is not None:
        raise PromptPrismError("sample_weight goes with images and labels: give a label for each image")
    if not isinstance(images, Dataset | str | Path):
        raise PromptPrismError(
            f"cannot take data from {type(images).__name__}: give images and labels, a Dataset, a folder, "
            "a CSV or a registered name"
        )
    return load_data(images)


def records_of_known(dataset: Dataset, space: LabelSpace) -> Records:
    """The images to score on, with labels of another label space: classes are the same by `name_key`.

    Raises:
        PromptPrismError: the data has classes that the label space has not.
    """
    known = {key: label for label, key in enumerate(space.keys)}
    places = [known.get(name_key(name)) for name in dataset.class_names]
    unknown = [name for name, place in zip(dataset.class_names, places, strict=True) if place is None]
    if unknown:
        raise PromptPrismError(
            f"data '{dataset.name}' has {len(unknown)} classes that the model does not know, first: "
            f"{', '.join(map(repr, unknown[:5]))}. To score among the classes of the data: "
            "with_classes(data.class_names), or --data-classes on the command line"
        )
    return tuple(Record(record.source, places[record.label] or 0) for record in dataset.evaluation)
