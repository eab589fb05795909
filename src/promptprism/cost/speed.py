"""Seconds and memory of training steps and predictions, on made-up images: speed knows no accuracy."""

import ctypes
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.cost.estimate import image_prediction_flops, step_flops
from promptprism.data.miniworld.scenes import COLOURS
from promptprism.data.miniworld.sprites import concepts
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods import Cdc, CdcSettings, Classifier, Method, ZeroShot
from promptprism.provenance import Facts, Meter

CPU = torch.device("cpu")

Name = TypeVar("Name", bound=Hashable)


def class_names(count: int) -> list[str]:
    """MiniWorld's concepts, evenly over their list; beyond them each also in colours ("red honeybee").

    Raises:
        PromptPrismError: more than there are.
    """
    plain = sorted({concept.name for concept in concepts()})
    coloured = (f"{colour} {name}" for colour in COLOURS for name in plain)
    names = list(itertools.islice(itertools.chain(plain, coloured), max(count, len(plain))))
    if len(names) < count:
        raise PromptPrismError(f"there are {len(names)} class names to measure with, not {count}")
    return [names[i * len(names) // count] for i in range(count)]


def build(backbone: Backbone, settings: CdcSettings) -> Cdc:
    """CDC; depth is cut to the backbone's layers."""
    depth = settings.depth and min(settings.depth, backbone.prompt_layers)
    return Cdc(backbone, settings.model_copy(update={"depth": depth}))


def draw(
    backbone: Backbone, templates: int, batch: int, classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random views [M, B, 3, H, W] and labels [B], on the backbone's device."""
    generator = torch.Generator().manual_seed(seed)
    size = backbone.image_size
    views = torch.randn(templates, batch, 3, size, size, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    return views.to(backbone.device), labels.to(backbone.device)


def training_step(method: Method, space: LabelSpace, views: Tensor, labels: Tensor) -> Callable[[], None]:
    """Loss, gradients and the optimizer's step; what is made once per training is made here."""
    optimizer, texts = torch.optim.SGD(method.parameters(), lr=1e-5, momentum=0.9), method.texts(space)
    texts.zero_shot_features  # noqa: B018

    def run() -> None:
        optimizer.zero_grad()
        method(views, labels, texts, 0).backward()
        optimizer.step()

    return run


def prediction(classifier: Classifier, views: Tensor) -> Callable[[], Tensor]:
    """Probabilities [B, K] of plain images [1, B, 3, H, W]."""

    def run() -> Tensor:
        with torch.no_grad():
            return classifier.probabilities(classifier.logits(views))

    return run


@dataclass
class Samples:
    """Seconds of repeated work, and how much memory it took on top of what was there, MiB.

    Seconds of the processor, over all threads, leave out what other programs took meanwhile.
    """

    device: torch.device = CPU
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def measure_memory(self, work: Callable[[], object]) -> None:
        """Run the work once, in memory not touched yet; seconds do not count, nor lazy initialisations."""
        gc.collect()
        _give_back()
        meter = Meter(self.device)
        before = meter.peak_memory_mb
        work()
        self.memory_mb = max(self.memory_mb, meter.peak_memory_mb - before)

    def take(self, work: Callable[[], object]) -> None:
        """Run the work once, as it runs amid others of its kind."""
        gc.collect()
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)

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


def interleave(
    work: Mapping[Name, Callable[[], object]], repeats: int, seconds: float = 0.0, device: torch.device = CPU
) -> dict[Name, Samples]:
    """Measure each piece of work, one after the other, in rounds: what slows the machine slows all.

    Args:
        work: by name; a first round measures its memory.
        repeats: rounds at least.
        seconds: rounds go on for so long.
        device: that the work runs on.
    """
    samples = {name: Samples(device) for name in work}
    for name, run in work.items():
        samples[name].measure_memory(run)
    start, rounds = time.perf_counter(), 0
    while rounds < repeats or time.perf_counter() - start < seconds:
        for name, run in work.items():
            samples[name].take(run)
        rounds += 1
    return samples


class Speed(Facts):
    """What a number of templates costs.

    Attributes:
        templates: M; 0 is zero-shot CLIP, which trains nothing.
        trainable: number of trainable parameters.
        step_gflops: operations of a training step, forward and backward to the inputs, that cannot be saved.
        image_gflops: operations of one image's prediction.
        step_seconds: of a training step, median.
        steps_per_second: the same, turned over.
        images_per_second: of prediction.
        text_seconds: of the classifier, text features above all, which is made once per label space.
        step_memory_mb: highest memory of a training step on top of what is there between steps, MiB.
        predict_memory_mb: the same of a prediction.
        repeats: rounds that the medians are of.
    """

    templates: int
    trainable: int
    step_gflops: float | None
    image_gflops: float
    step_seconds: float | None
    steps_per_second: float | None
    images_per_second: float
    text_seconds: float
    step_memory_mb: float | None
    predict_memory_mb: float
    repeats: int


def measure(
    backbone: Backbone,
    classes: int,
    templates: Sequence[int],
    settings: CdcSettings,
    *,
    batch: int = 4,
    predict_batch: int = 32,
    seconds: float = 10.0,
    repeats: int = 3,
) -> list[Speed]:
    """Measure CDC with several numbers of templates, and zero-shot CLIP, in one interleaved run.

    Args:
        backbone: its weights may be random.
        classes: K.
        templates: each M to measure.
        settings: all others of CDC.
        batch: images of a training step.
        predict_batch: images that are predicted at a time.
        seconds: to spend on each M.
        repeats: measurements of each at least.

    Raises:
        PromptPrismError: more classes than there are names, or settings that cannot be.
    """
    space = LabelSpace(tuple(class_names(classes)))
    methods: dict[int, Method] = {0: ZeroShot(backbone)}
    for m in sorted(set(templates)):
        methods[m] = build(backbone, settings.model_copy(update={"templates": m}))
    work: dict[tuple[str, int], Callable[[], object]] = {}
    plain, _ = draw(backbone, 1, predict_batch, classes)
    for m, method in methods.items():
        method.allot(classes, batch)
        work["text", m] = partial(method.classifier, space)
        work["predict", m] = prediction(method.classifier(space), plain)
        if m:
            work["train", m] = training_step(method, space, *draw(backbone, m, batch, classes))
    found = interleave(work, repeats, seconds * len(methods), backbone.device)
    return [
        _speed(method, m, space, {name: found[name, k] for name, k in found if k == m}, batch, predict_batch)
        for m, method in methods.items()
    ]


def _speed(
    method: Method,
    templates: int,
    space: LabelSpace,
    found: Mapping[str, Samples],
    batch: int,
    predict_batch: int,
) -> Speed:
    train, predict, tokens = found.get("train"), found["predict"], method.texts(space).tokens
    return Speed(
        templates=templates,
        trainable=sum(value.numel() for value in method.parameters()),
        step_gflops=step_flops(method, tokens, batch) / 1e9 if train else None,
        image_gflops=image_prediction_flops(method) / 1e9,
        step_seconds=train.median if train else None,
        steps_per_second=1 / train.median if train else None,
        images_per_second=predict_batch / predict.median,
        text_seconds=found["text"].median,
        step_memory_mb=train.memory_mb if train else None,
        predict_memory_mb=predict.memory_mb,
        repeats=len(predict.seconds),
    )


def _give_back() -> None:
    """Hand freed memory back to Linux, so that the next peak is not hidden in it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
