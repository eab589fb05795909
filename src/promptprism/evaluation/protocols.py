"""The field's protocols: what is learned from, and in which label spaces that is scored.

Each is two small functions; scoring is shared, never trains, and leaves nothing changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from promptprism.data.batches import labels_of
from promptprism.data.names import LabelSpace
from promptprism.data.records import Dataset, Records
from promptprism.data.splits import base_new, few_shot, told_among_all
from promptprism.errors import PromptPrismError
from promptprism.evaluation.calibration import Calibrator, FittedOn
from promptprism.evaluation.evaluate import Evaluation, all_logits, check_scored, summarize
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.inference.predictor import Predictor
from promptprism.methods import Classifier, Method
from promptprism.provenance import Meter

Accuracies = Mapping[str, float]
#: Images per class that post-hoc baselines are fitted on at most.
_CALIBRATION_SHOTS = 16
_HALVES = "base", "new"


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: as in suites and results.
        learning: the data that is learned from, of the data set.
        scored: the parts that are scored, by name, of the data set and the target data sets.
        summary: the figures that papers print, of the accuracy on each part.
        home: the part whose label space is kept when images of the others are to be told from it.
        targets: whether it has target data sets besides the one learned from.
        halves: whether the base classes alone are learned.
    """

    name: str
    learning: Callable[[Dataset], Dataset]
    scored: Callable[[Dataset, Mapping[str, Dataset]], dict[str, Dataset]]
    summary: Callable[[Accuracies], dict[str, float]]
    home: str | None = None
    targets: bool = False
    halves: bool = False


def _hm(accuracies: Accuracies) -> dict[str, float]:
    return {"hm": harmonic_mean(accuracies["base"], accuracies["new"])}


def _whole(dataset: Dataset) -> Dataset:
    return dataset


def _transfer(name: str, home: str | None = None) -> Protocol:
    def average(accuracies: Accuracies) -> dict[str, float]:
        targets = [value for part, value in accuracies.items() if part != "source"]
        return {"average": sum(targets) / len(targets)}

    return Protocol(
        name, _whole, lambda dataset, targets: {"source": dataset, **targets}, average, home, targets=True
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "base-to-new",
            lambda dataset: base_new(dataset)[0],
            lambda dataset, _: dict(zip(_HALVES, base_new(dataset), strict=True)),
            _hm,
            home="base",
            halves=True,
        ),
        # Generalized zero-shot learning (Xian et al., TPAMI 2019), which DeCoOp (Zhou et al., ICML 2024)
        # calls open-world prompt tuning.
        Protocol(
            "base-to-all",
            lambda dataset: base_new(dataset)[0],
            lambda dataset, _: dict(zip(_HALVES, told_among_all(dataset), strict=True)),
            _hm,
            halves=True,
        ),
        _transfer("cross-dataset"),
        _transfer("cross-domain", home="source"),
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


def calibrate(method: Method, learning: Dataset, learned: Records, seed: int = 1) -> Calibrator:
    """Fit the post-hoc baselines on images of the classes learned that were not learned from, if there are.

    At most 16 images per class are taken, the same for the same seed.

    Args:
        method: trained.
        learning: the data learned from.
        learned: the images learned from.
        seed: of the draw.
    """
    known = {id(record.source) for record in learned}
    pools: dict[FittedOn, Records] = {
        "validation": tuple(record for record in learning.val if id(record.source) not in known),
        "held-out": tuple(record for record in learning.train if id(record.source) not in known),
        "learned": learned,
    }
    fitted_on, pool = next((name, pool) for name, pool in pools.items() if pool)
    records = few_shot(pool, _CALIBRATION_SHOTS, seed, allow_fewer=True)
    classifier = method.classifier(learning.label_space)
    logits = all_logits(Predictor(classifier), records)
    return Calibrator.of(classifier, logits, labels_of(records), fitted_on)


def score(
    method: Method,
    learned: LabelSpace,
    parts: Mapping[str, Dataset],
    home: str | None = None,
    calibrator: Calibrator | None = None,
) -> dict[str, Evaluation]:
    """Score a trained method on the test images of each part, in the part's label space and phrase.

    Args:
        method: trained.
        learned: the label space that was learned.
        parts: what is scored, by name; home first.
        home: the part that the images of all others are told from, in its label space (metrics ``ood/``).
        calibrator: the post-hoc baselines.
    """
    results: dict[str, Evaluation] = {}
    usual: Tensor | None = None
    for name, part in parts.items():
        meter = Meter(method.backbone.device)
        check_scored(part.test, part.name, len(part.class_names))
        classifier = method.classifier(part.label_space, learned)
        if usual is None or home is None:
            logits, shift = all_logits(Predictor(classifier), part.test), None
        else:
            logits, other = _both_spaces(method, learned, classifier, parts[home].label_space, part.test)
            shift = usual, other
        if name == home:
            usual = logits
        results[name] = summarize(classifier, logits, part.test, part.name, meter, calibrator, shift)
    return results


def _both_spaces(
    method: Method, learned: LabelSpace, classifier: Classifier, home: LabelSpace, records: Records
) -> tuple[Tensor, Tensor]:
    """Logits [M, B, K] of images in their own label space, the classifier's, and in home's.

    Where a class has the same logit in every label space, and with one phrase, images are read once for both.
    """
    own = classifier.space
    if own.phrase != home.phrase or not method.separable(home.joined(own), learned):
        at_home = all_logits(Predictor(method.classifier(home, learned)), records)
        return all_logits(Predictor(classifier), records), at_home
    both = method.classifier(home.joined(own), learned)
    logits, places = all_logits(Predictor(both), records), both.space.keys
    in_own, at_home = (logits[..., [places.index(key) for key in space.keys]] for space in (own, home))
    return in_own, at_home
