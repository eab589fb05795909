"""How much each image counts: weights as users give them, and those that make classes equal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from promptprism.data.reading import some
from promptprism.data.records import Records
from promptprism.errors import PromptPrismError

Weights = Sequence[float] | NDArray[Any] | Tensor
#: "balanced": every class counts the same, whatever its images; or a weight by class name, 1 without one.
ClassWeight = Literal["balanced"] | Mapping[str, float] | None


def check_weights(weights: Any, count: int) -> NDArray[np.float64]:
    """The weight of each of so many images.

    Raises:
        PromptPrismError: not one for each, one is negative or no number (which, and its place), or all are 0.
    """
    try:
        values = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, np.float64)
    except (TypeError, ValueError) as error:
        raise PromptPrismError("sample_weight must be numbers, one for each image") from error
    if values.shape != (count,):
        given = f"{len(values)} weights" if values.ndim == 1 else f"weights of shape {values.shape}"
        raise PromptPrismError(f"there are {count} images but {given}: give sample_weight one for each")
    for place, value in enumerate(values.tolist()):
        if not 0 <= value < math.inf:
            raise PromptPrismError(
                f"sample_weight of image {place} is {value}: give a positive number, or 0 to leave it out"
            )
    if count and not values.any():
        raise PromptPrismError("every sample_weight is 0: nothing is left")
    return values


def by_class(records: Records, class_names: Sequence[str], class_weight: ClassWeight) -> Records:
    """Multiply the weight of each image by that of its class.

    "balanced" gives a class the sum of all weights / (number of classes that have images * sum of its own).

    Raises:
        PromptPrismError: a weight that is none, or of a class that is not there.
    """
    if class_weight is None:
        return records
    if isinstance(class_weight, Mapping):
        factors = [_of_class(class_weight, name) for name in class_names]
        if unknown := [name for name in class_weight if name not in class_names]:
            raise PromptPrismError(
                f"class_weight has {unknown[0]!r}, which is none of the {len(class_names)} classes: "
                f"{some(class_names, 10)}"
            )
    elif class_weight == "balanced":
        own = [0.0] * len(class_names)
        for record in records:
            own[record.label] += record.weight
        mean = sum(own) / max(1, sum(map(bool, own)))
        factors = [mean / one if one else 1.0 for one in own]
    else:
        raise PromptPrismError(
            f"class_weight is {class_weight!r}: give 'balanced', a weight for each class name, or None"
        )
    return tuple(replace(record, weight=record.weight * factors[record.label]) for record in records)


def _of_class(weights: Mapping[str, float], name: str) -> float:
    value = weights.get(name, 1.0)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise PromptPrismError(f"class_weight of {name!r} is {value!r}: give a positive number")
    return float(value)
