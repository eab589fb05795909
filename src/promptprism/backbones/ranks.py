"""A training step split over processes: which part is whose, and how parts become the whole again.

Each process runs its share of the step's images and of its texts. What they give is gathered, so that every
process has the whole loss; what went into them has its gradients summed over all. So every process has the
gradients of the whole step, and can take the step alone.

On a CPU shares are made of units that do not depend on how many processes there are, and gradients are
summed in float64: numbers then do not depend on it either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

#: Classes of a template that a CPU runs together. The fewer, the more evenly they go into processes, and
#: the more often what they share is run.
_TOGETHER = 32

_T = TypeVar("_T")
Place = tuple[slice, slice]


@dataclass(frozen=True)
class Ranks:
    """One of the processes that share a step.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        in_units: whether numbers must not depend on how many; slower where large products are faster.
        images: B, of the whole step.
    """

    rank: int
    size: int
    in_units: bool = True
    images: int = 0

    def of(self, batch: list[int]) -> Ranks:
        """The same for steps of such a batch."""
        return replace(self, images=len(batch))

    def own(self, batch: list[int]) -> list[int]:
        """The images of a batch that this process reads."""
        return [batch[i] for part in self._done(self._image_units) for i in range(part.start, part.stop)]

    def over_images(self, run: Callable[..., Tensor], views: Tensor, *learned: Tensor | None) -> Tensor:
        """Features [M, B, D] of all images.

        Args:
            run: gives the features [M, b, D] of views and what is learned.
            views: [M or 1, b, 3, H, W], of this process's own images.
            learned: what `run` takes besides.
        """
        units = self._image_units
        sizes = [part.stop - part.start for part in self._done(units)]
        entered = [_enter(one) for one in learned]
        parts = [run(part, *map(_left, entered)) for part in torch.split(views, sizes, 1)]
        return self._gather([(slice(None), unit) for unit in units], self.images, parts)

    def over_texts(self, run: Callable[..., Tensor], tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """Features [M, K, D] of all texts.

        Args:
            run: gives the features [m, k, D] of tokens [k, L], prompts and the share of all that they are.
            tokens: [K, L].
            prompts: [M, J, n, Dt], or None.
        """
        templates, classes = 1 if prompts is None else len(prompts), len(tokens)
        units, entered = self._text_units(templates, classes), _enter(prompts)
        parts = [
            run(tokens[columns], _left(None if entered is None else entered[rows]), 1 / len(units))
            for rows, columns in self._done(units)
        ]
        return self._gather(units, classes, parts, templates)

    @property
    def _image_units(self) -> list[slice]:
        return _cut(self.images, self.images if self.in_units else self.size)

    def _text_units(self, templates: int, classes: int) -> list[Place]:
        # Without units, templates apart as far as they go into the processes: what a template's classes share
        # is then run once.
        groups = templates if self.in_units else math.gcd(templates, self.size)
        parts = math.ceil(classes / _TOGETHER) if self.in_units else self.size // groups
        return list(product(_cut(templates, groups), _cut(classes, parts)))

    def _share(self, units: list[_T]) -> list[_T]:
        return units[self.rank * len(units) // self.size : (self.rank + 1) * len(units) // self.size]

    def _done(self, units: list[_T]) -> list[_T]:
        """A process's share; where it is empty one that counts for nothing, so that all go the same way."""
        return self._share(units) or units[:1]

    def _gather(
        self, units: list[Place], count: int, parts: list[Tensor], templates: int | None = None
    ) -> Tensor:
        shape = templates or len(parts[0]), count, parts[0].shape[-1]
        whole: Tensor = _Gather.apply(self._share(units), shape, *parts)
        return whole


class _Gather(torch.autograd.Function):
    """The sum over processes of wholes that are 0 outside of a process's own places."""

    @staticmethod
    def forward(ctx: Any, places: list[Place], shape: tuple[int, ...], *parts: Tensor) -> Tensor:
        ctx.places, ctx.nothing = places, torch.zeros_like(parts[0]) if not places else None
        whole = parts[0].new_zeros(shape)
        for place, part in zip(places, parts, strict=False):
            whole[place] = part
        _sum(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = [gradients[0][place] for place in ctx.places]
        return None, None, *(own or [ctx.nothing])


class _Enter(torch.autograd.Function):
    """What is learned, on its way into the parts: its gradient is the sum over all of them."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor) -> Tensor:  # noqa: ARG004
        return learned.double()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return _sum(gradients[0].contiguous()).float()


def _enter(learned: Tensor | None) -> Tensor | None:
    if learned is None:
        return None
    entered: Tensor = _Enter.apply(learned)
    return entered


def _left(entered: Tensor | None) -> Tensor | None:
    """For one part; the gradients of all parts meet in float64."""
    return None if entered is None else entered.float()


def _sum(tensor: Tensor) -> Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def _cut(count: int, parts: int) -> list[slice]:
    """So many things in so many parts that are all as large as can be made; none is empty."""
    parts = min(count, parts)
    return [slice(part * count // parts, (part + 1) * count // parts) for part in range(parts)]
