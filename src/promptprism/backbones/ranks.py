"""A training step split over processes: which part is whose, and how parts become the whole again.

Each process reads its share of the step's images and of its texts; features are gathered, and every process then
has the whole loss. A feature that was gathered has its gradient at home only, times the number of processes, so
that the mean of all gradients is that of the whole step, whichever way they came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """One of the processes that share a step.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        images: B, of the whole step.
    """

    rank: int
    size: int
    images: int = 0

    def own(self, batch: list[int]) -> list[int]:
        """The images of a batch that this process looks at; one where there are too few, which counts for nothing."""
        return batch[_some(self._images(len(batch)))]

    def of(self, batch: list[int]) -> Ranks:
        """The same for steps of such a batch."""
        return replace(self, images=len(batch))

    def texts(self, templates: int, classes: int) -> tuple[slice, slice]:
        """The templates, and the classes, whose texts this process runs; see `own`."""
        rows, columns = self._texts(templates, classes)
        return rows, _some(columns)

    def whole_texts(self, own: Tensor, templates: int, classes: int) -> Tensor:
        """Features [M, K, D] of all texts, from those of `texts`."""
        return self._whole(own, self._texts(templates, classes), (templates, classes, own.shape[-1]))

    def whole_images(self, own: Tensor) -> Tensor:
        """Features [M, B, D] of all images, from those of `own`."""
        place = slice(0, len(own)), self._images(self.images)
        return self._whole(own, place, (len(own), self.images, own.shape[-1]))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over processes in the place of tensors, such as gradients."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def _texts(self, templates: int, classes: int) -> tuple[slice, slice]:
        # Templates apart as far as they go into the processes: what a template's classes share is then run once.
        groups = math.gcd(templates, self.size)
        group, part = divmod(self.rank, self.size // groups)
        return _share(templates, group, groups), _share(classes, part, self.size // groups)

    def _images(self, count: int) -> slice:
        return _share(count, self.rank, self.size)

    def _whole(self, own: Tensor, place: tuple[slice, slice], shape: tuple[int, ...]) -> Tensor:
        kept = own[tuple(slice(0, each.stop - each.start) for each in place)]
        whole: Tensor = _Gather.apply(kept, place, shape, self.size)  # type: ignore[no-untyped-call]
        return whole


class _Gather(torch.autograd.Function):
    """The sum of wholes that are 0 outside of a process's own part."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, place: tuple[slice, slice], shape: tuple[int, ...], size: int
    ) -> Tensor:
        ctx.place, ctx.size = place, size
        whole = own.new_zeros(shape)
        whole[place] = own
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0][ctx.place] * ctx.size, None, None, None


def _share(count: int, part: int, parts: int) -> slice:
    """One of so many parts of as many things, all as large as can be made; empty if there are too few."""
    return slice(part * count // parts, (part + 1) * count // parts)


def _some(place: slice) -> slice:
    """A part with one thing at least, so that every process takes the same way and has the same gradients."""
    return slice(place.start, max(place.stop, place.start + 1))
