"""One training over several devices of this machine: a process for each, started here, that share every step.

Each process runs the one loop on its share of a step's images and texts; see `promptprism.backbones.ranks`.
What is learned does not depend on their number: views depend on (seed, epoch, index, template) only, and
every process has the gradients of the whole step. On a CPU a device is a process of one thread.
"""

import logging
import os
import pickle
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from promptprism.backbones import Backbone
from promptprism.backbones.ranks import Ranks
from promptprism.data.names import LabelSpace
from promptprism.data.records import Record
from promptprism.errors import PromptPrismError
from promptprism.methods import Method, MethodSettings, build_method
from promptprism.provenance import Meter
from promptprism.training.checkpoint import Epoch, Run, load_checkpoint, save_checkpoint
from promptprism.training.loop import Training
from promptprism.training.schedule import make_optimizer

#: A server that has imported everything once starts the processes of this training and of the next; where
#: there is none, each imports for itself.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# A process that loses another one hears of it in its next sum; that other one is to be told of, not this.
_AFTER_THE_DEAD = 10.0
# Seconds between looks at what the processes tell.
_LOOK = 0.5
# More processes a core than anybody means.
_A_CORE = 4
_UNGUARDED = (
    "devices start this script again, each for itself: put what it does under if __name__ == '__main__':"
)


def check_devices(devices: int, method: Method) -> None:
    """Refuse devices that there are not, or that a method cannot be split over, before anything is learned.

    Raises:
        PromptPrismError: see above, or the extra is missing.
    """
    kind = method.backbone.device.type
    if devices < 1:
        raise PromptPrismError(f"devices is {devices}: give 1 or more")
    if find_spec("lightning_fabric") is None:
        raise PromptPrismError(
            f"devices={devices} needs Lightning Fabric: pip install 'promptprism[distributed]'"
        )
    cores = os.cpu_count() or 1
    if kind == "cpu" and devices > _A_CORE * cores:
        raise PromptPrismError(
            f"devices={devices}, and this machine has {cores} cores; each device is a process of one thread: "
            f"give {cores} or less"
        )
    there = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else devices
    if devices > there:
        raise PromptPrismError(
            f"devices={devices}, and there are {there} of kind '{kind}' on this machine: give {there} or "
            "less, or device='cpu' for processes"
        )
    if method.settings.learns and method.settings.epochs and not method.splits:
        raise PromptPrismError(f"the steps of {method.label} cannot be shared by devices: leave devices out")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise PromptPrismError(_UNGUARDED)


@dataclass(frozen=True)
class _Task:
    """What every process is told."""

    port: int
    size: int
    settings: MethodSettings
    backbone: Backbone
    space: LabelSpace
    records: tuple[Record, ...]
    run: Run
    start: Path
    checkpoint: Path
    progress: bool


def share(training: Training, devices: int, space: LabelSpace) -> None:
    """Train to the last epoch on so many devices; method, history and seconds are as if done here.

    Raises:
        PromptPrismError: a process has failed or died; the message names it and the cause.
        KeyboardInterrupt: Ctrl-C, with a message that says what was kept.
    """
    method, run, home = training.method, training.run, training.method.backbone.device
    assert run is not None
    before, state = training.meter.seconds, (run, method, training.optimizer)
    with tempfile.TemporaryDirectory(prefix="promptprism-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        start, kept = Path(folder, "start"), training.checkpoint or Path(folder, "kept")
        save_checkpoint(start, run, training.history, before, method, training.optimizer)
        method.backbone.to("cpu")  # each process puts its copy on a device of its own
        task = _Task(
            port,
            devices,
            method.settings,
            method.backbone,
            space,
            tuple(training.records),
            run,
            start,
            kept,
            training.progress,
        )
        try:
            peak = _join(task, home.type, training.callback)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(training.interrupted()) from None
        finally:
            method.backbone.to(home)
        training.history, _ = load_checkpoint(kept, *state)
        training.meter.add(peak_memory_mb=peak)


def _join(task: _Task, kind: str, callback: Callable[[Epoch], None] | None) -> float:
    """Start the processes and wait for all, or the first that is gone; gives the first's peak memory, MiB.

    A callback is called here, with the epochs that the first of them tells of.
    """
    multiprocessing.set_forkserver_preload([__name__, "lightning_fabric"])
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells whom it ends
    context = multiprocessing.get_context(START)
    peak, told = context.Value("d", 0.0), context.SimpleQueue()
    processes: Any = None
    try:
        # By value: what torch sends itself takes a file descriptor for every tensor.
        content = pickle.dumps(task)
        processes = multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            _work, (content, kind, peak, told), task.size, join=False, start_method=START
        )
        ended = False
        while not ended:
            ended = processes.join(_LOOK)
            while callback and not told.empty():
                callback(Epoch.model_validate_json(told.get()))
    except multiprocessing.ProcessRaisedException as error:  # type: ignore[attr-defined]
        cause = error.msg.strip().splitlines()[-1].rpartition("PromptPrismError: ")[2]
        raise PromptPrismError(f"device {error.error_index} of {task.size} failed: {cause}") from None
    except multiprocessing.ProcessExitedException as error:  # type: ignore[attr-defined]
        how = f"by {error.signal_name}" if error.signal_name else f"with code {error.exit_code}"
        raise PromptPrismError(
            f"the process of device {error.error_index} of {task.size} was ended {how}: if nobody did it, "
            "memory may have run out: take fewer devices or a smaller batch_size. With a checkpoint the same "
            "call, resuming, goes on from the last whole epoch"
        ) from None
    except BrokenPipeError:  # a process has ended before it was told what to do
        raise PromptPrismError(_UNGUARDED) from None
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise PromptPrismError(
            f"the training cannot be sent to other processes ({error}): give images as files, and a backbone "
            "by its name, or devices=1"
        ) from error
    finally:
        for process in processes.processes if processes else ():
            process.kill()
            process.join()
    return float(peak.value)


def _work(rank: int, content: bytes, kind: str, peak_memory_mb: Any, told: Any) -> None:
    """One process; its content comes from the one that started it."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    task: _Task = pickle.loads(content)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": task.port, "WORLD_SIZE": task.size, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in place.items()}, LOCAL_RANK=str(rank))
    warnings.simplefilter("ignore")  # who started this has said it
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(accelerator=kind, strategy="ddp", devices=task.size, plugins=[LightningEnvironment()])
    fabric.launch()
    torch.set_num_threads(1)  # as many as with any other number of devices
    backbone, first = task.backbone.to(fabric.device), rank == 0
    method = build_method(task.settings, backbone, task.run.seed)
    method.allot(len(task.space), len(task.records))
    if task.run.weights_digest:
        method.weigh(len(task.records))
    optimizer, meter = make_optimizer(task.settings, method.parameters()), Meter(fabric.device)
    history, seconds = load_checkpoint(task.start, task.run, method, optimizer)
    meter.add(seconds)
    backbone.ranks = Ranks(rank, task.size, in_units=kind == "cpu")
    training = Training(
        method,
        method.texts(task.space),
        task.records,
        optimizer,
        history,
        meter,
        task.run,
        task.checkpoint if first else None,
        task.progress and first,
        (lambda epoch: told.put(epoch.model_dump_json())) if first else None,
    )
    try:
        training.go()
    except RuntimeError:
        time.sleep(_AFTER_THE_DEAD)
        raise
    if first:
        peak_memory_mb.value = meter.peak_memory_mb
