"""Anytime prediction: fuse the templates' opinions as they come, and stop for an image once it is settled.

Dempster's rule adds the weights log(1 + e_k / K) of the opinions, so a fusion of the first few templates is
the fusion of all of them, cut short. An image is settled when its leading class is ahead of the second by
more than `margin` for every template still to come: those could overturn it only if each of them, on average,
put the second class ahead by more than the margin. An infinite margin never stops, a margin of 0 stops after
the first template.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.methods import Cdc, Method


@dataclass(frozen=True, eq=False)
class EarlyOpinions:
    """Fused opinions of a batch, each of as many templates as it took.

    Attributes:
        fused: over [B, K]; what was not asked adds no evidence, so an early stop shows as uncertainty.
        templates_used: [B], from 1 to M.
    """

    fused: Opinion
    templates_used: Tensor


def settled(weight: Tensor, remaining: int, margin: float) -> Tensor:
    """Whether fused weights [B, K] are settled, [B], with so many templates to come."""
    if remaining == 0:
        return torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    best, second = weight.topk(2, dim=-1).values.unbind(-1)
    return best - second > margin * remaining


@torch.no_grad()
def early_opinions(method: Method, views: Tensor, text: Tensor, margin: float) -> EarlyOpinions:
    """Ask one template after the other, each only about the images that are not settled yet.

    Args:
        method: CDC with the evidential head.
        views: [1, B, 3, H, W], the plain images.
        text: the method's text features, [M, K, D].
        margin: in nats of the weight, >= 0; see the module.

    Raises:
        PromptPrismError: the method has no opinions, or the margin is negative.
    """
    method = check_early(method, margin)
    templates, images = len(text), views.shape[1]
    weight = text.new_zeros(images, text.shape[1])
    used = torch.zeros(images, dtype=torch.long, device=text.device)
    open_ = torch.arange(images, device=text.device)
    for template in range(templates):
        logits = method.template_logits(template, views[:, open_], text)
        weight[open_] += method.opinions(logits)[1].weight
        used[open_] += 1
        open_ = open_[~settled(weight[open_], templates - template - 1, margin)]
        if not len(open_):
            break
    return EarlyOpinions(Opinion(weight), used)


def check_early(method: Method, margin: float) -> Cdc:
    """Return the method if it forms opinions that can be asked for one by one.

    Raises:
        PromptPrismError: it does not, or the margin is negative.
    """
    if not (isinstance(method, Cdc) and method.evidential):
        raise PromptPrismError(
            f"Method {method.name!r} has no opinions to stop at: anytime prediction needs 'cdc' with "
            "head='evidential'."
        )
    if not margin >= 0:
        raise PromptPrismError(f"the margin of anytime prediction is {margin}: give 0 or more")
    return method
