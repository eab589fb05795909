"""Prompts that nothing couples: in both towers (IVLP), or in the image tower alone (VPT).

IVLP: Khattak et al., CVPR 2023; Rasheed et al., CVPR 2023. VPT: Jia et al., ECCV 2022, its deep kind.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import BatchSize, Epochs, LearningRate, MethodSettings
from promptprism.methods.templated import TemplateMethod, TemplateSettings


class _ApartSettings(TemplateSettings):
    """What both share, as PromptSRC's and MaPLe's authors train them beside their own methods."""

    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 20, "batch_size": 4, "lr": 0.0025}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    lr: LearningRate = 0.004
    templates: Literal[1] = Field(default=1, description="There is one template.")
    coupled: Literal[False] = Field(default=False, description="Nothing couples the prompts of both towers.")
    vision_tokens: int = Field(default=4, ge=1, description="m, vision prompts per layer.")


class IvlpSettings(_ApartSettings):
    """IVLP's settings in the base-to-new protocol."""

    method: ClassVar[str] = "ivlp"

    learn_text: Literal[True] = Field(default=True, description="Both towers have prompts.")
    context_length: int = Field(default=4, ge=1, description="n, text prompts per layer.")


class Ivlp(TemplateMethod):
    """One template with prompts in the first J layers of both towers, each learned on its own."""

    Settings: ClassVar[type[MethodSettings]] = IvlpSettings
    settings: IvlpSettings
    needs_vision_prompts = True


class VptSettings(_ApartSettings):
    """VPT's settings in the base-to-new protocol."""

    method: ClassVar[str] = "vpt"

    learn_text: Literal[False] = Field(default=False, description="The texts stay the phrase.")


class Vpt(TemplateMethod):
    """One template with prompts in the first layers of the image tower, and the phrase as text."""

    Settings: ClassVar[type[MethodSettings]] = VptSettings
    settings: VptSettings
    needs_vision_prompts = True
