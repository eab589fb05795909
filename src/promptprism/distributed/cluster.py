"""A Ray cluster: the way to it, and whether its nodes can do their share."""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import promptprism
from promptprism.errors import PromptPrismError, needs
from promptprism.files import remove, write_bytes

_EXTRA = f"pip install 'promptprism[parquet,ray]=={promptprism.__version__}'"
# What Ray reads when it starts: say nothing to its makers; be patient with a machine that is busy; let what
# runs out of memory fail after some tries, where Ray would try for ever.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_task_oom_retries": "3",
}
# Clocks may differ by so many seconds: the times of results are theirs.
_APART = 60.0
# How often Ray is started that takes too long.
_STARTS = 3


def ray_address(engine: str, others: str) -> str | None:
    """The cluster that ``ray`` or ``ray://HOST:PORT`` names; None is that of RAY_ADDRESS, or this machine.

    Raises:
        PromptPrismError: it is no Ray; the message names the others, too.
    """
    kind, separator, place = engine.partition("://")
    if kind != "ray" or (separator and not place):
        raise PromptPrismError(f"no engine '{engine}': give {others}, ray or ray://HOST:PORT")
    return engine if separator else None


@dataclass(frozen=True)
class Node:
    """What a node of a cluster says of itself.

    Attributes:
        name: of its machine.
        version: of the package there; None where it cannot be imported.
        problem: why not.
        sees: whether it sees a file of ours; see `shared_mark`.
        time: by its clock, seconds.
    """

    name: str
    version: str | None
    problem: str
    sees: bool
    time: float

    def wrong(self, folder: Path | str) -> str | None:
        """Why it cannot do its share, and the remedy."""
        if self.version is None:
            return f"node '{self.name}' cannot import promptprism ({self.problem}): {_EXTRA} there"
        if self.version != promptprism.__version__:
            return (
                f"node '{self.name}' has promptprism {self.version}, this is {promptprism.__version__}: "
                f"{_EXTRA} there"
            )
        if not self.sees:
            return (
                f"node '{self.name}' does not see the folder '{folder}': name one that all nodes share by "
                "the same path"
            )
        return None


@contextmanager
def connected(address: str | None = None, **more: Any) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is connected already is taken, and left as it is.

    Args:
        address: ``ray://HOST:PORT``; None takes that of RAY_ADDRESS, else the cluster that this machine
            belongs to, else starts one here that ends afterwards; ``local`` always does that.
        more: of ``ray.init``.

    Raises:
        PromptPrismError: Ray is missing, or no cluster answers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with needs("--engine ray", "ray"):
        ray = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    ends = signal.getsignal(signal.SIGTERM)
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"} | more
    try:
        _init(ray, address, options)
    except Exception as error:  # each way to fail has its own
        given = address or os.environ.get("RAY_ADDRESS")
        where = f"no Ray cluster answers at '{given}'" if given else "Ray cannot be started on this machine"
        raise PromptPrismError(
            f"{where} ({' '.join(str(error).split())[:300]}): start one with ray start --head, and give "
            "--engine ray://HOST:10001; what a cluster that died has left, ray stop takes away"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            # Ray has put its own there, which says nothing of what is kept.
            signal.signal(signal.SIGTERM, ends)
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str | None, options: dict[str, Any]) -> None:
    """Connect; on a busy machine Ray may not be up in the time that it gives itself."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address, **options)
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise


@contextmanager
def shared_mark(folder: Path) -> Iterator[Path]:
    """A file in a folder for as long, by which a node shows that it sees the very same folder."""
    mark = folder.absolute() / f".shared-{uuid4().hex}"
    write_bytes(mark, b"")
    try:
        yield mark
    finally:
        remove(mark)


def looker() -> Callable[[str | None], tuple[str, str | None, str, bool, float]]:
    """What a node says of itself, as `Node` has it; sent by value, for it may lack the package."""

    def look(mark: str | None) -> tuple[str, str | None, str, bool, float]:
        import os
        import socket
        import time

        found: tuple[str | None, str]
        try:
            import promptprism as there

            found = there.__version__, ""
        except Exception as error:  # it may be there, and broken
            found = None, f"{type(error).__name__}: {error}"
        sees = mark is None or os.path.exists(mark)  # noqa: PTH110
        return socket.gethostname(), *found, sees, time.time()

    return look


def check_nodes(ray: Any, mark: Path | None, folder: Path | str, needs: dict[str, float]) -> bool:
    """Refuse a cluster of which a node cannot do its share.

    Args:
        ray: connected.
        mark: see `shared_mark`; None where no folder is to be shared.
        folder: the folder to share.
        needs: what a task needs of a node, such as ``{"CPU": 1, "GPU": 0.25}``; others are left alone.

    Returns:
        Whether there is any node that has what a task needs.

    Raises:
        PromptPrismError: which node, what is wrong there, and the remedy.
    """
    affinity = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    ask = ray.remote(looker())
    able = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= least for name, least in needs.items())
    ]
    place, before = mark and str(mark), time.time()
    asked = [
        ask.options(num_cpus=0, scheduling_strategy=affinity(node, soft=False)).remote(place) for node in able
    ]
    for one in asked:
        try:
            node = Node(*ray.get(one))
        except ray.exceptions.RayError:
            continue  # it has gone meanwhile
        if problem := node.wrong(folder):
            raise PromptPrismError(problem)
        if (apart := max(before - node.time, node.time - time.time())) > _APART:
            raise PromptPrismError(
                f"the clock of node '{node.name}' is {apart:,.0f} s away from this one, and results hold "
                "times: set it, for instance by NTP"
            )
    return bool(able)


def death(error: Exception, tries: int, remedy: str) -> str:
    """What is said of a task that Ray has given up."""
    kind, text = type(error).__name__, " ".join(str(error).split())[:300]
    if "OutOfMemory" in kind:
        return f"its worker ran out of memory {tries} times ({text}): {remedy}"
    if "Crashed" in kind or "Died" in kind:
        return f"its worker died {tries} times ({text}): if nobody ended it, memory has run out: {remedy}"
    return f"{kind}: {text}"
