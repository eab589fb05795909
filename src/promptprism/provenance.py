"""What a run used and cost: backbone, seconds, peak memory, device, versions."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar
from weakref import WeakSet

import torch
from pydantic import BaseModel, ConfigDict, Field

from promptprism.backbones import Backbone

Figure = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """What is written as JSON: it never changes, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cost(Facts):
    """Seconds, peak memory, device and versions of one piece of work.

    Attributes:
        seconds: wall-clock time.
        peak_memory_mb: highest memory since the start, in MiB: the process's own on a CPU (weights and
            libraries included), what PyTorch allocated on a CUDA device.
        device: name of the processor or graphics card.
        threads: number of threads that PyTorch computes with.
        versions: of Python and the libraries that decide the numbers.
    """

    seconds: Figure
    peak_memory_mb: Figure
    device: str
    threads: int
    versions: dict[str, str]


class BackboneFacts(Facts):
    """Which frozen model was used."""

    name: str
    pretrained: str | None
    fingerprint: str
    precision: str

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneFacts:
        """Describe a backbone."""
        return cls(
            name=backbone.name,
            pretrained=backbone.pretrained,
            fingerprint=backbone.fingerprint,
            precision=str(backbone.dtype).removeprefix("torch."),
        )


class Scored(Facts):
    """What one evaluation of an adapter found.

    Attributes:
        data: name of the data.
        split: test, or all.
        images: how many were scored.
        learned_from: how many of them it had learned from; None if that is not known.
        accuracy: share of right answers.
        ece: expected calibration error.
        date: in UTC.
    """

    data: str
    split: str
    images: int
    learned_from: int | None
    accuracy: float
    ece: float
    date: str


class Meter:
    """Measures from the moment it is made until `cost` is called, which may be more than once."""

    _live: ClassVar[WeakSet[Meter]] = WeakSet()

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known_mb = 0.0
        self._start = time.perf_counter()
        # The high-water mark is one for all; those that go on measuring keep what they have seen.
        for other in self._live:
            other._known_mb = other.peak_memory_mb
        self._live.add(self)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _reset_peak()

    def add(self, seconds: float = 0.0, peak_memory_mb: float = 0.0) -> None:
        """Count what an earlier sitting, or another process, has taken."""
        self._start -= seconds
        self._known_mb = max(self._known_mb, peak_memory_mb)

    @property
    def seconds(self) -> float:
        """Seconds so far, those of earlier sittings included."""
        return time.perf_counter() - self._start

    @property
    def peak_memory_mb(self) -> float:
        """Highest memory so far, MiB."""
        on_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else _peak_bytes()
        return max(self._known_mb, peak / 2**20)

    def cost(self) -> Cost:
        """Everything measured, as it goes into results."""
        return Cost(
            seconds=self.seconds,
            peak_memory_mb=self.peak_memory_mb,
            device=_device_name(self.device),
            threads=torch.get_num_threads(),
            versions=versions(),
        )


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide the numbers."""
    packages = ("promptprism", "torch", "torchvision", "open_clip_torch", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@cache
def revision() -> str | None:
    """Git revision of the code, with + if it was changed since; None outside of a work tree of its own."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        found = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return found.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails in somebody else's work tree
        return git("describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _reset_peak() -> None:
    # Linux restarts the high-water mark on request, so that a later run is not charged for an earlier one.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []
