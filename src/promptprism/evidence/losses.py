"""Trusted losses on opinions (Han et al., Trusted Multi-View Classification, ICLR 2021, eqs. 8-10).

They work on log alpha and log S, so that fused opinions of any strength have finite values and gradients.
"""

import math

import torch
from torch import Tensor

from promptprism.evidence.opinion import Opinion

# From here on the asymptotic series below are exact to 1e-13.
_LARGE = 64.0


def _digamma(log_x: Tensor) -> Tensor:
    """psi(x) for x >= 1, given log x."""
    direct = torch.digamma(log_x.clamp(max=math.log(_LARGE)).exp())
    log_large = log_x.clamp(min=math.log(_LARGE))
    r = (-log_large).exp()
    series = log_large - r / 2 - r**2 / 12 + r**4 / 120 - r**6 / 252
    return torch.where(log_x < math.log(_LARGE), direct, series)


def _gamma_rest(log_x: Tensor) -> Tensor:
    """Part of log Gamma, log Gamma(x) - (x - 1) psi(x) + x for x >= 1, given log x; grows like log(x) / 2.

    The terms linear in x cancel in the divergence below; without them it keeps its digits for large x.
    """
    x = log_x.clamp(max=math.log(_LARGE)).exp()
    direct = torch.lgamma(x) - (x - 1) * torch.digamma(x) + x
    log_large = log_x.clamp(min=math.log(_LARGE))
    r = (-log_large).exp()
    stirling = (log_large + math.log(2 * math.pi) + 1) / 2
    series = stirling - r / 3 - r**2 / 12 - r**3 / 90 + r**4 / 120 + r**5 / 210
    return torch.where(log_x < math.log(_LARGE), direct, series)


def kl_to_vacuous(opinion: Opinion) -> Tensor:
    """KL divergence from Dir(1), the vacuous opinion, to Dir(alpha): [..., K] -> [...], in nats."""
    k, log_s = opinion.classes, opinion.log_strength
    rest = _gamma_rest(log_s) - _gamma_rest(opinion.log_alpha).sum(-1)
    return rest + (k - 1) * _digamma(log_s) - math.lgamma(k)


def trusted_cross_entropy(opinion: Opinion, labels: Tensor, kl_weight: float = 0.0) -> Tensor:
    """Expected cross-entropy under the opinion's Dirichlet distribution, psi(S) - psi(alpha_y).

    ``kl_weight`` times KL[Dir(alpha~) || Dir(1)] is added, where alpha~ is alpha without the evidence of
    the true class, so that evidence for wrong classes shrinks to none.

    Args:
        opinion: over [..., K].
        labels: class indices, of a shape that broadcasts to the opinion's leading axes ([B] for [M, B, K]).
        kl_weight: for instance min(1, epoch / anneal) / K; 0 leaves the term out.

    Returns:
        The loss of each opinion, [...], not reduced.
    """
    index = labels.expand(opinion.weight.shape[:-1]).unsqueeze(-1)
    loss = _digamma(opinion.log_strength) - _digamma(opinion.log_alpha.gather(-1, index).squeeze(-1))
    if kl_weight:
        wrong = Opinion(opinion.weight.scatter(-1, index, 0.0))
        loss = loss + kl_weight * kl_to_vacuous(wrong)
    return loss
