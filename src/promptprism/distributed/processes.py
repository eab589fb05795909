"""Shards named by several processes of this machine; a process that dies costs the shard it was at, once.

The classifier, text features included, is made once and lies in a file that all processes map into their
memory: it is there once, however many they are. Each process has one shard at a time, so nothing piles up.
"""

import signal
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch

from promptprism.distributed.naming import Failed, Named, Naming, attempt
from promptprism.errors import PromptPrismError
from promptprism.methods import Classifier
from promptprism.training.devices import START

#: How often a shard is tried whose process dies.
TRIES = 3


def pack(classifier: Classifier, place: Path | BytesIO) -> None:
    """Write a classifier, its backbone included, for processes of ours.

    Raises:
        PromptPrismError: the backbone cannot be sent.
    """
    try:
        torch.save(classifier, place)
    except (TypeError, AttributeError, PicklingError) as error:
        raise PromptPrismError(
            f"method '{classifier.name}' on backbone '{classifier.backbone.name}' cannot be sent to other "
            f"processes ({error}): predict without --engine"
        ) from error


def unpack(place: Path | BytesIO, device: torch.device | str) -> Classifier:
    """Read what `pack` has written in this run; a file is mapped, not read. No other content is safe."""
    if isinstance(place, Path):
        found: Classifier = torch.load(str(place), device, weights_only=False, mmap=True)
    else:
        found = torch.load(place, device, weights_only=False)
    return found


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    shard: str = ""


def name_by_processes(
    classifier: Classifier, naming: Naming, shards: Sequence[str], workers: int
) -> Iterator[Named | Failed]:
    """Name shards, and say what became of each as it is done.

    Args:
        classifier: on the device that the processes share; several GPUs are given out in turn.
        naming: what is done with every shard.
        shards: paths or addresses.
        workers: how many processes.

    Raises:
        PromptPrismError: processes do nothing but die.
    """
    workers = min(workers, max(1, len(shards)))
    with tempfile.TemporaryDirectory(prefix="promptprism-") as folder:
        model = Path(folder, "classifier")
        pack(classifier, model)
        device, devices = classifier.backbone.device, 1
        if device.type == "cuda":
            devices = torch.cuda.device_count()
        threads = max(1, torch.get_num_threads() // workers)
        context: Any = get_context(START)  # not every one has processes
        context.set_forkserver_preload([__name__])

        def start(number: int) -> _Worker:
            ours, theirs = context.Pipe()
            place = f"cuda:{number % devices}" if devices > 1 else str(device)
            process = context.Process(target=_work, args=(theirs, model, naming, place, threads), daemon=True)
            process.start()
            theirs.close()
            return _Worker(process, ours)

        waiting, tries, deaths = deque(shards), Counter[str](), 0
        running = {number: start(number) for number in range(workers)}
        try:
            for worker in running.values():
                _give(worker, waiting)
            while any(worker.shard for worker in running.values()):
                busy = {worker.connection: number for number, worker in running.items() if worker.shard}
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    worker = running[busy[connection]]
                    try:
                        result: Named | Failed = connection.recv()
                        deaths = 0
                    except (EOFError, OSError):
                        shard, how = worker.shard, _end_of(worker)
                        tries[shard] += 1
                        deaths += 1
                        if deaths > TRIES * workers:
                            raise PromptPrismError(
                                f"the processes on '{socket.gethostname()}' do nothing but die, the last "
                                f"{how}: if nobody does it, memory runs out: take fewer --workers"
                            ) from None
                        running[busy[connection]] = worker = start(busy[connection])
                        if tries[shard] < TRIES:
                            waiting.appendleft(shard)
                        else:
                            yield Failed(shard, socket.gethostname(), _died(how))
                        _give(worker, waiting)
                        continue
                    _give(worker, waiting)
                    yield result
        finally:
            for worker in running.values():
                worker.process.kill()
                worker.process.join()


def _give(worker: _Worker, waiting: deque[str]) -> None:
    worker.shard = waiting.popleft() if waiting else ""
    if worker.shard:
        with suppress(OSError):  # it has died; that shows when it is waited for
            worker.connection.send(worker.shard)


def _end_of(worker: _Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode or 0
    worker.connection.close()
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


def _died(how: str) -> str:
    return (
        f"its process died {TRIES} times, the last time {how}: if nobody did it, memory has run out (take "
        "fewer --workers), or an image in it ends the program that decodes it"
    )


def _work(connection: Connection, model: Path, naming: Naming, device: str, threads: int) -> None:
    """One process; it ends when the one that started it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    torch.set_num_threads(threads)
    classifier = unpack(model, device)
    with suppress(EOFError, OSError):
        while True:
            connection.send(attempt(classifier, naming, connection.recv()))
