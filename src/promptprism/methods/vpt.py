"""VPT: prompts in the image tower alone (Jia et al., Visual Prompt Tuning, ECCV 2022, deep)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import MethodSettings
from promptprism.methods.templated import TemplateMethod, TemplateSettings


class VptSettings(TemplateSettings):
    """VPT's settings, as PromptSRC's and MaPLe's authors train it beside their own methods."""

    method: ClassVar[str] = "vpt"

    lr: float = Field(default=0.0025, gt=0, description=MethodSettings.model_fields["lr"].description)
    epochs: int = Field(default=20, ge=0, description="Passes over the training images.")
    templates: Literal[1] = Field(default=1, description="VPT has one template.")
    coupled: Literal[False] = Field(default=False, description="There are no text prompts to couple to.")
    learn_text: Literal[False] = Field(default=False, description="The texts stay the phrase.")
    vision_tokens: int = Field(default=4, ge=1, description="m, vision prompts per layer.")


class Vpt(TemplateMethod):
    """One template with prompts in the first layers of the image tower, and the phrase as text."""

    name = VptSettings.method
    Settings: ClassVar[type[MethodSettings]] = VptSettings
    settings: VptSettings
    needs_vision_prompts = True
