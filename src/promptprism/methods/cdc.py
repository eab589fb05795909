"""CDC (Causality-Guided Semantic Decoupling and Classification, NeurIPS 2024, arXiv 2410.12816).

M templates look at M views (VSD), form M opinions by their evidence, and Dempster's rule fuses them (DSTC).
What is not known to us of the paper is a setting here, and its description says "not known".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptprism.data.names import LabelSpace
from promptprism.evidence import (
    EvidenceKind,
    FusionRule,
    Opinion,
    PartOfOpinion,
    distance_factors,
    to_evidence,
    trusted_cross_entropy,
)
from promptprism.evidence.fusion import find_fusion
from promptprism.methods.base import MethodSettings
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.objectives import (
    ConsistencyForm,
    DiversityForm,
    DiversityLevel,
    consistency_loss,
    diversity_loss,
    image_mean,
    logit_consistency_loss,
    softmax_loss,
)
from promptprism.methods.templated import TemplateMethod, TemplateSettings
from promptprism.prompts import encode_image


class CdcSettings(TemplateSettings):
    """CDC's settings; those of training and of each template are MaPLe's."""

    method: ClassVar[str] = "cdc"

    templates: int = Field(default=4, ge=1, description="M, the number of templates.")
    views: Literal["maple", "half", "flip", "set1", "set2"] = Field(
        default="set1",
        description="Augmentations of the templates: set1 is another one for each template, set2 adds a "
        "random crop before it (the contents of both are not known); maple is crop and flip for all, half "
        "crops less, flip not at all.",
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

    @property
    def separable(self) -> bool:
        """Whether the logit of a class is the same in every label space."""
        return not self.settings.distance_aware

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Trusted loss + beta * diversity + gamma * consistency."""
        settings = self.settings
        image, text = self.image_features(views), self.text_features(texts)
        logits = self.backbone.logits(image, self.with_offsets(text, texts.space))
        if settings.head == "evidential":
            loss = self._trusted_loss(logits, labels, epoch, weights)
        else:
            loss = softmax_loss(logits, labels, weights)
        if settings.diversity_weight:
            vectors = self._diversity_vectors(image, text, texts)
            form = settings.diversity_form, settings.diversity_margin
            of_images = weights if settings.diversity_level == "image" else None
            diversity = diversity_loss(vectors, *form, of_images)
            loss = loss + settings.diversity_weight * diversity
        if settings.consistency_weight:
            loss = loss + settings.consistency_weight * self._consistency(views, text, logits, texts, weights)
        return loss

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """M templates whose opinions are fused, each by its distance from the classes learned if wanted."""
        text, settings = self.text_features(texts), self.settings
        parts = self.learned_parts(text, texts, learned)
        factors = None
        if settings.distance_aware and learned and not set(texts.space.names) <= set(learned.names):
            # In the phrase of both: another one would look like a distance.
            near = self.texts(replace(learned, phrase=texts.space.phrase))
            zero_shot = texts.zero_shot_features, near.zero_shot_features
            factors = distance_factors(text, self.text_features(near), *zero_shot).float()
        if settings.head == "softmax":
            return CdcClassifier(**parts, settings=settings, factors=factors)
        return CdcClassifier(**parts, settings=settings, factors=factors, fusion=settings.fusion)

    def _trusted_loss(self, logits: Tensor, labels: Tensor, epoch: int, weights: Tensor | None) -> Tensor:
        settings = self.settings
        opinions, fused = form_opinions(logits, settings)
        kl_weight = settings.kl_weight * min(1.0, (epoch + 1) / settings.anneal)
        loss = logits.new_zeros(())
        if settings.loss_on != "fused":
            loss = loss + image_mean(trusted_cross_entropy(opinions, labels, kl_weight), weights)
        if settings.loss_on != "templates":
            loss = loss + image_mean(trusted_cross_entropy(fused, labels, kl_weight), weights)
        return loss

    def _diversity_vectors(self, image: Tensor, text: Tensor, texts: Texts) -> Tensor:
        level = self.settings.diversity_level
        if level == "context":
            return self.learner.context.flatten(1, 2)
        if level == "image":
            return image
        return text - texts.zero_shot_features if level == "text_centered" else text

    def _consistency(
        self, views: Tensor, text: Tensor, logits: Tensor, texts: Texts, weights: Tensor | None
    ) -> Tensor:
        anchor = texts.zero_shot_features
        if self.settings.consistency_form != "kl":
            return consistency_loss(text, anchor, self.settings.consistency_form)
        with torch.no_grad():
            zero_shot = self.backbone.logits(encode_image(self.backbone, views), anchor)
        return logit_consistency_loss(logits, zero_shot, weights)


@dataclass(frozen=True, eq=False, kw_only=True)
class CdcClassifier(Classifier):
    """M templates, their opinions, and the fused one.

    Attributes:
        settings: of the method.
        factors: [M, K]: what each template's logits are scaled by where it leads to a class; None is 1.
    """

    settings: CdcSettings
    factors: Tensor | None

    @property
    def by_class(self) -> bool:
        """Whether a part of the classes can be asked for; the factors take the leading one of all."""
        fusion = None if self.fusion is None else find_fusion(self.fusion)
        return self.factors is None and (fusion is None or fusion.by_class)

    def logits(self, views: Tensor) -> Tensor:
        """Logits [M, B, K] of views [M or 1, B, 3, H, W]."""
        return _scaled(super().logits(views), self.factors)

    def one_by_one(self, views: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Prepare to ask one template at a time."""
        ask, factors = super().one_by_one(views), self.factors
        return lambda template, images: _scaled(
            ask(template, images), None if factors is None else factors[template : template + 1]
        )

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


def _scaled(logits: Tensor, factors: Tensor | None) -> Tensor:
    """Logits [M, B, K], each image's times the factor, of [M, K], of its leading class."""
    if factors is None:
        return logits
    return logits * factors.gather(1, logits.argmax(-1)).unsqueeze(-1)
