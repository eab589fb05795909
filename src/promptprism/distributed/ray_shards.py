"""Shards named on a Ray cluster, a task for each.

Plain tasks, not Ray Data: its readers cut shards into blocks and its writers name files after blocks, so
that a file per shard, put in its place whole, and a run that goes on at the shards that are left, would have
to be built around it; and at a shard that is no tar file it stops, or leaves it out without a word. One shard
in, two tables out is a task. Ray gives it another worker if one dies, and never more shards are given out
than there are workers, so nothing piles up. The classifier goes to each machine once, text features included:
machines need the package, but neither adapter nor weights.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

import promptprism
from promptprism.data.stores import is_remote, joined, local
from promptprism.distributed.naming import Failed, Named, Naming, attempt
from promptprism.distributed.processes import TRIES, pack, unpack
from promptprism.errors import PromptPrismError, needs
from promptprism.methods import Classifier

_EXTRA = f"pip install 'promptprism[ray,parquet]=={promptprism.__version__}'"
# The classifier of this worker, by the run that it is for.
_opened: dict[str, Classifier] = {}


@dataclass(frozen=True)
class Machine:
    """What one machine of a cluster says of itself.

    Attributes:
        node: its name.
        version: of the package there; None where it cannot be imported.
        problem: why not.
        sees: whether it sees the folder for the tables.
    """

    node: str
    version: str | None
    problem: str
    sees: bool


def name_by_ray(
    classifier: Classifier, naming: Naming, shards: Sequence[str], workers: int, address: str | None
) -> Iterator[Named | Failed]:
    """Name shards on a cluster, and say what became of each as it is done.

    Args:
        classifier: goes to every worker.
        naming: what is done with every shard.
        shards: paths that all machines see, or addresses.
        workers: shards that are worked at together.
        address: of the cluster; None starts one on this machine, or takes that of RAY_ADDRESS.

    Raises:
        PromptPrismError: Ray is missing, the cluster does not answer, or a machine of it cannot do its share.
    """
    ray, ours = _connect(address, workers)
    try:
        check_machines(_machines(ray, naming.out), naming.out)
        content = BytesIO()
        pack(classifier, content)
        model = ray.put(np.frombuffer(content.getbuffer(), np.uint8))  # workers see an array where it lies
        gpus = ray.cluster_resources().get("GPU", 0)
        cuda = classifier.backbone.device.type == "cuda" or gpus > 0
        share = {"num_gpus": min(1.0, gpus / workers)} if cuda and gpus else {"num_cpus": 1}
        task = ray.remote(_named).options(max_retries=TRIES - 1, **share)
        left, running = iter(shards), dict[Any, str]()
        while True:
            for shard in left:
                running[task.remote(model, naming, shard, "cuda" if cuda and gpus else "cpu")] = shard
                if len(running) >= workers:
                    break
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            for one in done:
                shard = running.pop(one)
                try:
                    yield ray.get(one)
                except ray.exceptions.RayError as error:
                    yield Failed(shard, "?", _told(error))
    finally:
        if ours:
            ray.shutdown()


def _named(model: NDArray[np.uint8], naming: Naming, shard: str, device: str) -> Named | Failed:
    """One task; its worker keeps the classifier for the next."""
    if naming.run not in _opened:
        _opened.clear()
        _opened[naming.run] = unpack(BytesIO(model.tobytes()), device)
    return attempt(_opened[naming.run], naming, shard)


def _connect(address: str | None, workers: int) -> tuple[Any, bool]:
    """Ray, connected, and whether this call has done that."""
    with needs("--engine ray", "ray", ", or take --engine processes"):
        ray = importlib.import_module("ray")
    if ray.is_initialized():
        return ray, False
    given = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = (
        {"address": given} if given else {"num_cpus": workers, "include_dashboard": False}
    )
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        where = f"no Ray cluster answers at '{given}'" if given else "Ray cannot be started on this machine"
        raise PromptPrismError(
            f"{where} ({' '.join(str(error).split())[:300]}): start one with ray start --head, and give "
            "--engine ray://HOST:10001, or take --engine processes"
        ) from error
    return ray, True


def _machines(ray: Any, out: str) -> list[Machine]:
    """Ask every machine of the cluster, by a function that needs nothing of ours there."""
    mark = None if is_remote(out) else local(joined(out, f".promptprism-{uuid4().hex}")).absolute()

    def look(mark: str | None) -> tuple[str, str | None, str, bool]:
        import os
        import socket

        version: str | None
        try:
            import promptprism as there

            version, problem = str(there.__version__), ""
        except Exception as error:
            version, problem = None, f"{type(error).__name__}: {error}"
        return socket.gethostname(), version, problem, mark is None or os.path.exists(mark)  # noqa: PTH110

    strategy: Callable[..., Any] = importlib.import_module(
        "ray.util.scheduling_strategies"
    ).NodeAffinitySchedulingStrategy
    task = ray.remote(look).options(num_cpus=0)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    try:
        if mark:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        asked = [
            task.options(scheduling_strategy=strategy(node, soft=False)).remote(mark and str(mark))
            for node in nodes
        ]
        return [Machine(*found) for found in ray.get(asked)]
    finally:
        if mark:
            mark.unlink(missing_ok=True)


def check_machines(machines: Sequence[Machine], out: str) -> None:
    """Refuse a cluster of which a machine cannot do its share.

    Raises:
        PromptPrismError: which machine, what is wrong there, and the remedy.
    """
    for one in machines:
        if one.version is None:
            raise PromptPrismError(
                f"node '{one.node}' cannot import promptprism ({one.problem}): {_EXTRA} there"
            )
        if one.version != promptprism.__version__:
            raise PromptPrismError(
                f"node '{one.node}' has promptprism {one.version}, this is {promptprism.__version__}: "
                f"{_EXTRA} there"
            )
        if not one.sees:
            raise PromptPrismError(
                f"node '{one.node}' does not see the folder '{out}': name one that all machines share by the "
                "same path, or an object store's, such as s3://bucket/folder"
            )


def _told(error: Exception) -> str:
    kind = type(error).__name__
    if "OutOfMemory" in kind:
        return f"its worker ran out of memory {TRIES} times: take fewer --workers"
    if "Crashed" in kind or "Died" in kind:
        return (
            f"its worker died {TRIES} times ({' '.join(str(error).split())[:200]}): if nobody did it, memory "
            "has run out: take fewer --workers"
        )
    return f"{kind}: {' '.join(str(error).split())[:300]}"
