"""Conformal sets: classes of which the true one is, in a share of photos that is stated beforehand.

Split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates, 2021): n labelled photos that nothing
was learned from decide how unlikely a class may be and still be in a set. If a new photo is drawn as these
were, its set holds its class with a chance of at least 1 - alpha, whatever the model. That is a mean over
photos of all classes (marginal); with quantiles of each class it holds within each (Mondrian).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from promptprism.errors import PromptPrismError
from promptprism.provenance import Facts

Score = Literal["lac", "aps"]

# Of float32: what was at the quantile when it was found must not fall out of a set by it.
_ROUNDING = 1e-6


class Sets(Facts):
    """What decides which classes are in a set.

    Attributes:
        score: lac gives the smallest sets on average; the sets of aps grow more where a photo is hard.
        alpha: share of photos whose class may be missing in their set.
        quantiles: highest score in a set; one for all classes, or of each class.
        n: photos that decided it; of the class with the fewest, where each class has its own.
    """

    score: Score
    alpha: float = Field(gt=0, lt=1)
    quantiles: tuple[float, ...] = Field(min_length=1)
    n: int

    def of(self, probabilities: Tensor) -> Tensor:
        """Which classes are in the set of each photo: [B, K] to booleans [B, K].

        The most probable class always is: a set is never empty, which costs no coverage.
        """
        highest = probabilities.new_tensor(self.quantiles, dtype=torch.float64) + _ROUNDING
        within = nonconformity(probabilities, self.score) <= highest
        return within.scatter(-1, probabilities.argmax(-1, keepdim=True), True)


class Calibration(Facts):
    """What photos that were not learned from have told of an adapter's probabilities.

    Attributes:
        temperature: probabilities p become p^(1 / temperature), rescaled to sum 1; above 1 is less sure.
        risk: share of wrong answers that is allowed.
        threshold: answers at least so probable are wrong no more often, with a confidence of 95 %; None if no
            threshold is shown to reach that.
        answered: share of the photos that are so probable; None without a threshold.
        sets: the conformal sets.
        data: name of the data.
        n: photos that decided the threshold and the sets; others decided the temperature.
    """

    temperature: float = Field(gt=0)
    risk: float
    threshold: float | None
    answered: float | None
    sets: Sets
    data: str
    n: int


def sets_of(calibration: Calibration | None) -> Sets:
    """The sets that were calibrated.

    Raises:
        PromptPrismError: there are none.
    """
    if calibration is None:
        raise PromptPrismError(
            "there are no sets: calibrate the adapter with held-out photos first (promptprism calibrate "
            "ADAPTER DATA). They hold for its own classes and settings, not for others"
        )
    return calibration.sets


def nonconformity(probabilities: Tensor, score: Score) -> Tensor:
    """How little each class fits each photo, float64 [B, K] of probabilities [B, K].

    - lac: 1 - p_k (Sadinle et al., JASA 2019).
    - aps: the sum of the probabilities before p_k, from the largest down (Romano et al., NeurIPS 2020, with
      their random number at 1). The most probable class has 0, so that no set is empty; with p_k in the sum
      a model that is sure and right would have large sets of more photos than was asked for.
    """
    probabilities = probabilities.double()
    if score == "lac":
        return 1 - probabilities
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1) - ordered
    return torch.empty_like(sums).scatter(-1, places, sums)


def fewest(alpha: float) -> int:
    """How many photos a quantile at level alpha takes at least."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def quantile(scores: Tensor, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores [n]; n is `fewest` or more."""
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return scores.sort().values[rank - 1].item()


def check_enough(labels: Tensor, alpha: float, names: tuple[str, ...], per_class: bool) -> None:
    """Refuse too few photos (of a class), with labels [n] into the names, for sets at level alpha.

    Raises:
        PromptPrismError: how many there are, and how many it takes.
    """
    counts = labels.bincount(minlength=len(names)) if per_class else torch.tensor([len(labels)])
    if counts.min() < fewest(alpha):
        of = f" of class '{names[int(counts.argmin())]}'" if per_class else ""
        raise PromptPrismError(
            f"{counts.min()} photos{of} are too few for sets at alpha {alpha:g}: it takes {fewest(alpha)}"
            f"{' of each class' if per_class else ''}, beside the quarter of all that decides the "
            f"temperature. Label more, or give a larger alpha{', or no --per-class' if per_class else ''}"
        )


def fit_sets(probabilities: Tensor, labels: Tensor, alpha: float, score: Score, per_class: bool) -> Sets:
    """Find the quantiles.

    Args:
        probabilities: [n, K] of photos that nothing was learned from, the temperature neither; see
            `check_enough`.
        labels: [n].
        alpha: share of photos whose class may be missing in their set.
        score: see `nonconformity`.
        per_class: find one of each class.
    """
    scores = nonconformity(probabilities, score).gather(-1, labels[:, None])[:, 0]
    groups = [scores[labels == k] for k in range(probabilities.shape[1])] if per_class else [scores]
    quantiles = tuple(quantile(group, alpha) for group in groups)
    return Sets(score=score, alpha=alpha, quantiles=quantiles, n=min(map(len, groups)))
