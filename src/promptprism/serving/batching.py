"""Requests of many clients become batches: a queue, the most images of a batch, and how long it waits."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptprism.runtime import Answers
from promptprism.serving.engine import Engine, Names
from promptprism.serving.limits import SOON, Refused

Square = NDArray[np.uint8]


@dataclass(eq=False)
class _Waiting:
    squares: list[Square]
    classes: Names | None
    answer: asyncio.Future[Answers]


class Batcher:
    """Answers requests in batches, in one thread; all else happens in the event loop.

    Args:
        engine: that answers.
        most: images of a batch. A request with more is a batch of its own.
        wait: seconds that a batch waits for more while the engine has nothing else to do.
        room: images that are accepted and not yet answered.
        done: called with the images and the seconds of each batch.
    """

    def __init__(
        self, engine: Engine, most: int, wait: float, room: int, done: Callable[[int, float], None]
    ) -> None:
        self.engine, self.most, self.wait, self.room, self.done = engine, most, wait, room, done
        self.accepted = 0
        self.worker: Executor = ThreadPoolExecutor(1, thread_name_prefix="promptprism-model")
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._rate = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; from within the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer what was accepted, then end."""
        while self.accepted:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self.worker.shutdown()

    @contextmanager
    def accepting(self, images: int) -> Iterator[None]:
        """Keep room for images; from before they are decoded, which takes time too.

        Raises:
            Refused: there is none. Even a request above the room is accepted when nothing else is.
        """
        if self.accepted and self.accepted + images > self.room:
            seconds = min(60, max(SOON, math.ceil(self.accepted / self._rate))) if self._rate else SOON
            what = f"{self.accepted} images are waiting, there is no room for {images} more"
            raise Refused(429, f"{what}: come again in {seconds} s", seconds)
        self.accepted += images
        try:
            yield
        finally:
            self.accepted -= images

    async def ask(self, squares: list[Square], classes: Names | None) -> Answers:
        """Answer for the pixels of one request; if it is cancelled before its turn, it costs nothing."""
        waiting = _Waiting(squares, classes, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._images() < self.most and self._images() < self.accepted:
                await asyncio.sleep(self.wait)  # others are being decoded
            batch = self._take()
            if not batch:
                continue
            began = time.perf_counter()
            try:
                answers = await loop.run_in_executor(self.worker, self._answer, batch)
            except Exception as error:  # the request is told; the server goes on
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            seconds, images = time.perf_counter() - began, sum(len(one.squares) for one in batch)
            rate = images / max(seconds, 1e-6)
            self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
            self.done(images, seconds)
            start = 0
            for one in batch:
                part = slice(start, start + len(one.squares))
                start = part.stop
                if not one.answer.done():
                    one.answer.set_result(_part(answers, part))

    def _images(self) -> int:
        return sum(len(one.squares) for one in self._queue)

    def _take(self) -> list[_Waiting]:
        """The next requests with the same classes, as many as make a batch; those given up are left out."""
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        images = 0
        while self._queue:
            one = self._queue.popleft()
            if one.answer.done():
                continue
            fits = not batch or (one.classes == batch[0].classes and images + len(one.squares) <= self.most)
            if fits:
                batch.append(one)
                images += len(one.squares)
            else:
                rest.append(one)
        self._queue = rest
        if not rest:
            self._arrived.clear()
        return batch

    def _answer(self, batch: list[_Waiting]) -> Answers:
        squares = np.stack([square for one in batch for square in one.squares])
        return self.engine.answer(squares, batch[0].classes)


def _part(answers: Answers, part: slice) -> Answers:
    """The answers for some images: their axis is the second where templates have the first."""

    def cut(name: str, values: Any) -> Any:
        if values is None:
            return None
        return values[:, part] if name == "logits" or name.startswith("template_") else values[part]

    return Answers(*(cut(name, values) for name, values in answers._asdict().items()))
