"""What a suite would run, which data it needs, and about what it would cost; nothing is trained or loaded."""

import statistics
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from promptprism.backbones import Backbone, sized_backbone
from promptprism.cost.estimate import (
    image_prediction_flops,
    look_flops,
    prediction_mb,
    recomputed_flops,
    step_flops,
    text_prediction_flops,
    training_mb,
)
from promptprism.data.catalog import CATALOG
from promptprism.data.names import DEFAULT_PHRASE
from promptprism.data.records import Dataset, Record, Records
from promptprism.data.registry import load_data, registered
from promptprism.errors import PromptPrismError
from promptprism.evaluation.protocols import PROTOCOLS, draw
from promptprism.evaluation.suites import BackboneSpec, Cell, Suite
from promptprism.methods import Method, build_method

#: Images that are scored at once, and those per class that the post-hoc baselines are fitted on.
_TEST_BATCH, _SHOTS = 32, 16
#: What Python, PyTorch and the other libraries take of a process on a CPU.
_LIBRARIES_MB = 900.0
#: float64 copies of all test logits that scoring holds at once.
_LOGIT_COPIES = 4


@dataclass(frozen=True)
class DataState:
    """A data set that a suite needs.

    Attributes:
        data: its name.
        state: ``present``, ``missing``, or ``made on demand`` (MiniWorld).
        problem: why it cannot be used, and what to do.
        classes: size of its label space.
        test: number of test images.
    """

    data: str
    state: str
    problem: str | None
    classes: int
    test: int


@dataclass(frozen=True)
class CellEstimate:
    """A cell and what it would cost.

    Attributes:
        row: of the suite's grid.
        cell: the cell.
        trainable: trainable parameters.
        images: training images.
        steps: optimizer steps.
        train_flops: floating-point operations of learning.
        test_flops: of scoring, post-hoc baselines included.
        memory_mb: peak, MiB.
        hours: at the rate of the estimate.
    """

    row: str
    cell: Cell
    trainable: int
    images: int
    steps: int
    train_flops: float
    test_flops: float
    memory_mb: float
    hours: float


@dataclass(frozen=True)
class Estimate:
    """What a suite would run, need and cost.

    Attributes:
        cells: in the order of the suite.
        data: what it needs.
        gigaflops: of matrix products per second, measured or stated; hours are at this rate.
        backbone_numbers: size of the frozen model.
    """

    cells: tuple[CellEstimate, ...]
    data: tuple[DataState, ...]
    gigaflops: float
    backbone_numbers: int


def estimate_suite(
    suite: Suite,
    root: Path | None = None,
    gigaflops: float | None = None,
    device: str = "cpu",
    finished: Collection[Cell] = (),
) -> Estimate:
    """Estimate a suite from the sizes of its backbone; weights are not needed.

    Operations are those of the matrix products of both towers. Classes of missing data get made-up names of
    usual length. Reading images and everything else comes on top of the hours.

    Args:
        suite: the cells.
        root: folder of the field's data sets.
        gigaflops: of matrix products per second; None measures this machine for a second.
        device: that is measured.
        finished: cells that would not run again.

    Raises:
        PromptPrismError: invalid settings, or a backbone whose sizes are unknown.
    """
    with _asking_no_hub():
        backbone = sized_backbone(suite.backbone.name, suite.backbone.pretrained)
        found = {name: _data(name, root, max(suite.shots)) for name in (*suite.datasets, *suite.targets)}
    numbers = sum(parameter.numel() for parameter in backbone.model.parameters())
    rate = gigaflops or measure_gigaflops(suite.backbone.precision, device)
    states = tuple(state for _, state in found.values())
    arithmetic = _Arithmetic(backbone, suite.backbone, {name: data for name, (data, _) in found.items()})
    cells = []
    for row, cell in suite.grid():
        if cell in finished:
            continue
        cost = arithmetic.cost(cell.model_copy(update={"seed": suite.seeds[0]}).model_dump_json())
        memory = cost["memory_mb"] + (_LIBRARIES_MB if device == "cpu" else 0.0)
        memory += numbers * arithmetic.item / 2**20
        hours = (cost["train_flops"] + cost["test_flops"]) / rate / 1e9 / 3600
        cells.append(CellEstimate(row, cell, hours=hours, **cost | {"memory_mb": memory}))
    return Estimate(tuple(cells), states, rate, numbers)


@contextmanager
def _asking_no_hub() -> Iterator[None]:
    """Take what is on this disk; a hub, or the lack of a network, may keep one waiting for minutes."""
    places: list[Any] = [huggingface_hub.constants]
    if "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if "datasets" in sys.modules and len(places) == 1:  # it has copied what it found
            sys.modules["datasets"].config.HF_HUB_OFFLINE = before[0]
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def measure_gigaflops(precision: str, device: str = "cpu", seconds: float = 1.0) -> float:
    """Operations per second of large square matrix products, in 1e9: the median of about a second."""

    def product() -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix)[0, 0].item()
        return time.perf_counter() - start

    # A processor without instructions for this precision would take a minute for the largest at once.
    for size in (512, 2048) if device == "cpu" else (512, 8192):
        matrix = torch.randn(size, size, device=device).to(getattr(torch, precision))
        if product() > seconds / 2:
            break
    samples: list[float] = []
    while sum(samples) < seconds:
        samples.append(product())
    return 2 * size**3 / statistics.median(samples) / 1e9


def _data(name: str, root: Path | None, shots: int) -> tuple[Dataset, DataState]:
    entry = registered().get(name)
    try:
        data = load_data(name, root)
        state = "present" if entry is None or name in CATALOG else "made on demand"
        return data, DataState(name, state, None, len(data.class_names), len(data.test))
    except PromptPrismError as error:
        if entry is None:
            raise
        count, test = entry.classes, entry.images.get("test", 0)
        train = tuple(Record("", label) for label in range(count) for _ in range(shots))
        data = Dataset(
            name,
            tuple(f"class {number}" for number in range(count)),
            train,
            test=tuple(Record("", place * count // test) for place in range(test)),
            phrase=CATALOG[name].phrase if name in CATALOG else DEFAULT_PHRASE,
        )
        return data, DataState(name, "missing", str(error), count, test)


class _Arithmetic:
    """Counts what cells cost; those that differ only in their seed cost the same."""

    def __init__(self, backbone: Backbone, spec: BackboneSpec, data: Mapping[str, Dataset]) -> None:
        self.backbone, self.data = backbone, data
        self.item: int = getattr(torch, spec.precision).itemsize
        self.cost = cache(self._cost)
        self._drawn = cache(self._draw)

    def _draw(
        self, protocol: str, data: str, targets: tuple[str, ...], *draws: Any
    ) -> tuple[Dataset, Records, dict[str, Dataset]]:
        """What is learned from, the images drawn, and the parts that are scored."""
        chosen = PROTOCOLS[protocol]
        parts = chosen.scored(self.data[data], {name: self.data[name] for name in targets})
        return *draw(chosen, self.data[data], *draws), parts

    def _cost(self, text: str) -> dict[str, Any]:
        cell = Cell.model_validate_json(text)
        learning, records, parts = self._drawn(
            cell.protocol, cell.data, cell.targets, cell.shots, cell.seed, cell.allow_fewer
        )
        settings = cell.settings
        method = build_method(settings, self.backbone)
        tokens = method.texts(learning.label_space).tokens
        images = len(records) if settings.learns else 0
        method.allot(len(learning.class_names), images)
        steps = settings.epochs * max(1, images // settings.batch_size) if images else 0
        batch = min(settings.batch_size, images)
        step = step_flops(method, tokens, batch) + recomputed_flops(method, tokens, self.item)
        calibration = replace(
            learning,
            test=tuple(Record("", k) for k in range(len(learning.class_names)) for _ in range(_SHOTS)),
        )
        home = PROTOCOLS[cell.protocol].home
        return {
            "trainable": sum(parameter.numel() for parameter in method.parameters()),
            "images": images,
            "steps": steps,
            "train_flops": steps * step + look_flops(method, images),
            "test_flops": self._score(method, calibration, None)
            + sum(self._score(method, part, parts[home] if home else None) for part in parts.values()),
            "memory_mb": max(
                training_mb(method, tokens, batch, self.item) if steps else 0.0,
                *(self._scoring_mb(method, part) for part in parts.values()),
            ),
        }

    def _score(self, method: Method, part: Dataset, home: Dataset | None) -> float:
        """Operations of scoring the test images, in their own label space and in home's."""
        space = home.label_space.joined(part.label_space) if home else part.label_space
        once = not home or (home.phrase == part.phrase and method.separable(space, home.label_space))
        images, passes = len(part.test), 1 if once else 2
        texts = text_prediction_flops(method, method.texts(space).tokens, images)
        return passes * images * image_prediction_flops(method) + texts

    def _scoring_mb(self, method: Method, part: Dataset) -> float:
        """One layer of a batch, and the logits of all images."""
        logits = 8 * method.shape.templates * len(part.test) * len(part.class_names) / 2**20
        return prediction_mb(method, _TEST_BATCH, self.item) + _LOGIT_COPIES * logits
