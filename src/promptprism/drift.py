"""How far new answers are from those about held-out photos: a two-sample test, and how large the shift is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptprism.errors import PromptPrismError

#: Photos whose answers a reference keeps at most; mild shifts take many to be seen.
MOST = 512
#: Fewer on either side can show nothing.
LEAST = 20
#: A shift is one where chance makes so large a distance this seldom, in any of the scores.
LEVEL = 0.01


@dataclass(frozen=True)
class Reference:
    """Answers about photos that the model did not learn from.

    Attributes:
        photos: what they are.
        probability: of the leading class, sorted.
        uncertainty: of the fused opinion, sorted; None for methods without opinions.
    """

    photos: str
    probability: tuple[float, ...]
    uncertainty: tuple[float, ...] | None = None

    @classmethod
    def of(cls, photos: str, probability: Sequence[float], uncertainty: Sequence[float] | None) -> Reference:
        """Keep answers, rounded to six digits."""
        kept = [None if each is None else tuple(round(float(one), 6) for one in sorted(each))
                for each in (probability, uncertainty)]  # fmt: skip
        return cls(photos, kept[0] or (), kept[1])

    def shift(self, probability: Sequence[float], uncertainty: Sequence[float] | None) -> dict[str, Any]:
        """Compare new answers with these.

        Returns:
            For each score its `distance` (Kolmogorov-Smirnov, 0 to 1), `effect` (Cliff's delta, -1 to 1:
            above 0 where the new ones are higher), `p_value`, twice the smaller one of the tests of both
            (Mann-Whitney's of the effect sees mild shifts of all photos sooner, the other one shifts of
            some), and both medians; and `shifted`, whether any p-value, times the number of scores, is below
            0.01.

        Raises:
            PromptPrismError: there are fewer than 20 answers on either side.
        """
        pairs = {"probability": (self.probability, probability)}
        if self.uncertainty is not None and uncertainty is not None:
            pairs["uncertainty"] = (self.uncertainty, uncertainty)
        scores = {name: _compare(*pair) for name, pair in pairs.items()}
        least = min(score["p_value"] for score in scores.values())
        return {"scores": scores, "shifted": len(scores) * least < LEVEL}


def _compare(old: Sequence[float], new: Sequence[float]) -> dict[str, float]:
    if min(len(old), len(new)) < LEAST:
        raise PromptPrismError(
            f"{len(old)} photos of the reference and {len(new)} new ones are too few to compare: give at "
            f"least {LEAST} of each"
        )
    # Rounded as the reference is: what is equal must stay equal.
    a, b = np.sort(np.asarray(old)), np.sort(np.round(np.asarray(new, np.float64), 6))
    both = np.concatenate([a, b])
    distance = float(np.abs(_share(a, both, "right") - _share(b, both, "right")).max())
    effect = float((_share(a, b, "left") + _share(a, b, "right")).mean() - 1)
    chances = _chance(distance, len(a) * len(b) / len(both)), _chance_of_effect(effect, len(a), both)
    return {
        "distance": distance,
        "p_value": min(1.0, 2 * min(chances)),
        "effect": effect,
        "median_reference": float(np.median(a)),
        "median": float(np.median(b)),
    }


def _share(of: Any, below: Any, side: Any) -> Any:
    return np.searchsorted(of, below, side) / len(of)


def _chance(distance: float, size: float) -> float:
    """Kolmogorov's limit with Stephens' correction for small samples (1970)."""
    root = math.sqrt(size)
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:  # the series has not converged there, and is 1 to 12 digits
        return 1.0
    terms = (2 * (-1.0) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


def _chance_of_effect(effect: float, old: int, both: Any) -> float:
    """Mann and Whitney's test (1947) by its normal limit, with the correction for ties."""
    count = len(both)
    ties = np.unique(both, return_counts=True)[1].astype(np.float64)
    tied = float((ties**3 - ties).sum() / (count**3 - count))
    variance = (count + 1) / (3 * old * (count - old)) * (1 - tied)
    return math.erfc(abs(effect) / math.sqrt(2 * variance)) if variance > 0 else 1.0
