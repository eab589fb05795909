"""Zero-shot CLIP (Radford et al., ICML 2021): hand-made phrases, nothing learned."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from promptprism.data.names import check_phrase
from promptprism.errors import PromptPrismError
from promptprism.methods.base import Method, MethodSettings
from promptprism.prompts import encode_image

#: The seven phrases that CLIP's authors found to serve best on ImageNet, for ensembles.
ENSEMBLE_PHRASES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class ZeroShotSettings(MethodSettings):
    """Settings of zero-shot CLIP."""

    method: ClassVar[str] = "zero-shot"

    epochs: Literal[0] = Field(default=0, description="There is nothing to train.")
    ensemble: bool = Field(
        default=False,
        description="Average the text features of the data set's phrase and of `ensemble_phrases`.",
    )
    ensemble_phrases: tuple[str, ...] = Field(
        default=ENSEMBLE_PHRASES, description="Phrases with {} for the class name; used if `ensemble` is on."
    )


class ZeroShot(Method):
    """Zero-shot CLIP with the data set's phrase, or an ensemble of phrases (M = 1)."""

    name = ZeroShotSettings.method
    Settings: ClassVar[type[MethodSettings]] = ZeroShotSettings
    settings: ZeroShotSettings

    def phrases(self) -> tuple[str, ...]:
        """The data set's phrase, and the ensemble's if wanted."""
        if not self.settings.ensemble:
            return (self.phrase,)
        return (self.phrase, *map(check_phrase, self.settings.ensemble_phrases))

    def text_features(self) -> Tensor:
        """Text features [1, K, D]."""
        return self.zero_shot_features()

    def forward(self, views: Tensor, text: Tensor | None = None) -> Tensor:
        """Logits [1, B, K] of views [1, B, 3, H, W]."""
        text = self.text_features() if text is None else text
        return self.logits(encode_image(self.backbone, views), text)

    def loss(self, views: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """There is none.

        Raises:
            PromptPrismError: always.
        """
        raise PromptPrismError("Zero-shot CLIP learns nothing: it has no loss, and its epochs are 0.")
