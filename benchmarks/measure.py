"""What all benchmarks share: towers with random weights, class names, seconds, memory, rows of CSV."""

from __future__ import annotations

import csv
import ctypes
import gc
import io
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch

from promptprism.backbones import Backbone
from promptprism.backbones.backbone import Precision
from promptprism.data.miniworld.scenes import COLOURS
from promptprism.data.miniworld.sprites import concepts
from promptprism.errors import PromptPrismError
from promptprism.files import write_bytes
from promptprism.training.cost import Meter

RESULTS = Path(__file__).with_name("results")
CPU = torch.device("cpu")


def class_names(count: int) -> list[str]:
    """MiniWorld's concepts, evenly over their list; beyond them each also in colours ("red honeybee")."""
    plain = sorted({concept.name for concept in concepts()})
    coloured = (f"{colour} {name}" for colour in COLOURS for name in plain)
    names = list(itertools.islice(itertools.chain(plain, coloured), max(count, len(plain))))
    if len(names) < count:
        raise PromptPrismError(f"there are {len(names)} class names to measure with, not {count}")
    return [names[i * len(names) // count] for i in range(count)]


def random_model(name: str, precision: Precision = "float32") -> Any:
    """An open_clip model with random weights, always the same, as open_clip casts it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name).eval().requires_grad_(False)
    if precision == "float32":
        return model
    low = open_clip.create_model(name, precision="bf16").eval().requires_grad_(False)
    low.load_state_dict(model.state_dict())
    return low


def random_backbone(name: str, precision: Precision) -> Backbone:
    """The same weights as a backbone."""
    return Backbone(random_model(name), open_clip.get_tokenizer(name), name=name, precision=precision)


def gigaflops_per_second(precision: Precision) -> float:
    """The best of large square matrix products: what the machine can do."""
    size = 2048
    a = torch.randn(size, size).to(getattr(torch, precision))
    b = a.T.contiguous()
    samples = []
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        samples.append(time.perf_counter() - start)
    return 2 * size**3 / min(samples) / 1e9


@dataclass
class Samples:
    """Seconds of repeated work, and how much memory it took on top of what was there, MiB.

    Seconds of the processor, over all threads, leave out what other programs took meanwhile.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def take(self, work: Callable[[], object]) -> None:
        """Run the work once."""
        gc.collect()
        _give_back()
        meter = Meter(CPU)
        before, start, cpu_start = meter.peak_memory_mb, time.perf_counter(), time.process_time()
        work()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)
        self.memory_mb = max(self.memory_mb, meter.peak_memory_mb - before)

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Median of the processor's seconds."""
        return statistics.median(self.cpu_seconds)

    def row(self) -> dict[str, float]:
        """As it goes into a table."""
        return {
            "seconds": round(self.median, 4),
            "seconds_min": round(min(self.seconds), 4),
            "seconds_max": round(max(self.seconds), 4),
            "cpu_seconds": round(self.cpu_median, 4),
            "repeats": len(self.seconds),
            "memory_mb": round(self.memory_mb),
        }


def interleave(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Samples]:
    """Measure each piece of work, one after the other, in rounds: what slows the machine slows all."""
    samples = {name: Samples() for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            samples[name].take(run)
    return samples


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file.

    Raises:
        PromptPrismError: the file has other columns.
    """
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    header = old.partition("\n")[0].split(",") if old else list(rows[0])
    if header != list(rows[0]):
        raise PromptPrismError(f"'{path}' has columns {header}, not {list(rows[0])}: give another file")
    text = io.StringIO(old, newline="")
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, header, lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _give_back() -> None:
    """Hand freed memory back to Linux, so that the next peak is not hidden in it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
