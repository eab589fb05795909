"""Tip-Adapter-F: the trained Tip-Adapter (Zhang et al., ECCV 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from promptprism.methods.base import MethodSettings
from promptprism.methods.tip_adapter import TipAdapter, TipAdapterSettings


class TipAdapterFSettings(TipAdapterSettings):
    """Tip-Adapter-F's settings."""

    method: ClassVar[str] = "tip-adapter-f"
    schedule: ClassVar[Literal["epochs", "steps"]] = "steps"
    adam_epsilon: ClassVar[float] = 1e-4

    epochs: int = Field(default=20, ge=0, description="Passes over the training images.")
    batch_size: int = Field(default=256, ge=1, description="Images per training step.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="adamw", description=MethodSettings.model_fields["optimizer"].description
    )
    lr: float = Field(default=0.001, gt=0, description=MethodSettings.model_fields["lr"].description)
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of the keys.")


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose cache keys are trained further."""

    name = TipAdapterFSettings.method
    Settings: ClassVar[type[MethodSettings]] = TipAdapterFSettings
    settings: TipAdapterFSettings
    trained_keys = True
