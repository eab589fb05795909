"""IVLP: independent vision-language prompting (Khattak et al., CVPR 2023; Rasheed et al., CVPR 2023)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import MethodSettings
from promptprism.methods.templated import TemplateMethod, TemplateSettings


class IvlpSettings(TemplateSettings):
    """IVLP's settings in the base-to-new protocol, as PromptSRC's authors train it."""

    method: ClassVar[str] = "ivlp"

    lr: float = Field(default=0.0025, gt=0, description=MethodSettings.model_fields["lr"].description)
    epochs: int = Field(default=20, ge=0, description="Passes over the training images.")
    templates: Literal[1] = Field(default=1, description="IVLP has one template.")
    coupled: Literal[False] = Field(default=False, description="Nothing couples the prompts of both towers.")
    learn_text: Literal[True] = Field(default=True, description="Both towers have prompts.")
    context_length: int = Field(default=4, ge=1, description="n, text prompts per layer.")
    vision_tokens: int = Field(default=4, ge=1, description="m, vision prompts per layer.")


class Ivlp(TemplateMethod):
    """One template with prompts in the first J layers of both towers, each learned on its own."""

    name = IvlpSettings.method
    Settings: ClassVar[type[MethodSettings]] = IvlpSettings
    settings: IvlpSettings
    needs_vision_prompts = True
