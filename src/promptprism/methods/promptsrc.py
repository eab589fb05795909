"""PromptSRC (Khattak et al., Self-regulating Prompts: Foundational Model Adaptation, ICCV 2023)."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from pydantic import Field
from torch import Tensor

from promptprism.data.names import LabelSpace, check_phrase
from promptprism.errors import PromptPrismError
from promptprism.methods.base import MethodSettings, Shape
from promptprism.methods.classifier import Texts
from promptprism.methods.ivlp import Ivlp, IvlpSettings
from promptprism.methods.objectives import image_mean, logit_consistency_loss, softmax_loss
from promptprism.methods.templated import NoOffsets
from promptprism.prompts import encode_image

#: The 60 phrases that the public code averages for every data set, of CLIP's 80 for ImageNet.
PHRASES = tuple(dict.fromkeys(("a photo of a {}.", *(say("{}") for say in OPENAI_IMAGENET_TEMPLATES[:60]))))


class PromptSrcSettings(IvlpSettings):
    """PromptSRC's settings in the base-to-new protocol; trained on ImageNet: depth 3, mean 6, std 10."""

    method: ClassVar[str] = "promptsrc"

    class_offsets: NoOffsets = False
    text_weight: float = Field(
        default=25.0, ge=0, description="Weight of the L1 distance of text features to the frozen ones."
    )
    image_weight: float = Field(
        default=10.0, ge=0, description="Weight of the L1 distance of image features to the frozen ones."
    )
    logit_weight: float = Field(
        default=1.0, ge=0, description="Weight of the KL divergence from zero-shot CLIP's probabilities."
    )
    frozen_phrases: tuple[str, ...] = Field(
        default=PHRASES, min_length=1, description="Phrases that the frozen text features average."
    )
    aggregate: bool = Field(
        default=True,
        description="Average the prompts over the epochs, weighted by a Gaussian; needs two epochs or more.",
    )
    aggregation_mean: float | None = Field(
        default=None, description="Epoch (from 1) at the Gaussian's peak; None is three quarters of all."
    )
    aggregation_std: float = Field(default=1.0, gt=0, description="The Gaussian's deviation, in epochs.")


class PromptSrc(Ivlp):
    """IVLP, held near frozen CLIP in features and logits, its prompts averaged over the epochs."""

    Settings: ClassVar[type[MethodSettings]] = PromptSrcSettings
    settings: PromptSrcSettings

    def build(self, seed: int) -> None:
        """Make the learner, and what its average over epochs is gathered in."""
        super().build(seed)
        settings = self.settings
        if settings.aggregate and settings.epochs == 1:
            raise PromptPrismError(
                f"{self.name!r} averages its prompts over epochs, and epochs=1 leaves nothing to average: "
                "set epochs to 2 or more, or aggregate=False."
            )
        for name, value in self._averages().items():
            self.register_buffer(name, torch.zeros_like(value), persistent=False)

    @property
    def shape(self) -> Shape:
        """IVLP's, and frozen features of each image."""
        return replace(super().shape, plain_images=1)

    def phrases(self, space: LabelSpace) -> tuple[str, ...]:
        """Those of the settings."""
        return tuple(map(check_phrase, self.settings.frozen_phrases))

    def texts(self, space: LabelSpace) -> Texts:
        """The frozen features are averaged before they are given length 1."""
        return replace(super().texts(space), equal_phrases=False)

    def losses(
        self, views: Tensor, labels: Tensor, texts: Texts, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cross-entropy, and the three regularisers without their weights: text, image, logits (eqs. 3-5).

        The means of the L1 distances are over the entries of the features too; the KL divergence is divided
        by the number of classes, as in the public code.
        """
        frozen_text = texts.zero_shot_features
        with torch.no_grad():
            frozen_image = encode_image(self.backbone, views)
            zero_shot = self.backbone.logits(frozen_image, frozen_text)
        text, image = self.text_features(texts), self.image_features(views)
        logits = self.backbone.logits(image, text)
        return (
            softmax_loss(logits, labels, weights),
            (text - frozen_text).abs().mean(),
            image_mean((image - frozen_image).abs(), None if weights is None else weights.unsqueeze(-1)),
            logit_consistency_loss(logits, zero_shot, weights) / logits.shape[-1],
        )

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy + weighted regularisers (eq. 6)."""
        loss, text, image, logits = self.losses(views, labels, texts, weights)
        settings = self.settings
        return (
            loss
            + settings.text_weight * text
            + settings.image_weight * image
            + settings.logit_weight * logits
        )

    def after_epoch(self, epoch: int) -> None:
        """Add the prompts to their average over epochs (eq. 7)."""
        settings = self.settings
        mean = 0.75 * settings.epochs if settings.aggregation_mean is None else settings.aggregation_mean
        weight = gaussian_weights(settings.epochs, mean, settings.aggregation_std)[epoch]
        for name, value in self._averages().items():
            self.get_buffer(name).add_(value.detach(), alpha=weight)

    def finish(self, texts: Texts, records: object, validation: object) -> None:
        """Put the average in the place of the last prompts."""
        if self.settings.aggregate:
            for name, value in self._averages().items():
                value.data.copy_(self.get_buffer(name))

    def _averages(self) -> dict[str, Tensor]:
        """Each parameter, by the name of the buffer that its average is gathered in."""
        return {f"average_{name.replace('.', '_')}": value for name, value in self.named_parameters()}


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weight of each epoch (counted from 1) in the average: a Gaussian, adding up to 1."""
    exponents = [-((epoch - mean) ** 2) / (2 * std**2) for epoch in range(1, epochs + 1)]
    densities = [math.exp(one - max(exponents)) for one in exponents]
    return [density / sum(densities) for density in densities]
