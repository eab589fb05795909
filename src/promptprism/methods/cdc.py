"""CDC (Causality-Guided Semantic Decoupling and Classification, NeurIPS 2024, arXiv 2410.12816).

M templates look at M views (VSD), form M opinions by their evidence, and Dempster's rule fuses them (DSTC).
What is not known to us of the paper is a setting here, and its description says "not known".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptprism.evidence import (
    EvidenceKind,
    FusionRule,
    Opinion,
    distance_factors,
    to_evidence,
    trusted_cross_entropy,
)
from promptprism.methods.base import Kept, MethodSettings
from promptprism.methods.objectives import (
    ConsistencyForm,
    DiversityForm,
    DiversityLevel,
    consistency_loss,
    diversity_loss,
    logit_consistency_loss,
)
from promptprism.methods.templated import TemplateMethod, TemplateSettings, softmax_loss
from promptprism.prompts import encode_image


class CdcSettings(TemplateSettings):
    """CDC's settings; those of training and of each template are MaPLe's."""

    method: ClassVar[str] = "cdc"

    templates: int = Field(default=4, ge=1, description="M, the number of templates.")
    views: Literal["maple", "flip", "set1", "set2"] = Field(
        default="set1",
        description="Augmentations of the templates: set1 is another one for each template, set2 adds a "
        "random crop before it (the contents of both are not known); maple is crop and flip for all, flip "
        "has no crop.",
    )
    head: Literal["evidential", "softmax"] = Field(
        default="evidential",
        description="evidential: fused opinions and the trusted loss (DSTC); softmax: "
        "mean cross-entropy of the templates, logits averaged for the prediction.",
    )
    evidence: EvidenceKind = Field(
        default="exp_centered", description="Map from logits to evidence. Not known."
    )
    temperature: float | None = Field(
        default=None, gt=0, description="Divides the logits before the map; None is the map's own. Not known."
    )
    fusion: FusionRule = Field(
        default="averaging",
        description="How opinions are fused: dempster takes them for independent, and agreeing ones add up; "
        "averaging (Josang, 2016) is the mean of their evidence; cautious (Denoeux, 2008) counts what they "
        "share once; tempered is the mean of their weights, Dempster's rule to the power 1/M; pooling is the "
        "mean of their probabilities. On the development sets averaging is as accurate as dempster, and far "
        "better calibrated.",
    )
    distance_aware: bool = Field(
        default=False,
        description="For classes that were not learned: the further a template has moved its leading class "
        "from those learned, beside zero-shot CLIP, the less evidence it gives (the factor of distance-aware "
        "calibration on its logits). Training does not change. Ours.",
    )
    loss_on: Literal["both", "templates", "fused"] = Field(
        default="both",
        description="Which opinions the trusted loss is on: the templates' (mean) plus the fused one, or "
        "only one of the two. Not known.",
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL term against evidence for wrong classes; if not 0, then 1/K is a "
        "sensible value. Not known.",
    )
    anneal: int = Field(
        default=5, ge=1, description="Epochs until the KL term has its full weight. Not known."
    )
    diversity_weight: float = Field(default=0.1, ge=0, description="beta. Not known.")
    diversity_form: DiversityForm = Field(
        default="squared_cosine",
        description="What is averaged of the cosine c of two templates: c^2, c, or max(0, c - margin). "
        "Not known.",
    )
    diversity_level: DiversityLevel = Field(
        default="text_centered",
        description="The vectors that diversity compares: text features less the hand-made template's, text "
        "features, image features, or context tokens. Not known.",
    )
    diversity_margin: float = Field(default=0.5, ge=-1, le=1, description="Margin of the hinge. Not known.")
    consistency_weight: float = Field(default=1.0, ge=0, description="gamma. Not known.")
    consistency_form: ConsistencyForm = Field(
        default="cosine",
        description="Distance of each template's text features to the hand-made template's: 1 - cosine, L1, "
        "squared L2; or kl of the zero-shot probabilities to the template's. Not known.",
    )


class Cdc(TemplateMethod):
    """M templates, each with a view of its own, that classify by the fusion of their opinions."""

    name = CdcSettings.method
    Settings: ClassVar[type[MethodSettings]] = CdcSettings
    prediction_settings: ClassVar[frozenset[str]] = frozenset({"distance_aware"})
    settings: CdcSettings

    def build(self, seed: int) -> None:
        """Make the learner."""
        super().build(seed)
        self.evidential = self.settings.head == "evidential"
        self._distance_factors = Kept()

    @property
    def separable(self) -> bool:
        """Whether the logit of a class is the same in every label space."""
        return not self.settings.distance_aware

    def forward(self, views: Tensor, text: Tensor | None = None) -> Tensor:
        """Logits [M, B, K] of views [M or 1, B, 3, H, W], for predictions."""
        text = self.text_features() if text is None else text
        return _scaled(super().forward(views, text), self._factors(text))

    def one_by_one(self, views: Tensor, text: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Prepare to ask one template at a time."""
        ask, factors = super().one_by_one(views, text), self._factors(text)
        return lambda template, images: _scaled(
            ask(template, images), None if factors is None else factors[template : template + 1]
        )

    def loss(self, views: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Trusted loss + beta * diversity + gamma * consistency."""
        settings = self.settings
        image, text = self.image_features(views), self.text_features()
        logits = self.logits(image, text)
        loss = self._trusted_loss(logits, labels, epoch) if self.evidential else softmax_loss(logits, labels)
        if settings.diversity_weight:
            vectors = self._diversity_vectors(image, text)
            diversity = diversity_loss(vectors, settings.diversity_form, settings.diversity_margin)
            loss = loss + settings.diversity_weight * diversity
        if settings.consistency_weight:
            loss = loss + settings.consistency_weight * self._consistency(views, text, logits)
        return loss

    def opinions(self, logits: Tensor) -> tuple[Opinion, Opinion]:
        """Opinions of the templates [M, B, K] and the fused one [B, K]."""
        if not self.evidential:
            return super().opinions(logits)
        evidence = to_evidence(logits, self.settings.evidence, self.settings.temperature)
        opinions = Opinion.from_evidence(evidence)
        return opinions, opinions.fuse(self.settings.fusion)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, K]: the fused opinion's expected ones."""
        return self.opinions(logits)[1].probability if self.evidential else super().probabilities(logits)

    def _factors(self, text: Tensor) -> Tensor | None:
        """Factors [M, K] of the logits, of text features [M, K, D]; None if all are 1."""
        if self.separable or set(self.class_names) <= set(self.learned_names):
            return None

        def make() -> Tensor:
            learned = copy.copy(self)
            learned.set_classes(self.learned_names)
            zero_shot = self.zero_shot_features(), learned.zero_shot_features()
            return distance_factors(text, learned.text_features(), *zero_shot).float()

        return self._distance_factors.get(self, make)

    def _trusted_loss(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        settings = self.settings
        opinions, fused = self.opinions(logits)
        kl_weight = settings.kl_weight * min(1.0, (epoch + 1) / settings.anneal)
        loss = logits.new_zeros(())
        if settings.loss_on != "fused":
            loss = loss + trusted_cross_entropy(opinions, labels, kl_weight).mean()
        if settings.loss_on != "templates":
            loss = loss + trusted_cross_entropy(fused, labels, kl_weight).mean()
        return loss

    def _diversity_vectors(self, image: Tensor, text: Tensor) -> Tensor:
        level = self.settings.diversity_level
        if level == "context":
            return self.learner.context.flatten(1, 2)
        if level == "image":
            return image
        return text - self.zero_shot_features() if level == "text_centered" else text

    def _consistency(self, views: Tensor, text: Tensor, logits: Tensor) -> Tensor:
        anchor = self.zero_shot_features()
        if self.settings.consistency_form != "kl":
            return consistency_loss(text, anchor, self.settings.consistency_form)
        with torch.no_grad():
            zero_shot = self.logits(encode_image(self.backbone, views), anchor)
        return logit_consistency_loss(logits, zero_shot)


def _scaled(logits: Tensor, factors: Tensor | None) -> Tensor:
    """Logits [M, B, K], each image's times the factor, of [M, K], of its leading class."""
    if factors is None:
        return logits
    return logits * factors.gather(1, logits.argmax(-1)).unsqueeze(-1)
