"""Cells of suites on a Ray cluster, a task for each.

Weights and lists of data go to each node once, into Ray's store; images are read where they lie. Results go
into the one folder that all nodes share, so a worker, a node or the whole cluster may die: what is finished
stays, and what was under way goes on after its last whole epoch.
"""

import importlib
import os
import pickle
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

import promptprism
from promptprism.backbones.loading import find_device
from promptprism.distributed.cluster import Node, check_nodes, connected, death, looker, shared_mark
from promptprism.errors import PromptPrismError, warn
from promptprism.evaluation.run_suite import Settled, Stage, Work
from promptprism.evaluation.store import Store
from promptprism.evaluation.suites import Cell

#: How often a cell is tried again whose worker dies.
RETRIES = 3


@dataclass(frozen=True)
class _Told:
    """What every worker is told."""

    run: str
    folder: Path
    lists: Path | None
    stage: Stage
    devices: int | None
    device: str
    threads: int
    here: Path


@dataclass(frozen=True)
class RayEngine:
    """Runs cells on a cluster; an engine for `run_suite`.

    Attributes:
        address: of the cluster, see `promptprism.distributed.cluster.connected`.
        cpus: cores for a cell.
        gpus: GPUs for a cell, or what part of one.
        device: that a cell runs on; auto is a GPU if it has one or a part.

    Raises:
        PromptPrismError: no such part of a core or GPU; when it is called, no cluster, or a node that cannot
            do its share.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for value, name in ((self.cpus, "cpus"), (self.gpus, "gpus")):
            if not 0 <= value < 1 and not float(value).is_integer():
                raise PromptPrismError(
                    f"--{name}-per-cell {value:g}: Ray gives a part of one, or whole ones: give 0.25, 1 or 2"
                )

    def __call__(self, work: Work, cells: Sequence[Cell]) -> Generator[tuple[Cell, Settled | None]]:
        """Run cells, see `promptprism.evaluation.run_suite.Engine`."""
        left = []
        for cell in cells:
            if settled := work.look(cell):
                yield cell, settled
            else:
                left.append(cell)
        if not left:
            return
        folder = work.store.folder.absolute()
        with connected(self.address) as ray, shared_mark(folder / "locks") as mark:
            needs = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
            has = " and ".join(f"{count:g} {name}" for name, count in needs.items())
            if not check_nodes(ray, mark, folder, needs):
                warn(f"no node has {has} for a cell by now: cells wait until one comes")
            yield from self._run(ray, work, left, mark, folder)

    def _run(
        self, ray: Any, work: Work, cells: Sequence[Cell], mark: Path, folder: Path
    ) -> Generator[tuple[Cell, Settled | None]]:
        device = self.device if self.device != "auto" or self.gpus else "cpu"
        threads = max(1, int(self.cpus))
        told = _Told(
            uuid4().hex,
            folder,
            work.lists and work.lists.absolute(),
            work.stage,
            work.devices,
            device,
            threads,
            Path.cwd(),
        )
        home = work.backbone.device
        weights = ray.put(work.backbone.to("cpu"))
        work.backbone.to(home)
        data = cache(lambda name: ray.put(work.load(name)))
        # With a part of a GPU Ray starts a process for each cell: another may be given another GPU.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(_sent())
        unfit: set[str] = set()
        running: dict[Any, Cell] = {}

        def start(cell: Cell) -> None:
            choice = {"label_selector": {"ray.io/node-id": f"!in({','.join(unfit)})"}} if unfit else {}
            lists = {name: data(name) for name in (cell.data, *cell.targets)}
            content = pickle.dumps((told, cell))
            one = task.options(name=str(cell), **choice).remote(str(mark), content, {"": weights, **lists})
            running[one] = cell

        try:
            for cell in cells:
                start(cell)
                yield cell, None
            while running:
                (one,), _ = ray.wait(list(running))
                cell = running.pop(one)
                try:
                    node_id, node, settled = ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None  # such as a full disk: all others would fail as well
                except ray.exceptions.RayError as error:
                    remedy = "give it fewer cells at a time by more --cpus-per-cell, or a smaller batch_size"
                    settled = work.fail(cell, death(error, RETRIES + 1, remedy))
                if settled:
                    yield cell, settled
                else:  # a node that came later
                    if node_id not in unfit:
                        warn(f"{Node(*node).wrong(folder)}. Cells go to other nodes")
                        unfit.add(node_id)
                    start(cell)
        except ConnectionError as error:
            raise PromptPrismError(
                f"the cluster is gone ({' '.join(str(error).split())[:200]}): finished cells are kept in "
                f"'{folder}'; the same command goes on from there"
            ) from error
        finally:
            with suppress(Exception):  # those of a cluster that is gone are, too
                for one in running:
                    ray.cancel(one, force=True)


def _sent() -> Callable[..., tuple[str, tuple[Any, ...], Settled | None]]:
    """The task, by value: a node that lacks the package says so."""
    look, version = looker(), promptprism.__version__

    def run(mark: str, content: bytes, lists: dict[str, Any]) -> tuple[str, tuple[Any, ...], Any]:
        import importlib

        node_id = importlib.import_module("ray").get_runtime_context().get_node_id()
        node, settled = look(mark), None
        if node[1] == version and node[3]:
            settled = importlib.import_module("promptprism.distributed.ray_suite").settle(content, lists)
        return node_id, node, settled

    return run


# What this worker has opened, with the lists of data it knows, by the run that it is for.
_opened: dict[str, tuple[Work, dict[str, Any]]] = {}


def settle(content: bytes, lists: dict[str, Any]) -> Settled:
    """Run a cell in a worker, which keeps weights and data for the next.

    Args:
        content: from `RayEngine`, nobody else.
        lists: data in Ray's store by name; the weights have none.
    """
    told, cell = pickle.loads(content)
    if told.run not in _opened:
        _opened.clear()
        _opened[told.run] = _open(told, dict(lists))
    work, known = _opened[told.run]
    known.update(lists)
    return work.settle(cell)


def _open(told: _Told, lists: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    get = importlib.import_module("ray").get
    if told.here.is_dir():
        os.chdir(told.here)  # data may be named by their place from there
    torch.set_num_threads(told.threads)
    work = Work(
        Store(told.folder),
        get(lists[""]).to(find_device(told.device)),
        lambda name: get(lists[name]),
        told.lists,
        told.stage,
        devices=told.devices,
        place=f" (on node '{socket.gethostname()}')",
    )
    return work, lists
