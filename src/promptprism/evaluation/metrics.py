"""Metrics of predictions: names start with ``cls/`` (decisions), ``cal/`` (calibration), ``sc/`` (selection).

Every share is in 0..1. A metric that the images do not allow (telling wrong from right where all are right)
is left out. torchmetrics is imported late: it takes more than a second.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.evaluation.calibration import BINS, adaptive_error
from promptprism.evaluation.selective import detection_metrics, selective_metrics
from promptprism.methods import Classifier


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one template, or all together, say of B images.

    Attributes:
        logits: [B, K].
        probabilities: [B, K], rows sum to 1.
        uncertainty: [B], the mass that an opinion gives to no class; None for methods without opinions.
    """

    logits: Tensor
    probabilities: Tensor
    uncertainty: Tensor | None

    @property
    def answer(self) -> Tensor:
        """The most probable class, [B]."""
        return self.probabilities.argmax(-1)

    @property
    def doubts(self) -> dict[str, Tensor]:
        """Scores [B] that should be high where the answer cannot be trusted.

        - ``uncertainty``: the method's own, if it has one.
        - ``max_prob``: 1 - the largest probability (Hendrycks and Gimpel, ICLR 2017).
        - ``entropy``: of the probabilities.
        - ``energy``: -logsumexp of the logits (Liu et al., NeurIPS 2020).
        """
        others = self.probabilities.scatter(-1, self.answer.unsqueeze(-1), 0.0)
        scores = {
            # Summed, as 1 - p is 0 for all that are very sure.
            "max_prob": others.sum(-1),
            "entropy": torch.special.entr(self.probabilities).sum(-1),
            "energy": -self.logits.logsumexp(-1),
        }
        return scores if self.uncertainty is None else {"uncertainty": self.uncertainty, **scores}


def predictions(classifier: Classifier, logits: Tensor) -> tuple[list[Prediction], Prediction]:
    """The predictions of each template and the final one, of logits [M, B, K]; in float64."""
    logits = logits.double()
    final = logits.mean(0), classifier.probabilities(logits)
    if classifier.evidential:
        opinions, fused = classifier.opinions(logits)
        each = [
            Prediction(*of) for of in zip(logits, opinions.probability, opinions.uncertainty, strict=True)
        ]
        return each, Prediction(*final, fused.uncertainty)
    return [Prediction(one, one.softmax(-1), None) for one in logits], Prediction(*final, None)


def prediction_metrics(prediction: Prediction, labels: Tensor) -> dict[str, float]:
    """Score a prediction.

    - `classification_metrics`.
    - ``cal/uncertainty``: the method's own, mean over images.
    - ``sc/aurc``, ``sc/coverage_at_5_risk``: see `selective_metrics`, by max_prob; with ``_uncertainty``, by
      the method's own.
    - ``sc/auroc_SCORE``, ``sc/fpr95_SCORE``: see `detection_metrics`, of each of `Prediction.doubts`, wrong
      answers being the positives.

    Args:
        prediction: of B images.
        labels: [B].
    """
    metrics = classification_metrics(prediction.probabilities, labels)
    right = prediction.answer == labels
    doubts = prediction.doubts
    for score, ending in (("max_prob", ""), ("uncertainty", "_uncertainty")):
        if score in doubts:
            found = selective_metrics(doubts[score], right)
            metrics |= {f"sc/{name}{ending}": value for name, value in found.items()}
    for score, doubt in doubts.items():
        found = detection_metrics(doubt[right], doubt[~right])
        metrics |= {f"sc/{name}_{score}": value for name, value in found.items()}
    if prediction.uncertainty is not None:
        metrics["cal/uncertainty"] = prediction.uncertainty.mean().item()
    return metrics


def shift_metrics(usual: Prediction, other: Prediction) -> dict[str, float]:
    """``ood/auroc_SCORE`` and ``ood/fpr95_SCORE``: telling other images (positives) from the usual ones.

    Both are predictions in the same label space, the one that was learned.
    """
    known = usual.doubts
    return {
        f"ood/{name}_{score}": value
        for score, doubt in other.doubts.items()
        for name, value in detection_metrics(known[score], doubt).items()
    }


def classification_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score class probabilities.

    - ``cls/accuracy``: share of images whose most probable class is right.
    - ``cls/macro_f1``: F1 of each class that occurs or was predicted, averaged.
    - ``cal/...``: see `calibration_metrics`, and ``cal/adaptive_ece``, see `adaptive_error`.

    Args:
        probabilities: [B, K], rows sum to 1.
        labels: [B].
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    classes = max(2, probabilities.shape[-1])  # torchmetrics knows no fewer
    confidence, predicted = probabilities.double().max(-1)
    return {
        "cls/accuracy": multiclass_accuracy(predicted, labels, classes, average="micro").item(),
        "cls/macro_f1": multiclass_f1_score(predicted, labels, classes, average="macro").item(),
        "cal/adaptive_ece": adaptive_error(confidence, predicted == labels),
        **{f"cal/{name}": value for name, value in calibration_metrics(probabilities, labels).items()},
    }


def calibration_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score how far class probabilities can be believed.

    - ``ece``: expected calibration error, 15 bins of equal width (Guo et al., 2017).
    - ``nll``: mean negative log-likelihood in nats, probabilities below 1e-12 taken as that.
    - ``brier``: mean squared distance to the one-hot label, 0 to 2.

    Args:
        probabilities: [B, K], rows sum to 1.
        labels: [B].
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics knows no fewer than two classes, and takes what is above 1, by rounding, for logits.
    classes = max(2, probabilities.shape[-1])
    probabilities = F.pad(probabilities.double().clamp(max=1), (0, classes - probabilities.shape[-1]))
    true = probabilities.gather(-1, labels.unsqueeze(-1))
    distance = (probabilities - F.one_hot(labels, classes)).square().sum(-1)
    metrics = {
        "ece": multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1"),
        "nll": -true.clamp(min=1e-12).log().mean(),
        "brier": distance.mean(),
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
