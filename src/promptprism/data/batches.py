"""Batches of views, made in background threads while the model computes."""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from promptprism.data.images import ImageSource

Batch = list[int]
MakeViews = Callable[[ImageSource, int, int, int], Tensor]


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


def view_batches(
    sources: Sequence[ImageSource], batches: Iterable[Batch], make: MakeViews, seed: int = 0, epoch: int = 0
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch of indices with its views [M, B, 3, H, W], in order, decoding a few batches ahead.

    Pillow works outside of Python's lock, so threads decode as fast as processes would and need no pickling.

    Raises:
        PromptPrismError: an image cannot be read.
    """

    def load(batch: Batch) -> tuple[Batch, Tensor]:
        return batch, torch.stack([make(sources[i], seed, epoch, i) for i in batch], dim=1)

    workers = min(4, os.cpu_count() or 1)
    rest = iter(batches)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="promptprism-views")
    try:
        waiting: deque[Future[tuple[Batch, Tensor]]] = deque(
            pool.submit(load, batch) for batch in islice(rest, workers + 1)
        )
        while waiting:
            ready = waiting.popleft().result()
            waiting.extend(pool.submit(load, batch) for batch in islice(rest, 1))
            yield ready
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
