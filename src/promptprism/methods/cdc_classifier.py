"""What CDC becomes for one label space: M templates, their opinions, and the fused one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from promptprism.evidence import Opinion, PartOfOpinion, to_evidence
from promptprism.evidence.fusion import find_fusion
from promptprism.methods.classifier import Classifier
from promptprism.methods.contexts import ContextFilter

if TYPE_CHECKING:
    from promptprism.methods.cdc_settings import CdcSettings


@dataclass(frozen=True, eq=False, kw_only=True)
class CdcClassifier(Classifier):
    """M templates, their opinions, and the fused one.

    Attributes:
        settings: of the method.
        factors: [M, K]: what each template's logits are scaled by where it leads to a class; None is 1.
        seer: the learners' own classifier, which looks at images.
        adjust: takes less of the context from image features; None leaves them as they are.
    """

    settings: CdcSettings
    factors: Tensor | None
    seer: Classifier
    adjust: ContextFilter | None = None

    @property
    def by_class(self) -> bool:
        """Whether a part of the classes can be asked for; the factors take the leading one of all."""
        fusion = None if self.fusion is None else find_fusion(self.fusion)
        return self.seer.by_class and self.factors is None and (fusion is None or fusion.by_class)

    def finish_features(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Image features [m, B, D] of what `start` gave, under some of the templates."""
        features = self.seer.finish_features(states, part)
        return features if self.adjust is None else self.adjust(features, part)

    def finish_logits(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Logits [m, B, K] of what `start` gave, under some of the templates."""
        if self.adjust is None:
            # Of very many classes, the text features that were put together from parts.
            logits = replace(self.seer, text=self.text).finish_logits(states, part)
        else:
            logits = super().finish_logits(states, part)
        return logits if self.factors is None else scaled(logits, self.factors[part])

    def opinions(self, logits: Tensor) -> tuple[Opinion, Opinion]:
        """Opinions of the templates [M, B, K] and the fused one [B, K]."""
        return form_opinions(logits, self.settings) if self.evidential else super().opinions(logits)

    def part_of_opinions(
        self, logits: Tensor, mean: Callable[[], Tensor], strength: Callable[[], Tensor]
    ) -> PartOfOpinion:
        """Opinions [M, B, k] of the templates on some of the classes."""
        settings, classes = self.settings, len(self.space)
        centre = mean() if settings.evidence == "exp_centered" else None
        evidence = to_evidence(logits, settings.evidence, settings.temperature, centre)
        return PartOfOpinion(torch.log1p(evidence / classes), classes, strength)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, K]: the fused opinion's expected ones, at the temperature."""
        if not self.evidential:
            return super().probabilities(logits)
        expected = self.opinions(logits)[1].probability
        return expected if self.temperature == 1 else (expected.log() / self.temperature).softmax(-1)


def form_opinions(logits: Tensor, settings: CdcSettings) -> tuple[Opinion, Opinion]:
    """Opinions [M, B, K] of logits [M, B, K], and the fused one [B, K]."""
    evidence = to_evidence(logits, settings.evidence, settings.temperature)
    opinions = Opinion.from_evidence(evidence)
    return opinions, opinions.fuse(settings.fusion)


def scaled(logits: Tensor, factors: Tensor) -> Tensor:
    """Logits [M, B, K], each image's times the factor, of [M, K], of its leading class."""
    return logits * factors.gather(1, logits.argmax(-1)).unsqueeze(-1)
