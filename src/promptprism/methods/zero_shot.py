"""Zero-shot CLIP (Radford et al., ICML 2021): hand-made phrases, nothing learned."""

from typing import ClassVar, Literal

from open_clip import SIMPLE_IMAGENET_TEMPLATES
from pydantic import Field

from promptprism.data.names import LabelSpace, check_phrase
from promptprism.methods.base import Method, MethodSettings
from promptprism.methods.classifier import Classifier, Texts

#: The seven phrases that CLIP's authors found to serve best on ImageNet, for ensembles.
ENSEMBLE_PHRASES = tuple(say("{}") for say in SIMPLE_IMAGENET_TEMPLATES)


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

    Settings: ClassVar[type[MethodSettings]] = ZeroShotSettings
    settings: ZeroShotSettings

    def phrases(self, space: LabelSpace) -> tuple[str, ...]:
        """The data set's phrase, and the ensemble's if wanted."""
        if not self.settings.ensemble:
            return (space.phrase,)
        return (space.phrase, *map(check_phrase, self.settings.ensemble_phrases))

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """The hand-made phrases' text features, and the plain image tower."""
        return Classifier(name=self.name, texts=texts, text=texts.zero_shot_features)
