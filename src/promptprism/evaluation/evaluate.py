"""Score one method on labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from promptprism.data.records import Record
from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import class_accuracies, classification_metrics
from promptprism.inference import Predictor, check_labels
from promptprism.training.cost import Cost, Meter


class Evaluation(BaseModel):
    """Scores on one set of images in one label space.

    Attributes:
        data: name of the data.
        classes: size of the label space, K.
        images: number of images.
        metrics: see `classification_metrics`; evidential methods add ``cal/uncertainty``, the mean
            uncertainty of the fused opinion.
        class_accuracy: accuracy on the images of each class, None where there are none.
        template_accuracy: accuracy of each template's own prediction, in the order of the templates.
        images_per_second: reading the images and making the text features included.
        cost: seconds, memory, device, versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    classes: int
    images: int
    metrics: dict[str, float]
    class_accuracy: dict[str, float | None]
    template_accuracy: tuple[float, ...]
    images_per_second: float
    cost: Cost

    @property
    def accuracy(self) -> float:
        """The metric ``cls/accuracy``."""
        return self.metrics["cls/accuracy"]


def evaluate(predictor: Predictor, records: Sequence[Record], data: str, batch_size: int = 32) -> Evaluation:
    """Score a method on records whose labels point into its class names.

    Raises:
        PromptPrismError: no records, a label out of range, or an unreadable image.
    """
    method = predictor.method
    names = method.class_names
    if not records:
        raise PromptPrismError(f"data '{data}' has no image to score on: it needs a test split, or images")
    check_labels(records, len(names))
    meter = Meter(method.backbone.device)
    probabilities, templates, uncertainties = [], [], []
    for logits in predictor.logits([record.source for record in records], batch_size):
        probabilities.append(method.probabilities(logits).cpu())
        templates.append(logits.argmax(-1).cpu())
        if method.evidential:
            uncertainties.append(method.opinions(logits)[1].uncertainty.cpu())
    labels = torch.tensor([record.label for record in records])
    predicted = torch.cat(probabilities)
    metrics = classification_metrics(predicted, labels)
    if uncertainties:
        metrics["cal/uncertainty"] = torch.cat(uncertainties).double().mean().item()
    cost = meter.cost()
    return Evaluation(
        data=data,
        classes=len(names),
        images=len(records),
        metrics=metrics,
        class_accuracy=dict(
            zip(names, class_accuracies(predicted.argmax(-1), labels, len(names)), strict=True)
        ),
        template_accuracy=tuple((torch.cat(templates, -1) == labels).double().mean(-1).tolist()),
        images_per_second=len(records) / cost.seconds,
        cost=cost,
    )
