"""Anytime prediction: fuse the templates' opinions as they come, and stop for an image once it is settled.

An image is settled when its leading class is ahead of the second by more than `margin`, in the weights
log(1 + e_k / K) of what is fused so far, by the method's rule: about the log of how many times more evidence
it has. An infinite margin never stops, a margin of 0 stops after the first template.

The lead serves better than the uncertainty, which is small as well where much evidence is at odds. Templates
to come overturn a settled class only if they lean the other way by more than the margin, which those that
learned the same classes seldom do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from promptprism.errors import PromptPrismError
from promptprism.evidence import FusionRule, Opinion
from promptprism.methods import Cdc, Method


@dataclass(frozen=True, eq=False)
class EarlyOpinions:
    """Fused opinions of a batch, each of as many templates as it took.

    Attributes:
        fused: over [B, K], by the method's rule. Under Dempster's, what was not asked adds no evidence, so
            that an early stop shows as uncertainty.
        templates_used: [B], from 1 to M.
    """

    fused: Opinion
    templates_used: Tensor


def lead(fused: Opinion) -> Tensor:
    """How far the leading class is ahead of the second, in nats of the weight, [...]; infinite for K = 1."""
    if fused.classes == 1:
        return torch.full_like(fused.uncertainty, math.inf)
    best, second = fused.weight.topk(2, dim=-1).values.unbind(-1)
    return best - second


@torch.no_grad()
def early_opinions(method: Method, views: Tensor, text: Tensor, margin: float) -> EarlyOpinions:
    """Ask one template after the other, each only about the images that are not settled yet.

    Args:
        method: CDC with the evidential head.
        views: [1, B, 3, H, W], the plain images.
        text: the method's text features, [M, K, D].
        margin: in nats, >= 0; see the module.

    Raises:
        PromptPrismError: the method has no opinions, or the margin is negative.
    """
    method = check_early(method, margin)
    templates, images = len(text), views.shape[1]
    ask = method.one_by_one(views, text)
    weights = text.new_zeros(templates, images, text.shape[1])
    fused = text.new_zeros(images, text.shape[1])
    used = torch.zeros(images, dtype=torch.long, device=text.device)
    unsettled = torch.arange(images, device=text.device)
    for template in range(templates):
        weights[template, unsettled] = method.opinions(ask(template, unsettled))[1].weight
        so_far = Opinion(weights[: template + 1, unsettled]).fuse(method.settings.fusion)
        fused[unsettled] = so_far.weight
        used[unsettled] += 1
        unsettled = unsettled[lead(so_far) <= margin]
        if not len(unsettled):
            break
    return EarlyOpinions(Opinion(fused), used)


def fused_so_far(opinions: Opinion, rule: FusionRule = "dempster") -> Opinion:
    """Opinions [M, B, K] of the templates, fused up to and with each of them, [M, B, K]."""
    fused = [Opinion(opinions.weight[: m + 1]).fuse(rule).weight for m in range(len(opinions.weight))]
    return Opinion(torch.stack(fused))


def templates_needed(leads: Tensor, margin: float) -> Tensor:
    """How many templates each image takes, [B], by the `lead` of `fused_so_far`, [M, B]."""
    return (leads[:-1] <= margin).long().cumprod(0).sum(0) + 1


def margin_for(leads: Tensor, budget: float) -> float:
    """The largest margin that takes at most so many templates per image on average.

    Args:
        leads: `lead` of `fused_so_far`, [M, B], of images that stand for those to come; best are validation
            images.
        budget: templates per image; M or more gives infinity.

    Raises:
        PromptPrismError: the budget is less than the one template that every image takes.
    """
    if not budget >= 1:
        raise PromptPrismError(f"the budget is {budget} templates per image: every image takes at least 1")
    if budget >= len(leads):
        return math.inf
    # More margin never takes fewer templates, and only at the leads themselves does anything change.
    margins = sorted(set(leads[:-1].flatten().tolist()))
    low, high = -1, len(margins)
    while high - low > 1:
        middle = (low + high) // 2
        if templates_needed(leads, margins[middle]).double().mean() <= budget:
            low = middle
        else:
            high = middle
    return margins[low] if low >= 0 else 0.0


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
