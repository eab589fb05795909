"""The most probable classes of images, found without a matrix of all classes.

From tens of thousands of classes on, logits [M, B, K] and all that is made of them cost more memory than
the model. Here the text features are taken a part at a time, wherever they lie: sums over all classes are
summed part by part, the best so far are kept. What a part's opinions need of all classes is found by passes
of their own, which cost a product of features each and no look at the images: the mean of the logits that
evidence is centred by, and the opinions' strengths, for the rules of fusion that ask for them. So it is
exact, up to the order of sums. Rules that do not say that they work class by class (`Fusion.by_class`) take
the whole matrix.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from promptprism.data.images import ImageSource
from promptprism.evidence import PartOfOpinion
from promptprism.inference.predictor import check_finite
from promptprism.methods import PART, Classifier


@dataclass(frozen=True, eq=False)
class Leading:
    """The most probable classes of a batch.

    Attributes:
        classes: their places in the label space, [B, t], the most probable first.
        probability: of each, [B, t].
        belief: of the fused opinion in the first, [B]; None without opinions.
        uncertainty: of the fused opinion, [B]; None without opinions.
        disagreement: share of the templates whose own leading class is another one, [B].
    """

    classes: Tensor
    probability: Tensor
    belief: Tensor | None
    uncertainty: Tensor | None
    disagreement: Tensor


@torch.no_grad()
def leading(
    classifier: Classifier, views: Tensor, sources: Sequence[ImageSource], most: int, part: int = PART
) -> Leading:
    """Find the leading classes a part at a time.

    Args:
        classifier: whose classes may be asked for in parts (`by_class`).
        views: [1, B, 3, H, W], the plain images.
        sources: the B images, to be named in errors.
        most: t, at most K.
        part: how many classes are looked at together.

    Raises:
        PromptPrismError: answers for an image are not finite.
    """
    assert classifier.text is not None
    text, image = classifier.text, classifier.image_features(views)
    classes = text.shape[1]

    def parts() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, classes, part):
            own = text[:, start : start + part].to(image.device)
            yield start, classifier.backbone.logits(image, own)

    own, best = _Best(1), _Best(min(most, classes))
    if classifier.fusion is None:
        sums = None
        for start, logits in parts():
            check_finite(logits, sources)
            own.add(logits, start)
            mean = logits.mean(0) / classifier.temperature
            best.add(mean, start)
            sums = _log_sum(sums, mean)
        assert sums is not None
        probability = (best.values - sums.unsqueeze(-1)).exp()
        return Leading(best.places, probability, None, None, _others(own, best))

    @cache
    def mean_logit() -> Tensor:
        total = sum(logits.sum(-1, keepdim=True) for _, logits in parts())
        assert isinstance(total, Tensor)
        return total / classes

    @cache
    def strengths() -> Tensor:
        total = None
        for _, logits in parts():
            total = _log_sum(total, classifier.part_of_opinions(logits, mean_logit, strengths).log_evidence)
        return _log_strength(total, classes)

    masses = tempered = None
    for start, logits in parts():
        check_finite(logits, sources)
        opinions = classifier.part_of_opinions(logits, mean_logit, strengths)
        own.add(opinions.weight, start)
        fused = opinions.fused(classifier.fusion)
        best.add(fused.weight, start)
        masses = _log_sum(masses, fused.log_evidence)
        if classifier.temperature != 1:
            tempered = _log_sum(tempered, fused.log_alpha / classifier.temperature)
    strength = _log_strength(masses, classes)
    chosen = PartOfOpinion(best.values, classes, lambda: strength)
    belief = (chosen.log_evidence + math.log(classes) - strength.unsqueeze(-1)).exp()
    uncertainty = (math.log(classes) - strength).exp()
    probability = belief + uncertainty.unsqueeze(-1) / classes
    if tempered is not None:
        probability = (chosen.log_alpha / classifier.temperature - tempered.unsqueeze(-1)).exp()
    return Leading(best.places, probability, belief[:, 0], uncertainty, _others(own, best))


class _Best:
    """The largest values so far, and which classes they are of; of equal ones the first stays before."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.values = self.places = torch.empty(0)

    def add(self, values: Tensor, start: int) -> None:
        """Look at values [..., k] of classes from this one on."""
        found = values.topk(min(self.most, values.shape[-1]))
        places = found.indices + start
        if not start:
            self.values, self.places = found.values, places
            return
        values, places = torch.cat([self.values, found.values], -1), torch.cat([self.places, places], -1)
        order = values.argsort(dim=-1, descending=True, stable=True)[..., : self.most]
        self.values, self.places = values.gather(-1, order), places.gather(-1, order)


def _log_sum(total: Tensor | None, values: Tensor) -> Tensor:
    more = values.logsumexp(-1)
    return more if total is None else torch.logaddexp(total, more)


def _log_strength(masses: Tensor | None, classes: int) -> Tensor:
    """Log of S from the log of the sum of e / K over all classes."""
    assert masses is not None
    return torch.logaddexp(masses, torch.zeros_like(masses)) + math.log(classes)


def _others(own: _Best, best: _Best) -> Tensor:
    return (own.places[..., 0] != best.places[..., 0]).float().mean(0)
