"""Rules of fusion: what each combines of M opinions, how, and the fused opinion's weight in log space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from promptprism.plugins import Registry

if TYPE_CHECKING:
    from promptprism.evidence.opinion import Opinion


@dataclass(frozen=True)
class Fusion:
    """A rule that makes one opinion of M.

    Attributes:
        weight: of the fused opinion, [..., K], of opinions [M, ..., K].
        quantity: what of an opinion is combined, as the documentation writes it.
        measure: this quantity of an opinion, [..., K].
        how: the fused opinion's quantity is the ``sum``, ``mean`` or ``max`` of the M.
        by_class: whether the fused weight of a class depends on the opinions' weights of this class and on
            their ``log_strength`` alone: then `PartOfOpinion` is fused as the whole is, a part of the classes
            after the other.
    """

    weight: Callable[[Opinion], Tensor]
    quantity: str
    measure: Callable[[Opinion], Tensor]
    how: Literal["sum", "mean", "max"]
    by_class: bool = False

    def contributions(self, opinions: Opinion) -> Tensor:
        """What each of M opinions brings to the fused quantity, [M, ..., K]; to a maximum its own."""
        own = self.measure(opinions)
        return own / len(own) if self.how == "mean" else own


def _averaging(opinions: Opinion) -> Tensor:
    # Log mean exp of the weights: 1 + e / K is what is averaged.
    return torch.logsumexp(opinions.weight, 0) - math.log(len(opinions.weight))


def _pooling(opinions: Opinion) -> Tensor:
    # 1 + e / K = (u + b) / u of the means, and of each opinion u (1 + e / K) = u + b.
    log_u = -opinions.log_strength.unsqueeze(-1)
    return torch.logsumexp(opinions.weight + log_u, 0) - torch.logsumexp(log_u, 0)


_WEIGHT = "log(1 + e/K)", attrgetter("weight")
#: The weights are those of an opinion's canonical decomposition into simple support functions (1/v of
#: Denoeux, Conjunctive and disjunctive combination of belief functions induced by nondistinct bodies of
#: evidence, Artificial Intelligence 2008), so his cautious rule is their maximum. Averaging: Josang,
#: Subjective Logic, 2016, ch. 12. Pooling: the linear opinion pool.
_OWN = {
    "dempster": Fusion(lambda opinions: opinions.weight.sum(0), *_WEIGHT, "sum", by_class=True),
    "cautious": Fusion(lambda opinions: opinions.weight.amax(0), *_WEIGHT, "max", by_class=True),
    "averaging": Fusion(_averaging, "evidence e", attrgetter("evidence"), "mean", by_class=True),
    "tempered": Fusion(lambda opinions: opinions.weight.mean(0), *_WEIGHT, "mean", by_class=True),
    "pooling": Fusion(_pooling, "belief b", attrgetter("belief"), "mean", by_class=True),
}
FUSIONS = Registry(
    "promptprism.fusion_rules",
    _OWN,
    lambda _, loaded: isinstance(loaded, Fusion),
    "a Fusion of promptprism.evidence",
)


def find_fusion(rule: str) -> Fusion:
    """The rule of a name.

    Raises:
        ValueError: there is none.
    """
    if rule not in FUSIONS:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(FUSIONS)}")
    return FUSIONS[rule]


def _known(rule: str) -> str:
    find_fusion(rule)
    return rule


#: A name of `FUSIONS`.
FusionRule = Annotated[str, AfterValidator(_known)]
