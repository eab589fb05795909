"""Calibration: errors of confidences, post-hoc baselines of protocols, and what an adapter's card keeps."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from promptprism.adapter import DataSummary
from promptprism.data.batches import labels_of
from promptprism.data.content import picture_id
from promptprism.data.records import Record
from promptprism.errors import PromptPrismError, warn
from promptprism.evaluation.selective import threshold_for_risk, tied_means
from promptprism.evidence import distance_factors
from promptprism.inference.conformal import Calibration, Score, check_enough, fit_sets
from promptprism.inference.predictor import Predictor
from promptprism.methods import Classifier
from promptprism.provenance import Facts

BINS = 15
#: Bounds of a fitted temperature: images that are all answered rightly, or no better than by chance, have
#: no best one.
COLDEST, HOTTEST = 0.05, 20.0
FittedOn = Literal["validation", "held-out", "learned"]


class Reliability(Facts):
    """What a reliability diagram draws: images by confidence, in bins of equal width.

    Attributes:
        count: images in each bin.
        confidence: their mean confidence, None in an empty bin.
        accuracy: their accuracy, None in an empty bin.
    """

    count: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


def reliability(confidence: Tensor, right: Tensor) -> Reliability:
    """Sort images into 15 bins [low, high) of confidence; 1 goes into the last.

    Args:
        confidence: [B], in 0..1.
        right: [B], whether each answer is right.
    """
    edges = torch.linspace(0, 1, BINS + 1)
    place = torch.bucketize(confidence.float(), edges, right=True).sub(1).clamp(0, BINS - 1)
    count = torch.bincount(place, minlength=BINS)

    def means(values: Tensor) -> tuple[float | None, ...]:
        sums = torch.bincount(place, weights=values.double(), minlength=BINS)
        return tuple(s / n if n else None for s, n in zip(sums.tolist(), count.tolist(), strict=True))

    return Reliability(count=tuple(count.tolist()), confidence=means(confidence), accuracy=means(right))


def adaptive_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error with 15 bins of (nearly) equally many images (Nguyen and O'Connor, 2015).

    Args:
        confidence: [B].
        right: [B], whether each answer is right.
    """
    accuracy, _ = tied_means(confidence, right)
    gap = accuracy - confidence.double().sort().values
    sums = [float(part.sum().abs()) for part in gap.tensor_split(BINS)]
    return sum(sums) / len(gap)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature T of softmax(logits / T) with the least negative log-likelihood (Guo et al., ICML 2017).

    The likelihood is convex in 1 / T: bisection on its slope, between `COLDEST` and `HOTTEST`.

    Args:
        logits: [B, K].
        labels: [B].
    """
    logits = logits.double()
    true = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        slope = ((middle * logits).softmax(-1) * logits).sum(-1).sub(true).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


class PostHoc(Facts):
    """How the post-hoc baselines were fitted.

    Attributes:
        temperature: of temperature scaling.
        fitted_on: the validation split of the classes learned; else training images that were not learned
            from; else, for want of others, the very images learned from, which makes it too sure.
        images: number of these images.
    """

    temperature: float
    fitted_on: FittedOn
    images: int


@dataclass(frozen=True, eq=False)
class Calibrator:
    """The post-hoc baselines, fitted on the classes learned (the base classes).

    All act on logits z averaged over templates, whatever head the method has:

    - ``ts``: temperature scaling, softmax(z / T).
    - ``dac``: distance-aware calibration (Wang et al., Open-Vocabulary Calibration for Fine-tuned CLIP,
      ICML 2024), softmax(g_c z) with the factor of the predicted class c, see `factors`.
    - ``ts_dac``: both, softmax(g_c z / T).

    Attributes:
        fit: temperature, and on what it was fitted.
        tuned: text features [M, K, D] of the base classes; None where they depend on the image (CoCoOp):
            there is no DAC then.
        zero_shot: those of the hand-made phrase, [1, K, D].
    """

    fit: PostHoc
    tuned: Tensor | None
    zero_shot: Tensor

    @classmethod
    def of(cls, classifier: Classifier, logits: Tensor, labels: Tensor, fitted_on: FittedOn) -> Self:
        """Fit on images of the classes learned.

        Args:
            classifier: of the classes learned.
            logits: [M, B, K].
            labels: [B].
            fitted_on: where the images are from.
        """
        temperature = fit_temperature(logits.double().mean(0), labels)
        fit = PostHoc(temperature=temperature, fitted_on=fitted_on, images=len(labels))
        return cls(fit, *_text_features(classifier))

    def factors(self, tuned: Tensor, zero_shot: Tensor) -> Tensor:
        """DAC's factors g [C] of classes with these text features.

        With several templates their geometric mean, see `evidence.distance_factors`: d is the mean of theirs.

        Args:
            tuned: [M, C, D].
            zero_shot: [1, C, D].
        """
        assert self.tuned is not None
        return distance_factors(tuned, self.tuned, zero_shot, self.zero_shot).log().mean(0).exp()

    def calibrated(self, logits: Tensor, classifier: Classifier) -> dict[str, Tensor]:
        """Probabilities [B, C] by name.

        Args:
            logits: [B, C], averaged over templates.
            classifier: whose label space the C classes are.
        """
        logits = logits.double()
        scaled = {"ts": logits / self.fit.temperature}
        tuned, zero_shot = _text_features(classifier)
        if tuned is not None:
            factor = self.factors(tuned, zero_shot)[logits.argmax(-1)].unsqueeze(-1)
            scaled |= {"dac": factor * logits, "ts_dac": factor * scaled["ts"]}
        return {name: value.softmax(-1) for name, value in scaled.items()}


def _text_features(classifier: Classifier) -> tuple[Tensor | None, Tensor]:
    """Text features [M, K, D], if no image is needed for them, and zero-shot CLIP's; on the CPU."""
    tuned = None if classifier.text is None else classifier.text.cpu()
    return tuned, classifier.zero_shot_features.cpu()


def calibrate(
    classifier: Classifier,
    records: Sequence[Record],
    data: str,
    learned: DataSummary | None,
    *,
    risk: float,
    alpha: float,
    score: Score,
    per_class: bool,
    seed: int = 1,
) -> Calibration:
    """Learn from photos that were held out how far probabilities can be trusted.

    A random quarter of the photos decides the temperature; the others, to which it is as new as the rest of
    the model, decide the threshold and the sets, so that what these promise is exact.

    Args:
        classifier: of K classes.
        records: the photos, with labels into its class names; one that is there again counts once.
        data: name of the data.
        learned: what the classifier learned from.
        risk: share of wrong answers that the threshold allows.
        alpha: share of photos whose class may be missing in their set.
        score: of the sets.
        per_class: give the sets' guarantee within each class.
        seed: of the draw of the quarter.

    Raises:
        PromptPrismError: some photos were learned from, or the card does not know; there are too few; or one
            cannot be read.
    """
    for name, value in (("risk", risk), ("alpha", alpha)):
        if not 0 < value < 1:
            raise PromptPrismError(f"{name} is {value:g}: give a share between 0 and 1, such as 0.1")
    if learned and not learned.seen:
        raise PromptPrismError(
            "the adapter's card, of an earlier version, does not say which photos were learned from: nothing "
            "shows that these were not, and there would be no guarantee. Fit anew, then calibrate"
        )
    pictures = {picture_id(record.source): record for record in records}
    if learned and (seen := [pictures[key] for key in pictures if key in learned.seen]):
        raise PromptPrismError(
            f"{len(seen)} of {len(pictures)} photos of '{data}' were learned from, first "
            f"'{str(seen[0].source)[:200]}': the model is surer of these than of new ones, there would be "
            "no guarantee: give photos that were held out, such as a test/ folder"
        )
    drawn = list(pictures.values())
    random.Random(f"calibration {seed}").shuffle(drawn)
    labels = labels_of(drawn)
    check_enough(labels[_quarter(labels) :], alpha, classifier.space.names, per_class)
    plain = replace(classifier, temperature=1.0)
    batches = Predictor(plain).logits([record.source for record in drawn])
    logits = torch.cat([plain.probabilities(logits.cpu().double()) for logits in batches]).log()
    return calibration_of(logits, labels, data, risk=risk, alpha=alpha, score=score, per_class=per_class)


def calibration_of(
    logits: Tensor, labels: Tensor, data: str, *, risk: float, alpha: float, score: Score, per_class: bool
) -> Calibration:
    """What answers tell, in an order that was drawn: the first quarter the temperature, the others the rest.

    Args:
        logits: log-probabilities [B, K]; see `calibrate` for all else.
        labels: [B].
        data: name of the data.
        risk: share of wrong answers that the threshold allows.
        alpha: share of photos whose class may be missing in their set.
        score: of the sets.
        per_class: give the sets' guarantee within each class.
    """
    quarter = _quarter(labels)
    temperature = _temperature(logits[:quarter], labels[:quarter])
    probabilities, labels = (logits[quarter:] / temperature).softmax(-1), labels[quarter:]
    confidence, answer = probabilities.max(-1)
    threshold = threshold_for_risk(confidence, answer == labels, risk)
    return Calibration(
        temperature=temperature,
        risk=risk,
        threshold=threshold,
        answered=None if threshold is None else (confidence >= threshold).double().mean().item(),
        sets=fit_sets(probabilities, labels, alpha, score, per_class),
        data=data,
        n=len(labels),
    )


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """As `fit_temperature` finds it; 1 where no answer is wrong, for then the coldest is the likeliest."""
    if (logits.argmax(-1) != labels).any():
        return fit_temperature(logits, labels)
    warn(
        f"the {len(labels)} photos that decide the temperature are all answered rightly, which tells "
        "nothing of how often answers are wrong: probabilities stay as they are. Give more photos"
    )
    return 1.0


def _quarter(labels: Tensor) -> int:
    return max(1, len(labels) // 4)
