"""Anytime prediction: fuse the templates' opinions as they come, and stop for an image once it is settled.

An image is settled when its leading class is ahead of the second by more than `margin`, in the weights
log(1 + e_k / K) of what is fused so far, by the method's rule: about the log of how many times more evidence
it has. An infinite margin never stops, a margin of 0 stops after the first template.

The lead serves better than the uncertainty, which is small as well where much evidence is at odds. Templates
to come overturn a settled class only if they lean the other way by more than the margin, which those that
learned the same classes seldom do.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from promptprism.errors import PromptPrismError
from promptprism.evidence import FusionRule, Opinion
from promptprism.methods import Classifier


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


class EarlyScore(NamedTuple):
    """What stopping early is worth.

    Attributes:
        accuracy: of the predictions.
        templates_used: per image, on average.
        images_per_second: reading the images included.
    """

    accuracy: float
    templates_used: float
    images_per_second: float


def lead(fused: Opinion) -> Tensor:
    """How far the leading class is ahead of the second, in nats of the weight, [...]; infinite for K = 1."""
    if fused.classes == 1:
        return torch.full_like(fused.uncertainty, math.inf)
    best, second = fused.weight.topk(2, dim=-1).values.unbind(-1)
    return best - second


@torch.no_grad()
def early_opinions(classifier: Classifier, views: Tensor, margin: float) -> EarlyOpinions:
    """Ask one template after the other, each only about the images that are not settled yet.

    Args:
        classifier: that forms opinions.
        views: [1, B, 3, H, W], the plain images.
        margin: in nats, >= 0; see the module.

    Raises:
        PromptPrismError: the classifier forms no opinions, or the margin is negative.
    """
    rule = check_early(classifier, margin)
    assert classifier.text is not None
    ask, (templates, classes, _) = classifier.one_by_one(views), classifier.text.shape
    images, device = views.shape[1], views.device
    weights = torch.zeros(templates, images, classes, device=device)
    fused = torch.zeros(images, classes, device=device)
    used = torch.zeros(images, dtype=torch.long, device=device)
    unsettled = torch.arange(images, device=device)
    for template in range(templates):
        weights[template, unsettled] = classifier.opinions(ask(template, unsettled))[1].weight
        so_far = Opinion(weights[: template + 1, unsettled]).fuse(rule)
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
    place = bisect_right(margins, budget, key=lambda one: templates_needed(leads, one).double().mean().item())
    return margins[place - 1] if place else 0.0


def check_early(classifier: Classifier, margin: float) -> FusionRule:
    """Return the rule by which opinions are fused, if there are opinions that can be asked for one by one.

    Raises:
        PromptPrismError: there are none, or the margin is negative.
    """
    if classifier.fusion is None:
        raise PromptPrismError(
            f"Method {classifier.name!r} has no opinions to stop at: anytime prediction needs 'cdc' with "
            "head='evidential'."
        )
    if not margin >= 0:
        raise PromptPrismError(f"the margin of anytime prediction is {margin}: give 0 or more")
    return classifier.fusion
