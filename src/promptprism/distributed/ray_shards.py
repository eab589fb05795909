"""Shards named on a Ray cluster, a task for each.

Plain tasks, not Ray Data: its readers cut shards into blocks and its writers name files after blocks, so
that a file per shard, put in its place whole, and a run that goes on at the shards that are left, would have
to be built around it; and at a shard that is no tar file it stops, or leaves it out without a word. One shard
in, two tables out is a task. Ray gives it another worker if one dies, and never more shards are given out
than there are workers, so nothing piles up. The classifier goes to each machine once, text features included:
machines need the package, but neither adapter nor weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptprism.data.stores import absolute, is_remote, local
from promptprism.distributed.cluster import check_nodes, connected, death, shared_mark
from promptprism.distributed.naming import Failed, Named, Naming, attempt
from promptprism.distributed.processes import TRIES, pack, unpack
from promptprism.methods import Classifier

# The classifier of this worker, by the run that it is for.
_opened: dict[str, Classifier] = {}


def name_by_ray(
    classifier: Classifier, naming: Naming, shards: Sequence[str], workers: int, address: str | None
) -> Iterator[Named | Failed]:
    """Name shards on a cluster, and say what became of each as it is done.

    Args:
        classifier: goes to every worker; onto GPUs, if the cluster has any.
        naming: what is done with every shard.
        shards: paths that all machines see, or addresses.
        workers: shards that are worked at together.
        address: of the cluster, see `promptprism.distributed.cluster.connected`.

    Raises:
        PromptPrismError: Ray is missing, the cluster does not answer, or a machine of it cannot do its share.
    """
    naming = replace(naming, out=absolute(naming.out))  # workers are started anywhere
    with ExitStack() as held:
        ray = held.enter_context(connected(address))
        gpus = ray.cluster_resources().get("GPU", 0)
        kind, share = ("GPU", min(1.0, gpus / workers)) if gpus else ("CPU", 1.0)
        mark = None if is_remote(naming.out) else held.enter_context(shared_mark(Path(local(naming.out))))
        check_nodes(ray, mark, naming.out, {kind: share})
        content = BytesIO()
        pack(classifier, content)
        model = ray.put(np.frombuffer(content.getbuffer(), np.uint8))  # workers see an array where it lies
        task = ray.remote(_named).options(max_retries=TRIES - 1, **{f"num_{kind.lower()}s": share})
        left, running = map(absolute, shards), dict[Any, str]()
        while True:
            for shard in left:
                running[task.remote(model, naming, shard, "cuda" if gpus else "cpu")] = shard
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
                    yield Failed(shard, "unknown", death(error, TRIES, "take fewer --workers"))


def _named(model: NDArray[np.uint8], naming: Naming, shard: str, device: str) -> Named | Failed:
    """One task; its worker keeps the classifier for the next."""
    if naming.run not in _opened:
        _opened.clear()
        _opened[naming.run] = unpack(BytesIO(model.tobytes()), device)
    return attempt(_opened[naming.run], naming, shard)
