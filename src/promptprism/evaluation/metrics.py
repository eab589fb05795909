"""Metrics of class probabilities: names start with ``cls/`` (decisions) or ``cal/`` (calibration)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)


def classification_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score class probabilities.

    - ``cls/accuracy``: share of images whose most probable class is right.
    - ``cls/macro_f1``: F1 of each class that occurs or was predicted, averaged.
    - ``cal/ece``: expected calibration error, 15 bins of equal width (Guo et al., 2017).
    - ``cal/nll``: mean negative log-likelihood in nats, probabilities below 1e-12 taken as that.
    - ``cal/brier``: mean squared distance to the one-hot label, 0 to 2.

    Args:
        probabilities: [B, K], rows sum to 1.
        labels: [B].
    """
    classes = probabilities.shape[-1]
    probabilities = probabilities.double()
    true = probabilities.gather(-1, labels.unsqueeze(-1))
    distance = (probabilities - F.one_hot(labels, classes)).square().sum(-1)
    predicted = probabilities.argmax(-1)
    metrics = {
        "cls/accuracy": multiclass_accuracy(predicted, labels, classes, average="micro"),
        "cls/macro_f1": multiclass_f1_score(predicted, labels, classes, average="macro"),
        "cal/ece": multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1"),
        "cal/nll": -true.clamp(min=1e-12).log().mean(),
        "cal/brier": distance.mean(),
    }
    return {name: value.item() for name, value in metrics.items()}


def harmonic_mean(base: float, new: float) -> float:
    """2BN / (B + N), the summary of base-to-new; 0 if either is 0."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def class_accuracies(predicted: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Accuracy on the images of each class, None for a class without images."""
    total = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    return [r / t if t else None for r, t in zip(right.tolist(), total.tolist(), strict=True)]
