"""Subjective opinions over K classes, and Dempster's rule on them in closed form.

Evidence e >= 0 gives the Dirichlet of alpha = e + 1 with strength S = sum alpha, belief b = e / S
and uncertainty u = K / S, so that sum b + u = 1. Dempster's reduced rule (Han et al., Trusted Multi-View
Classification, ICLR 2021, eq. 4) on M such opinions is exactly 1 + e_k / K = prod_m (1 + e^m_k / K). An
opinion is therefore kept as its *weight* w_k = log(1 + e_k / K): fusing is adding, in any order and one
opinion at a time, and nothing overflows, because nothing below leaves log space before it is a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from promptprism.evidence.fusion import FusionRule, find_fusion
from promptprism.evidence.maps import MAX_EXPONENT


@dataclass(frozen=True, eq=False)
class Opinion:
    """One opinion over K classes for every leading index.

    Attributes:
        weight: [..., K], log(1 + e / K) of the evidence e; 0 everywhere is the vacuous opinion.
    """

    weight: Tensor

    @classmethod
    def from_evidence(cls, evidence: Tensor) -> Opinion:
        """The opinion that evidence >= 0, [..., K], supports."""
        return cls(torch.log1p(evidence / evidence.shape[-1]))

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self.weight.shape[-1]

    def _masses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Masses e / K [..., K] and 1 [..., 1], both divided by exp(top), the largest 1 + e / K; top.

        Written so that neither w = 0 nor a large w hurts the values or their gradients.
        """
        top = self.weight.detach().amax(-1, keepdim=True)
        return (self.weight - top).exp() * -torch.expm1(-self.weight), (-top).exp(), top

    @property
    def belief(self) -> Tensor:
        """Belief mass of each class, e / S, [..., K]."""
        evidence, unit, _ = self._masses()
        return evidence / (evidence.sum(-1, keepdim=True) + unit)

    @property
    def uncertainty(self) -> Tensor:
        """Mass given to no class, K / S, [...]; 1 for the vacuous opinion."""
        evidence, unit, _ = self._masses()
        return (unit / (evidence.sum(-1, keepdim=True) + unit)).squeeze(-1)

    @property
    def log_strength(self) -> Tensor:
        """Log of S, the sum of alpha, [...]."""
        evidence, unit, top = self._masses()
        return (top + (evidence.sum(-1, keepdim=True) + unit).log()).squeeze(-1) + math.log(self.classes)

    @property
    def log_alpha(self) -> Tensor:
        """Log of the Dirichlet parameters, [..., K]."""
        return self.weight + torch.log1p((self.classes - 1) * -torch.expm1(-self.weight))

    @property
    def probability(self) -> Tensor:
        """Expected class probabilities, alpha / S = b + u / K, [..., K]."""
        return self.belief + self.uncertainty.unsqueeze(-1) / self.classes

    @property
    def prediction(self) -> Tensor:
        """Index of the class with the most evidence, [...]."""
        return self.weight.argmax(-1)

    @property
    def evidence(self) -> Tensor:
        """Evidence of each class, [..., K]; saturates at K exp(65), where float32 ends."""
        return self.classes * torch.expm1(self.weight.clamp(max=MAX_EXPONENT))

    @property
    def alpha(self) -> Tensor:
        """Parameters of the Dirichlet distribution, evidence + 1, [..., K]."""
        return self.evidence + 1

    def fuse(self, rule: FusionRule = "dempster") -> Opinion:
        """Fuse the opinions stacked along the first axis.

        Args:
            rule: ``dempster`` adds weights, right for independent opinions; ``cautious`` takes the largest of
                each class, so that an opinion fused with itself stays as it is; ``averaging`` is the mean
                of the evidence (averaging belief fusion, Josang, Subjective Logic, 2016, ch. 12);
                ``tempered`` is the mean of the weights, Dempster's rule to the power 1/M; ``pooling`` is the
                mean of belief and uncertainty, hence of the probabilities (the linear opinion pool).
        """
        if self.weight.dim() < 2:
            raise ValueError("a single opinion has no axis but its classes: nothing to fuse")
        weight = find_fusion(rule).weight(self)
        if weight.shape != self.weight.shape[1:]:
            raise ValueError(
                f"fusion {rule!r} makes weights {[*weight.shape]} of opinions {[*self.weight.shape]}: "
                "it must take away the first axis, and nothing else"
            )
        return Opinion(weight)

    def __getitem__(self, index: int | slice) -> Opinion:
        """The opinion(s) at an index of the first axis."""
        if self.weight.dim() < 2:
            raise IndexError("a single opinion has no axis but its classes")
        return Opinion(self.weight[index])


@dataclass(frozen=True, eq=False)
class PartOfOpinion(Opinion):
    """An opinion's weights of some of its classes, k of K, where all at once would not fit into memory.

    What is said of single classes is that of the whole opinion; sums over the weights are not.

    Attributes:
        weight: [..., k].
        all_classes: K.
        strength: gives the whole opinion's `log_strength`, [...].
    """

    all_classes: int
    strength: Callable[[], Tensor]

    @property
    def classes(self) -> int:
        """K, of the whole opinion."""
        return self.all_classes

    @property
    def log_strength(self) -> Tensor:
        """Of the whole opinion, [...]."""
        return self.strength()

    @property
    def log_evidence(self) -> Tensor:
        """Log of e / K, [..., k]; minus infinity where there is none."""
        return self.weight + (-torch.expm1(-self.weight)).log()

    def fused(self, rule: FusionRule) -> PartOfOpinion:
        """Opinions [M, ..., k] fused by a rule that works class by class; their strength stays theirs."""
        return replace(self, weight=find_fusion(rule).weight(self))


class Opinions(NamedTuple):
    """What the templates think of a batch of images, and what they think together.

    Attributes:
        fused: over [B, K].
        templates: over [M, B, K].
    """

    fused: Opinion
    templates: Opinion
