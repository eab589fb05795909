"""Selective prediction: how well a score of doubt ranks images. Names start with ``sc/`` or ``ood/``.

Images with equal scores cannot be told apart, so none of these figures depends on the order of the images:
ties count as in the mean over all orders.
"""

import math

import torch
from torch import Tensor

#: Points of a stored risk-coverage curve: it keeps 1/20, 2/20, ..., 20/20 of the images.
STEPS = 20


def tied_means(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort values by score, lowest first, and give images of equal score their mean value.

    Args:
        scores: [B].
        values: [B].

    Returns:
        The means [B], float64, and whether each place is the last of its score [B].
    """
    _, group, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, group, values.double())
    last = torch.zeros(len(scores), dtype=torch.bool)
    last[counts.cumsum(0) - 1] = True
    return (sums / counts).repeat_interleave(counts), last


def risks(doubt: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Share of wrong answers among the 1, 2, ..., B least doubtful images.

    Args:
        doubt: [B], higher is less sure.
        right: [B], whether each answer is right.

    Returns:
        The risks [B], float64, and at which of these places a threshold on the doubt can stop [B].
    """
    wrong, last = tied_means(doubt, ~right)
    return wrong.cumsum(0) / torch.arange(1, len(wrong) + 1), last


def risk_curve(doubt: Tensor, right: Tensor) -> tuple[float, ...]:
    """Risk at 1/20, 2/20, ..., 20/20 of the images, rounded up to whole ones."""
    risk, _ = risks(doubt, right)
    return tuple(risk[-(-step * len(risk) // STEPS) - 1].item() for step in range(1, STEPS + 1))


def selective_metrics(doubt: Tensor, right: Tensor, risk_limit: float = 0.05) -> dict[str, float]:
    """Area under the risk-coverage curve and the coverage at a risk.

    - ``aurc``: mean of the risks at 1, 2, ..., B images (Geifman and El-Yaniv, NeurIPS 2017), lower is
      better; its best value is not 0, as it depends on the accuracy.
    - ``coverage_at_5_risk``: the largest share of images that a threshold on the doubt can answer with at
      most 5 % wrong answers; 0 if there is none.

    Args:
        doubt: [B], higher is less sure.
        right: [B], whether each answer is right.
        risk_limit: the risk that is allowed.
    """
    risk, last = risks(doubt, right)
    good = torch.nonzero(last & (risk <= risk_limit + 1e-12))
    coverage = (good[-1].item() + 1) / len(risk) if len(good) else 0.0
    return {"aurc": risk.mean().item(), f"coverage_at_{100 * risk_limit:.0f}_risk": coverage}


def detection_metrics(negatives: Tensor, positives: Tensor) -> dict[str, float]:
    """How well scores tell positives (wrong answers, new classes: they should score higher) from negatives.

    - ``auroc``: the chance that a positive scores higher than a negative, ties counting half.
    - ``fpr95``: share of negatives at or above the highest threshold that catches 95 % of the positives
      (Hendrycks and Gimpel, ICLR 2017).

    Empty if one of both kinds has no image: there is nothing to tell then.

    Args:
        negatives: [B].
        positives: [C].
    """
    if not len(negatives) or not len(positives):
        return {}
    # Imported late, like all of torchmetrics: it takes more than a second.
    from torchmetrics.functional.classification import binary_auroc, binary_roc

    scores = torch.cat([negatives, positives])
    # Only the order counts; ranks keep it where torchmetrics would squash scores by a sigmoid.
    _, ranks = torch.unique(scores, return_inverse=True)
    ranked = ranks.double() / max(1, int(ranks.max()))
    target = torch.cat([torch.zeros(len(negatives)), torch.ones(len(positives))]).long()
    false_rate, true_rate, _ = binary_roc(ranked, target)
    return {
        "auroc": binary_auroc(ranked, target).item(),
        "fpr95": false_rate[true_rate >= 0.95 - 1e-6].min().item(),
    }


#: How surely a threshold keeps its risk.
CONFIDENCE = 0.95
# Where the search begins, each with its share of the doubt; it goes down in steps of 0.01.
_STARTS = (99, 95, 90, 80, 60)


def threshold_for_risk(probability: Tensor, right: Tensor, risk: float) -> float | None:
    """The lowest threshold whose answers are wrong in a share of at most ``risk``, with 95 % confidence.

    Learn then test (Angelopoulos et al., 2021), with several starts: below each, thresholds are accepted down
    to the first of which an exact binomial test (Clopper and Pearson, 1934) does not exclude a larger risk.

    Args:
        probability: of each answer, [B].
        right: [B], whether it is right.
        risk: the share of wrong answers among those given.

    Returns:
        The threshold, or None if none is accepted.
    """
    accepted: list[int] = []
    for start in _STARTS:
        for step in range(start, -1, -1):
            given = right[probability >= step / 100]
            wrong = len(given) - int(given.sum())
            if binomial_tail(wrong, len(given), risk) > (1 - CONFIDENCE) / len(_STARTS):
                break
            accepted.append(step)
    return min(accepted) / 100 if accepted else None


def fewest_answers(risk: float) -> int:
    """How many answers, all of them right, it takes to accept any threshold."""
    return math.ceil(math.log((1 - CONFIDENCE) / len(_STARTS)) / math.log1p(-risk))


def binomial_tail(wrong: int, answers: int, risk: float) -> float:
    """The chance of so few wrong ones or fewer, if each is wrong with the chance ``risk``."""
    k = torch.arange(wrong + 1, dtype=torch.float64)
    ways = math.lgamma(answers + 1) - torch.lgamma(k + 1) - torch.lgamma(answers - k + 1)
    return min(1.0, (ways + k * math.log(risk) + (answers - k) * math.log1p(-risk)).exp().sum().item())
