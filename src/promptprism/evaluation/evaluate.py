"""Score one classifier on labelled images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptprism.data.batches import labels_of
from promptprism.data.records import Record
from promptprism.errors import PromptPrismError
from promptprism.evaluation.calibration import Calibrator, PostHoc, Reliability, reliability
from promptprism.evaluation.metrics import (
    calibration_metrics,
    class_accuracies,
    prediction_metrics,
    predictions,
    shift_metrics,
)
from promptprism.evaluation.selective import risk_curve
from promptprism.inference.predictor import Predictor, check_labels
from promptprism.methods import Classifier
from promptprism.provenance import Cost, Facts, Meter


class Evaluation(Facts):
    """Scores on one set of images in one label space.

    Attributes:
        data: name of the data.
        classes: size of the label space, K.
        images: number of images.
        metrics: of the final prediction (the fused opinion's), see `prediction_metrics`. Protocols add
            ``ood/...``, see `shift_metrics`, and ``cal/ece_ts``, ``cal/nll_dac`` and so on, see `Calibrator`.
        templates: the metrics of each template's own prediction, in the order of the templates.
        class_accuracy: accuracy on the images of each class, None where there are none.
        reliability: of the final prediction.
        risk_coverage: risk at 1/20, 2/20, ..., 20/20 of the images when the final prediction answers the
            least doubtful ones, by score of doubt.
        post_hoc: how the post-hoc baselines were fitted; None without them.
        images_per_second: reading the images and making the text features included.
        cost: seconds, memory, device, versions.
    """

    data: str
    classes: int
    images: int
    metrics: dict[str, float]
    templates: tuple[dict[str, float], ...]
    class_accuracy: dict[str, float | None]
    reliability: Reliability
    risk_coverage: dict[str, tuple[float, ...]]
    post_hoc: PostHoc | None = None
    images_per_second: float
    cost: Cost

    @property
    def accuracy(self) -> float:
        """The metric ``cls/accuracy``."""
        return self.metrics["cls/accuracy"]

    @property
    def template_accuracy(self) -> tuple[float, ...]:
        """``cls/accuracy`` of each template."""
        return tuple(metrics["cls/accuracy"] for metrics in self.templates)


def evaluate(predictor: Predictor, records: Sequence[Record], data: str, batch_size: int = 32) -> Evaluation:
    """Score a classifier on records whose labels point into its class names.

    Raises:
        PromptPrismError: no records, a label out of range, or an unreadable image.
    """
    classifier = predictor.classifier
    check_scored(records, data, len(classifier.space))
    meter = Meter(classifier.backbone.device)
    return summarize(classifier, all_logits(predictor, records, batch_size), records, data, meter)


def check_scored(records: Sequence[Record], data: str, classes: int) -> None:
    """Raise PromptPrismError unless there are records, with labels that lie in 0..classes-1."""
    if not records:
        raise PromptPrismError(f"data '{data}' has no image to score on: it needs a test split, or images")
    check_labels(records, classes)


def all_logits(predictor: Predictor, records: Sequence[Record], batch_size: int = 32) -> Tensor:
    """Logits [M, B, K] of all records, on the CPU.

    Raises:
        PromptPrismError: an image cannot be read.
    """
    batches = predictor.logits([record.source for record in records], batch_size)
    return torch.cat([logits.cpu() for logits in batches], dim=1)


def summarize(
    classifier: Classifier,
    logits: Tensor,
    records: Sequence[Record],
    data: str,
    meter: Meter,
    calibrator: Calibrator | None = None,
    shift: tuple[Tensor, Tensor] | None = None,
) -> Evaluation:
    """Compute all scores.

    Args:
        classifier: that made the logits, in the label space of the records.
        logits: [M, B, K].
        records: B records.
        data: name of the data.
        meter: started when the work on this data began.
        calibrator: the post-hoc baselines.
        shift: logits of images that these are to be told from, and logits of these, both in the label space
            learned.
    """
    labels, names = labels_of(records), classifier.space.names
    each, final = predictions(classifier, logits)
    metrics = [prediction_metrics(one, labels) for one in (*each, final)]
    if shift is not None:
        usual, other = ([*each, final] for each, final in (predictions(classifier, both) for both in shift))
        for found, pair in zip(metrics, zip(usual, other, strict=True), strict=True):
            found |= shift_metrics(*pair)
    if calibrator is not None:
        for name, probabilities in calibrator.calibrated(final.logits, classifier).items():
            found = calibration_metrics(probabilities, labels)
            metrics[-1] |= {f"cal/{metric}_{name}": value for metric, value in found.items()}
    right = final.answer == labels
    cost = meter.cost()
    return Evaluation(
        data=data,
        classes=len(names),
        images=len(records),
        metrics=metrics[-1],
        templates=tuple(metrics[:-1]),
        class_accuracy=dict(zip(names, class_accuracies(final.answer, labels, len(names)), strict=True)),
        reliability=reliability(final.probabilities.amax(-1), right),
        risk_coverage={
            name: risk_curve(doubt, right)
            for name, doubt in final.doubts.items()
            if name in ("uncertainty", "max_prob")
        },
        post_hoc=None if calibrator is None else calibrator.fit,
        images_per_second=len(records) / cost.seconds,
        cost=cost,
    )
