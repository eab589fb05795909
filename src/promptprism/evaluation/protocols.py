"""The field's protocols: what is learned from, and in which label spaces that is scored.

Each is two small functions; learning and scoring are shared, and scoring never trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptprism.backbones import Backbone
from promptprism.data.records import Dataset, Records
from promptprism.data.splits import base_new, few_shot
from promptprism.errors import PromptPrismError
from promptprism.evaluation.evaluate import Evaluation, evaluate
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.inference import Predictor
from promptprism.methods import Method, build_method
from promptprism.training.loop import TrainResult, train

Accuracies = Mapping[str, float]


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: as in suites and results.
        learning: the data that is learned from, of the data set.
        scored: the parts that are scored, by name, of the data set and the target data sets.
        summary: the figures that papers print, of the accuracy on each part.
        targets: whether it has target data sets besides the one learned from.
    """

    name: str
    learning: Callable[[Dataset], Dataset]
    scored: Callable[[Dataset, Mapping[str, Dataset]], dict[str, Dataset]]
    summary: Callable[[Accuracies], dict[str, float]]
    targets: bool = False


def _whole(dataset: Dataset) -> Dataset:
    return dataset


def _transfer(name: str) -> Protocol:
    def average(accuracies: Accuracies) -> dict[str, float]:
        targets = [value for part, value in accuracies.items() if part != "source"]
        return {"average": sum(targets) / len(targets)}

    return Protocol(
        name, _whole, lambda dataset, targets: {"source": dataset, **targets}, average, targets=True
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "base-to-new",
            lambda dataset: base_new(dataset)[0],
            lambda dataset, _: dict(zip(("base", "new"), base_new(dataset), strict=True)),
            lambda accuracies: {"hm": harmonic_mean(accuracies["base"], accuracies["new"])},
        ),
        _transfer("cross-dataset"),
        _transfer("cross-domain"),
        Protocol("few-shot", _whole, lambda dataset, _: {"test": dataset}, lambda _: {}),
    )
}


def draw(
    protocol: Protocol,
    dataset: Dataset,
    shots: int,
    seed: int,
    allow_fewer: bool = False,
    listed: Records | None = None,
) -> tuple[Dataset, Records]:
    """The data that a protocol learns from, and its training images.

    Args:
        protocol: decides the label space.
        dataset: whole.
        shots: images per class.
        seed: of the draw.
        allow_fewer: take what there is of classes with fewer images than shots.
        listed: images of a few-shot list, with labels of the whole data set, instead of a draw.

    Raises:
        PromptPrismError: too few images or classes, or nothing to score on.
    """
    if not dataset.test:
        raise PromptPrismError(
            f"data set '{dataset.name}' has no test split: {protocol.name} trains and scores on different "
            "images. Put them into train/ and test/ folders"
        )
    if listed is not None:
        sources = {id(record.source) for record in listed}
        learning = protocol.learning(dataset)
        return learning, tuple(r for r in (*learning.train, *learning.val) if id(r.source) in sources)
    learning = protocol.learning(dataset)
    return learning, few_shot(learning.train, shots, seed, allow_fewer, learning.class_names)


def learn(
    method: str,
    backbone: Backbone,
    learning: Dataset,
    records: Records,
    *,
    seed: int = 1,
    checkpoint: Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> tuple[Method, TrainResult]:
    """Train a method on records of the data; nothing is chosen, the last epoch counts."""
    model = build_method(
        method, backbone, learning.class_names, phrase=learning.phrase, seed=seed, **settings
    )
    return model, train(model, records, seed=seed, checkpoint=checkpoint, progress=progress)


def score(model: Method, parts: Mapping[str, Dataset]) -> dict[str, Evaluation]:
    """Score a trained method on the test images of each part, in the part's label space and phrase."""
    predictor = Predictor(model)
    results = {}
    for name, part in parts.items():
        model.phrase = part.phrase
        model.set_classes(part.class_names)
        results[name] = evaluate(predictor, part.test, part.name)
    return results
