"""CDC (Causality-Guided Semantic Decoupling and Classification, NeurIPS 2024, arXiv 2410.12816).

M templates look at M views (VSD), form M opinions by their evidence, and Dempster's rule fuses them (DSTC).
What is not known to us of the paper is a setting, see `cdc_settings`.
"""

from dataclasses import fields, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.data.batches import labels_of
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.errors import PromptPrismError
from promptprism.evidence import distance_factors, trusted_cross_entropy
from promptprism.methods.base import MethodSettings, Shape
from promptprism.methods.cdc_classifier import CdcClassifier, form_opinions
from promptprism.methods.cdc_settings import LEARNERS, CdcSettings
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.contexts import Contexts, plain_features
from promptprism.methods.learner import LearnerMethod, weighted
from promptprism.methods.objectives import (
    consistency_loss,
    diversity_loss,
    image_mean,
    logit_consistency_loss,
    negative_correlation,
    patch_groups,
    softmax_loss,
    subspace_overlap,
)
from promptprism.prompts import encode_image


class Cdc(LearnerMethod):
    """M templates, each with a view of its own, that classify by the fusion of their opinions.

    What a template is, its learner, is the settings': an instance is of a subclass that is that learner, too.
    """

    Settings: ClassVar[type[MethodSettings]] = CdcSettings
    prediction_settings: ClassVar[frozenset[str]] = frozenset({"distance_aware"})
    lowered_settings: ClassVar[frozenset[str]] = frozenset({"contexts"})
    settings: CdcSettings
    context_mean: Tensor
    context_residuals: Tensor
    learner: Any
    """What all learners but low-rank updates are made by, such as a `PromptLearner`."""

    def __new__(
        cls,
        backbone: Backbone | None = None,  # noqa: ARG004
        settings: MethodSettings | None = None,
        seed: int = 1,  # noqa: ARG004
    ) -> Self:
        """Choose the subclass."""
        kind = _OVER[getattr(settings, "learner", "maple")] if cls is Cdc else cls
        return cast(Self, super().__new__(kind))

    def __reduce__(self) -> tuple[Any, ...]:
        """The subclass has no name that it could be found by when it is unpickled: it is chosen again."""
        return Cdc.__new__, (Cdc, None, self.settings), self.__dict__

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:
        """Those of the learner."""
        return LEARNERS[settings.learner].axes(settings, images)

    def build(self, seed: int) -> None:
        """Make the learners.

        Raises:
            PromptPrismError: the backbone has not what they need, or no patches to tell apart.
        """
        super().build(seed)
        settings, vision = self.settings, self.backbone.vision
        if settings.decoupling == "patches" and not vision.plain_patches(settings.templates):
            raise PromptPrismError(
                f"decoupling='patches' gives each of {settings.templates} templates patches of its own, and "
                f"the image tower of backbone {self.backbone.name!r} has too few, or takes them all or none: "
                "take a CLIP ViT, fewer templates, or another decoupling."
            )

    def allot(self, classes: int, images: int) -> None:
        """Make room for the contexts, too."""
        super().allot(classes, images)
        self._keep(None)

    def _keep(self, contexts: Contexts | None) -> None:
        """Hold so many contexts as are wanted, or the room for them."""
        if self.settings.contexts:
            room = Contexts.empty(self.templates, self.settings.contexts, self.backbone.embed_dim)
            mean, residuals = room.mean, room.residuals
            if contexts:
                mean = contexts.mean
                residuals[:, : contexts.residuals.shape[1]] = contexts.residuals
            self.register_buffer("context_mean", mean.to(self.backbone.device))
            self.register_buffer("context_residuals", residuals.to(self.backbone.device))

    def use(self, settings: MethodSettings) -> None:
        """Keep fewer contexts if less are wanted, or none."""
        before, wanted = self.settings.contexts, cast(CdcSettings, settings).contexts
        super().use(settings)
        if wanted < before:
            kept = Contexts(self.context_mean, self.context_residuals).some(wanted)
            del self.context_mean, self.context_residuals
            self._keep(kept)

    def prepare(self, texts: Texts, records: Records) -> None:
        """Refuse training images that have no contexts.

        Raises:
            PromptPrismError: contexts are wanted, and no class has two images.
        """
        if self.settings.contexts and labels_of(records).bincount().max() < 2:
            raise PromptPrismError(
                f"contexts={self.settings.contexts} is what photos show beside their class, and there are no "
                "two photos of a class: give more shots, or leave out contexts"
            )
        super().prepare(texts, records)

    def finish(self, texts: Texts, records: Records, validation: Records) -> None:
        """Look at the training images once more, plainly, and keep their contexts."""
        super().finish(texts, records, validation)
        if self.settings.contexts:
            with torch.inference_mode(False), torch.no_grad():
                features = plain_features(super().classify(texts, None), records)
                features = features.expand(self.templates, -1, -1)
                labels = labels_of(records, features.device)
                self._keep(Contexts.of(features, labels, self.settings.contexts))

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"learner {self.settings.learner!r} of method {self.name!r}"

    @property
    def shape(self) -> Shape:
        """The learner's, and the plain features that consistency may take."""
        settings = self.settings
        plain = len(self.views) if settings.consistency_weight and settings.consistency_form == "kl" else 0
        groups = settings.templates if settings.decoupling == "patches" else 1
        return replace(super().shape, plain_images=plain, patch_groups=groups)

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """No by distance, where a class was not learned."""
        known = not self.settings.distance_aware or min(learned.places(space)) >= 0
        return known and super().separable(space, learned)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Trusted loss + beta * diversity + gamma * consistency, and what else decouples."""
        settings, shown = self.settings, None
        if settings.decoupling == "patches" and self.training:
            vision, numbers = self.backbone.vision, self.draws("patches of epoch {}", epoch)
            shown = patch_groups(vision.tokens - vision.first_patch, settings.templates, numbers)
        text, readings = self.features(views, texts, epoch, shown)
        logits = self.logits(readings, text, texts.space)
        loss = weighted(logits, lambda one: self._loss(one, labels, epoch, weights))
        if settings.diversity_weight:
            vectors = self._diversity_vectors(readings[0][1], text, texts)
            form = settings.diversity_form, settings.diversity_margin
            of_images = weights if settings.diversity_level == "image" else None
            diversity = diversity_loss(vectors, *form, of_images)
            loss = loss + settings.diversity_weight * diversity
        if settings.consistency_weight:
            consistency = self._consistency(views, text, logits[0][1], texts, weights)
            loss = loss + settings.consistency_weight * consistency
        if settings.decoupling == "subspaces":
            loss = loss + settings.decoupling_weight * subspace_overlap(self.contexts())
        return loss

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """M templates whose opinions are fused, each by its distance from the classes learned if wanted."""
        settings, factors = self.settings, None
        seer = super().classify(texts, learned)
        if settings.distance_aware and learned and not set(texts.space.names) <= set(learned.names):
            # In the phrase of both: another one would look like a distance.
            near = self.texts(replace(learned, phrase=texts.space.phrase))
            zero_shot = texts.zero_shot_features, near.zero_shot_features
            both = self.text_features(texts), self.text_features(near)
            factors = distance_factors(*both, *zero_shot).float()
        parts = {field.name: getattr(seer, field.name) for field in fields(Classifier)}
        if settings.head == "evidential":
            parts["fusion"] = settings.fusion
        adjust = None
        if settings.contexts and self.context_residuals.any():  # not while it is trained
            adjust = Contexts(self.context_mean, self.context_residuals).filter()
        return CdcClassifier(**parts, settings=settings, factors=factors, seer=seer, adjust=adjust)

    def _loss(self, logits: Tensor, labels: Tensor, epoch: int, weights: Tensor | None) -> Tensor:
        """Of one reading's logits."""
        settings = self.settings
        if settings.head == "softmax":
            loss, probabilities = softmax_loss(logits, labels, weights), logits.softmax(-1)
        else:
            opinions, fused = form_opinions(logits, settings)
            kl_weight = settings.kl_weight * min(1.0, (epoch + 1) / settings.anneal)
            held = {"templates": [opinions], "fused": [fused], "both": [opinions, fused]}[settings.loss_on]
            losses = [image_mean(trusted_cross_entropy(one, labels, kl_weight), weights) for one in held]
            loss, probabilities = torch.stack(losses).sum(), opinions.probability
        if settings.decoupling == "correlation":
            loss = loss + settings.decoupling_weight * negative_correlation(probabilities, weights)
        return loss

    def _diversity_vectors(self, image: Tensor, text: Tensor, texts: Texts) -> Tensor:
        level = self.settings.diversity_level
        if level == "context":
            return self.contexts().flatten(1, 2)
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


_OVER: dict[str, type[Cdc]] = {name: type("Cdc", (Cdc, kind), {}) for name, kind in LEARNERS.items()}
