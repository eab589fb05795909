"""CoOp (Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import BatchSize, Epochs, LearningRate, MethodSettings
from promptprism.methods.templated import TemplateMethod, TemplateSettings


class CoOpSettings(TemplateSettings):
    """CoOp's settings in the base-to-new protocol.

    CoOp's first paper uses `context_length=16, phrase_init=False`, and 50 epochs on ImageNet.
    """

    method: ClassVar[str] = "coop"
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 200, "batch_size": 32, "lr": 0.002}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    lr: LearningRate = 0.01
    templates: Literal[1] = Field(default=1, description="CoOp has one template.")
    depth: Literal[1] = Field(default=1, description="CoOp's context enters the first layer only.")
    coupled: Literal[False] = Field(default=False, description="CoOp leaves the vision tower alone.")
    context_length: int = Field(default=4, ge=1, description="n, context tokens, shared by all classes.")


class CoOp(TemplateMethod):
    """One template of n context tokens in the text tower, shared by all classes, class name at the end."""

    Settings: ClassVar[type[MethodSettings]] = CoOpSettings
    settings: CoOpSettings
