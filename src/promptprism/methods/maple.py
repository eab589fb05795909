"""MaPLe (Khattak et al., Multi-modal Prompt Learning, CVPR 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import BatchSize, Epochs, LearningRate, MethodSettings
from promptprism.methods.templated import TemplateMethod, TemplateSettings


class MapleSettings(TemplateSettings):
    """MaPLe's settings in the base-to-new protocol; trained on ImageNet: `depth=3, lr=0.0026, epochs=2`."""

    method: ClassVar[str] = "maple"
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 5, "batch_size": 4, "lr": 0.0035}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    lr: LearningRate = 0.004
    templates: Literal[1] = Field(default=1, description="MaPLe has one template.")
    coupled: Literal[True] = Field(
        default=True, description="MaPLe couples its vision prompts to its text prompts."
    )


class Maple(TemplateMethod):
    """One template with prompts in the first J layers of both towers, coupled by linear maps."""

    Settings: ClassVar[type[MethodSettings]] = MapleSettings
    settings: MapleSettings
    needs_vision_prompts = True
