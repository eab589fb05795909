"""Batches of views, made in background threads while the model computes."""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptprism.data.images import ImageSource, reading_threads
from promptprism.data.records import Record
from promptprism.errors import PromptPrismError

Batch = list[int]
MakeViews = Callable[[ImageSource, int, int, int], Tensor]

# Batches that are decoded, or about to be, while the model computes.
_AHEAD = 3


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """Draw the order of one epoch, a function of (seed, epoch) alone, and cut it into batches.

    The incomplete last batch is dropped, unless it is the only one, as the field does: its few images would
    move the prompts as far as a whole batch does.
    """
    order = np.random.default_rng((seed, epoch, zlib.crc32(b"order"))).permutation(count).tolist()
    whole = max(1, count // batch_size)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(whole)]


def plain_batches(count: int, batch_size: int) -> list[Batch]:
    """All indices in their order, the last batch as long as it comes."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def labels_of(records: Iterable[Record], device: torch.device | str = "cpu") -> Tensor:
    """Labels [N] of N records."""
    return torch.tensor([record.label for record in records], dtype=torch.long, device=device)


def view_batches(
    sources: Sequence[ImageSource],
    batches: Iterable[Batch],
    make: MakeViews,
    seed: int = 0,
    epoch: int = 0,
    unread: dict[int, str] | None = None,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch of indices with its views [M, B, 3, H, W], in order, decoding the next ones meanwhile.

    Pillow works outside of Python's lock, so threads decode as fast as processes would and need no pickling.
    All threads work on the same batch, so that a single one does not wait for one thread.

    Args:
        sources: what `load_image` takes.
        batches: of indices.
        make: makes the views [M, 3, H, W] of an image of (source, seed, epoch, index).
        seed: of the views.
        epoch: that they are for.
        unread: images that cannot be read are put in here, index and reason, and left out of their batches.

    Raises:
        PromptPrismError: an image cannot be read, and ``unread`` is None; which one is said when its batch is
            due.
    """

    def load(i: int) -> Tensor:
        try:
            return make(sources[i], seed, epoch, i)
        except Exception as error:
            source = sources[i]
            if isinstance(error, PromptPrismError) and isinstance(source, str | Path):
                raise  # it names the file
            what = "an array" if isinstance(source, np.ndarray) else str(source)[:200]
            raise PromptPrismError(f"image {i} ({what}) cannot be used: {error}") from error

    rest, pool = iter(batches), reading_threads()
    waiting: deque[tuple[Batch, list[Future[Tensor]]]] = deque()

    def submit(count: int) -> None:
        waiting.extend((batch, [pool.submit(load, i) for i in batch]) for batch in islice(rest, count))

    try:
        submit(_AHEAD)
        while waiting:
            batch, parts = waiting[0]
            submit(1)
            read: Batch = []
            views: list[Tensor] = []
            for i, part in zip(batch, parts, strict=True):
                try:
                    views.append(part.result())
                    read.append(i)
                except PromptPrismError as error:
                    if unread is None:
                        raise
                    unread[i] = str(error)
            waiting.popleft()
            if read:
                yield read, torch.stack(views, dim=1)
    finally:
        for _, parts in waiting:
            for part in parts:
                part.cancel()
